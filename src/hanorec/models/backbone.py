"""Load any Hugging Face image-text-to-text model and find out what is its family's own way.

In: the name of a checkpoint (a hub id, a folder or "tiny"). Out: a `Backbone`: model, processor, the few facts about
its chat format that prompts need, and the `Layout` of its tokens. What differs between model families is discovered
here and in `images.py`, by asking processor and model, and nowhere else; nothing goes by a family's name.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from hanorec import distributed
from hanorec.errors import DataError
from hanorec.models import tiny
from hanorec.models.packing import FULL, SIGHTS, SLIDING, Layout, Prompt, pack, packed_inputs

logging.disable_progress_bar()

TILES = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")  # processors' settings that cut images up
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Backbone:
    """A vision-language model and how to talk to it. `head`, `middle`, `tail` are the token ids of the chat
    format before the user's text, between it and the answer, and after the answer; `image_text` is what a text says
    where an image stands."""

    model: torch.nn.Module
    processor: object
    head: list[int]
    middle: list[int]
    tail: list[int]
    image_text: str
    layout: Layout = field(default_factory=Layout)
    compute: torch.dtype = torch.float32  # of forwards, whatever the weights are kept in

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def width(self) -> int:
        """Of a token's embedding."""
        return self.model.config.get_text_config().hidden_size

    @property
    def pad(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def tokens(self, text: str) -> list[int]:
        """The token ids of a piece of text, without the special tokens a whole text would get."""
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is what the device is fast at: on CUDA bfloat16 where it is no emulation, else float16; else float32,
    for on most CPUs the half precisions are emulated, and up to a hundred times slower."""
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_backbone(
    name: str,
    *,
    device: torch.device | None = None,
    dtype: str = "auto",
    views: str = "many",
    remote_code: bool = False,
) -> Backbone:
    """Load model and processor of a checkpoint: "tiny", a folder, or an id of the Hugging Face hub.

    views: "one" keeps the processor from cutting images into tiles. remote_code: whether Python files that come with a
    checkpoint may run.
    Errors: DataError where the checkpoint cannot be found, or is no model that reads images as tokens.
    """
    device = device or distributed.device()
    source = str(tiny.PRETRAINED) if name == "tiny" else name
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise DataError(f"{source}: no model checkpoint (no config.json)")
    if not Path(source).exists():
        check_hub(source)
    compute = choose_dtype(dtype, device)
    options = {"trust_remote_code": remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=compute, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"--backbone {name}: cannot be loaded as an image-text-to-text model: {first_line}") from error
    if views == "one":
        for setting in TILES:
            if hasattr(processor.image_processor, setting):
                setattr(processor.image_processor, setting, False)
    torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
    backbone = describe(model.to(device).eval(), processor, name)
    backbone.compute = compute
    if backbone.layout.plain:
        warnings.warn(f"--backbone {name}: one forward a response, because {backbone.layout.plain}", stacklevel=2)
    return backbone


def check_hub(name: str) -> None:
    """Errors: DataError where a checkpoint of the hub is neither in the local cache nor to be had."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(
            f"--backbone {name}: neither a folder nor a checkpoint that the Hugging Face hub has"
        ) from error
    except Exception as error:
        raise DataError(
            f"--backbone {name}: no such folder, and the Hugging Face hub cannot be reached. Missing are config.json, "
            f"model*.safetensors, tokenizer*, *processor*.json and chat_template.*: where there is a network, "
            f"`hf download {name} --local-dir DIR`, bring DIR here and give --backbone DIR"
        ) from error


def describe(model: torch.nn.Module, processor, name: str = "") -> Backbone:
    """A model and its processor as a `Backbone`. Errors: DataError where it does not read images as tokens."""
    if not hasattr(model, "get_image_features") or not hasattr(processor, "image_processor"):
        raise DataError(f"--backbone {name}: {type(model).__name__} takes no images")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise DataError(f"--backbone {name}: {type(model).__name__} does not read images as tokens in its text")
    image_text = _image_text(processor)
    return Backbone(model, processor, *_chat_format(processor), image_text, find_layout(model, processor, image_text))


def language_model(model: torch.nn.Module) -> torch.nn.Module:
    """The language model inside, without its output head."""
    inner = model.base_model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


# the chat format


def _render(processor, *messages: tuple[str, list[dict]]) -> str:
    return processor.apply_chat_template([{"role": role, "content": content} for role, content in messages])


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _chat_format(processor) -> tuple[list[int], list[int], list[int]]:
    """Head, middle and tail of a chat: what the template writes around a question Q and an answer A, and before it
    the token a text begins with. Without a template: Q, a line's end, A."""
    tokenizer = processor.tokenizer
    head, middle, tail = "", "\n", ""
    if processor.chat_template is not None:
        chat = _render(processor, ("user", [_text("⁂Q⁂")]), ("assistant", [_text("⁂A⁂")]))
        head, rest = chat.split("⁂Q⁂")
        middle, tail = rest.split("⁂A⁂")
    head, middle, tail = (tokenizer(part, add_special_tokens=False).input_ids for part in (head, middle, tail.strip()))
    begin = tokenizer.bos_token_id
    if begin is not None and begin in tokenizer("a").input_ids and head[:1] != [begin]:
        head = [begin, *head]
    return head, middle, tail or [tokenizer.eos_token_id]


def _image_text(processor) -> str:
    """What the chat template writes for an image."""
    if processor.chat_template is None:
        return processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    chat = _render(processor, ("user", [_text("⁂Q⁂"), {"type": "image"}, _text("⁂A⁂")]))
    return chat.split("⁂Q⁂")[1].split("⁂A⁂")[0]


# the layout of tokens


def find_layout(model: torch.nn.Module, processor, image_text: str) -> Layout:
    """How the model places its tokens and what they see, found out by listening to what its layers are told in a plain
    forward over two images in a text, and telling them the same in a packed one. Where that does not succeed, the
    layout says why (`plain`), and scoring goes the plain way."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or [SLIDING if window else FULL])
    accepted = inspect.signature(model.forward).parameters
    layout = Layout(
        image_token=_image_token(model, processor),
        kinds=frozenset(kinds),
        window=window,
        types=tuple(name for name in ("token_type_ids", "mm_token_type_ids") if name in accepted),
    )
    if hasattr(model.base_model, "get_rope_index"):
        layout = replace(layout, axes=_axes(model.base_model, layout.image_token))
    try:
        text_of_two = f"one {image_text} two {image_text} three"
        images = [[Image.new("RGB", (64, 96)), Image.new("RGB", (96, 64))]]
        asked = processor(text=[text_of_two], images=images, add_special_tokens=False, return_tensors="pt")
        asked = {k: v.to(model.device) for k, v in asked.items() if k in accepted and not k.startswith("pixel")}
        asked.pop("labels", None)
        with _short_window(text, kinds) as shorter:
            sight = _sight(model, replace(layout, window=shorter), asked)
        reason = ""
        if sight is None and SLIDING in kinds:
            sight = _sight(model, replace(layout, kinds=frozenset({FULL})), asked)
            reason = "its sliding layers cannot be told a window of their own"
    except Exception as error:  # whatever a model that was never seen may do
        sight, reason = None, f"it could not be asked how it reads ({type(error).__name__}: {error})"
    if sight is None:
        sight, reason = ("causal", 0), reason or "what its layers see, a packed sequence cannot tell them"
    if kinds - {FULL, SLIDING}:
        reason = f"its layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))} read one token after the other"
    return replace(layout, sight=sight[0], first=sight[1], plain=reason)


def _sight(model: torch.nn.Module, layout: Layout, asked: dict) -> tuple[str, int] | None:
    """The `sight` and `first` with which a packed forward tells the layers what a plain one does; None for none."""
    plain, first = _told(model, asked)
    for sight in SIGHTS:
        with suppress(Exception):  # a model that does not take this kind of mask
            if _same(plain, _told_packed(model, replace(layout, sight=sight, first=first), asked)):
                return sight, first
    return None


def _image_token(model: torch.nn.Module, processor) -> int:
    for name in ("image_token_id", "image_token_index"):
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name)
    return processor.image_token_id


def _axes(inner: torch.nn.Module, image_token: int):
    """Positions in three axes (multimodal rotary embeddings), as the model computes them."""

    def axes(ids: list[int], grids: Tensor | None) -> np.ndarray:
        tokens = torch.tensor([ids])
        positions, _ = inner.get_rope_index(
            tokens, mm_token_type_ids=(tokens == image_token).int(), image_grid_thw=grids
        )
        return positions[:, 0].numpy()

    return axes


@contextmanager
def _short_window(text, kinds: set[str]) -> Iterator[int | None]:
    """While open, sliding layers see so few tokens back that it shows in a short text."""
    before = getattr(text, "sliding_window", None)
    if SLIDING in kinds:
        text.sliding_window = 5
    try:
        yield text.sliding_window if SLIDING in kinds else before
    finally:
        if SLIDING in kinds:
            text.sliding_window = before


@torch.no_grad()
def _told(model: torch.nn.Module, inputs: dict) -> tuple[list[tuple[Tensor, list[Tensor]]], int]:
    """What a forward tells each layer, which itself does nothing: who sees whom [L, L] and the angles of positions.
    And the first position."""
    length, heard, first = inputs["input_ids"].shape[1], [], [0]

    def layer(hidden: Tensor, attention_mask=None, position_embeddings=None, **_) -> Tensor:
        seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        if attention_mask is not None:
            seen = attention_mask[0, 0] if attention_mask.dtype == torch.bool else attention_mask[0, 0] == 0
        heard.append((seen, [angle.reshape(-1, length, angle.shape[-1]) for angle in position_embeddings]))
        return hidden

    def listen(_, arguments, named) -> None:
        if named.get("position_ids") is not None:
            first[0] = int(named["position_ids"].min())

    inner = language_model(model)
    with ExitStack() as stack:
        for one in inner.layers:
            vars(one)["forward"] = layer  # found before the class's own
            stack.callback(vars(one).pop, "forward")
        stack.callback(inner.register_forward_pre_hook(listen, with_kwargs=True).remove)
        model(**inputs, use_cache=False)
    return heard, first[0]


def _told_packed(model: torch.nn.Module, layout: Layout, asked: dict) -> list[tuple[Tensor, list[Tensor]]]:
    """What a packed forward tells the layers, less the response's columns."""
    ids = asked["input_ids"][0].tolist()
    packed = pack([Prompt(ids, [])], [[ids[:3]]], pad=0, layout=layout, grids=[asked.get("image_grid_thw")])
    told, _ = _told(model, packed_inputs(packed, layout, model.device, model.dtype))
    return [(seen[: len(ids), : len(ids)], [angle[:, : len(ids)] for angle in angles]) for seen, angles in told]


def _same(plain: list, packed: list) -> bool:
    return len(plain) == len(packed) > 0 and all(
        torch.equal(seen, also) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(angles, others))
        for (seen, angles), (also, others) in zip(plain, packed)
    )

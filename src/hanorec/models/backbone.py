"""Load any Hugging Face image-text-to-text model and find out what its family does its own way.

In: the name of a checkpoint (a hub id, a folder or "tiny"). Out: a `Backbone`: model, processor, the few facts about
its chat format that prompts need, and the `Layout` of its tokens. What differs between model families is discovered by
asking processor and model, here and in `chat.py`, `discovery.py` and `encoding.py`; nothing goes by a family's name.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from hanorec import distributed
from hanorec.errors import DataError, what_the_machine_lacks
from hanorec.models import attention, chat, tiny
from hanorec.models.checkpoint import check_checkpoint
from hanorec.models.discovery import find_layout
from hanorec.models.layout import Layout

logging.disable_progress_bar()

TILES = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")  # processors' settings that cut images up
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What the hub's HTTP client raises, whichever client it is, and OSError.
NETWORK_ERRORS: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__


@dataclass
class Backbone:
    """A vision-language model and how to talk to it.

    prefix, separator, suffix: the token ids of the chat format before the user's text, between it and the answer, and
        after the answer.
    image_text: what a text says where an image stands.
    layout: how its tokens are placed.
    compute: the type in which forwards compute, whatever the weights are kept in.
    """

    model: Any  # a PreTrainedModel, or the PeftModel around one
    processor: Any
    prefix: list[int]
    separator: list[int]
    suffix: list[int]
    image_text: str
    layout: Layout = field(default_factory=Layout)
    compute: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def width(self) -> int:
        """Width of a token embedding."""
        return self.model.config.get_text_config().hidden_size

    @property
    def context(self) -> int | None:
        """Most tokens that the language model reads in a sequence; None where its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def pad(self) -> int:
        """The token id of padding."""
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def tokens(self, text: str) -> list[int]:
        """The token ids of a piece of the project's own text, without the special tokens that a whole text would get.
        A special token's name in the text becomes that token: data goes through `title_tokens`."""
        return self.processor.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def title_tokens(self, title: str) -> list[int]:
        """The token ids of a title, or of any other text that is data.

        Whatever the title says, `control_tokens` do not come out of it: a name of one is spelled out. Other titles have
        the ids that `tokens` gives them.
        """
        tokenizer = self.processor.tokenizer
        controls = self.control_tokens
        if tokenizer.unk_token is not None and tokenizer.unk_token not in title:
            controls = controls - {tokenizer.unk_token_id}  # stands for a character that the vocabulary lacks
        ids = self.tokens(title)
        if controls.isdisjoint(ids):
            return ids
        ids = tokenizer(title, add_special_tokens=False, split_special_tokens=True).input_ids
        if controls.isdisjoint(ids):
            return ids
        if len(title) == 1:
            return [id for id in ids if id not in controls]
        # Tokenizers split only what is declared special, and some not even that: cut the title until no name is whole.
        middle = len(title) // 2
        return self.title_tokens(title[:middle]) + self.title_tokens(title[middle:])

    def all_title_tokens(self, titles: Sequence[str]) -> list[list[int]]:
        """`title_tokens` of every title. A tokenizer takes most of its time for a call, not for a title."""
        tokenizer, controls = self.processor.tokenizer, self.control_tokens
        ids: list[list[int]] = []
        for start in range(0, len(titles), 1000):
            ids += tokenizer(list(titles[start : start + 1000]), add_special_tokens=False).input_ids
        return [own if controls.isdisjoint(own) else self.title_tokens(title) for own, title in zip(ids, titles)]

    @cached_property
    def control_tokens(self) -> frozenset[int]:
        """The ids that mean something other than text: special tokens, placeholders, and what the chat format adds to
        the vocabulary, white space aside."""
        tokenizer, processor = self.processor.tokenizer, self.processor
        format_ids = {*self.prefix, *self.separator, *self.suffix, *self.tokens(self.image_text)}
        placeholders = {value for name, value in vars(processor).items() if name.endswith("_token_id")}
        added = tokenizer.added_tokens_decoder.items()
        used = {id for id, token in added if token.special or (id in format_ids and token.content.strip())}
        return frozenset({*used, *placeholders, *tokenizer.all_special_ids, self.layout.image_token} - {None})


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type in which to compute: that of `DTYPES`, or for "auto" the one that the device is fast at.

    On CUDA that is bfloat16 where the device has it, else float16. Elsewhere it is float32: most CPUs emulate half
    precision, up to a hundred times slower.
    """
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
    commit: str | None = None,
) -> Backbone:
    """Load model and processor of a checkpoint: "tiny", a folder, or an id of the Hugging Face hub.

    dtype: "auto" or a name in `DTYPES`, see `choose_dtype`.
    views: "one" keeps the processor from cutting images into tiles.
    remote_code: whether Python files that come with a checkpoint may run.
    commit: which version of a checkpoint of the hub (None: the newest).
    Warns where responses cannot be packed behind their prompt, with the reason, and of weights that are not there.
    Errors: DataError where the checkpoint cannot be found, is damaged, asks for more than its weights hold, or is no
    model that reads images as tokens.
    """
    device = device or distributed.device()
    source = str(tiny.PRETRAINED) if name == "tiny" else name
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise DataError(f"{source}: no model checkpoint (no config.json)")
    if Path(source).is_dir():
        check_checkpoint(Path(source))
    else:
        check_hub(source)
    compute = choose_dtype(dtype, device)
    how: dict[str, Any] = {"trust_remote_code": remote_code} | ({"revision": commit} if commit else {})
    try:
        processor = AutoProcessor.from_pretrained(source, **how)
        how |= {"dtype": compute, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(source, **how)
        model, info = loaded
        if views == "one":
            for setting in TILES:
                if hasattr(processor.image_processor, setting):
                    setattr(processor.image_processor, setting, False)
        torch.set_float32_matmul_precision("high")  # TF32, where there is such a thing
        backbone = describe(model.to(device).eval(), processor, name)
    except DataError:
        raise
    except Exception as error:  # what strangers' files say can raise anything
        if what_the_machine_lacks(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:
            reason = "its config.json asks for other sizes than its weights have"
        raise DataError(f"backbone {name}: cannot be loaded as an image-text-to-text model: {reason}") from error
    backbone.compute = compute
    if backbone.layout.why_unpacked:
        warnings.warn(f"backbone {name}: one forward a response, because {backbone.layout.why_unpacked}", stacklevel=2)
    if missing := sorted(info["missing_keys"]):
        what = f"{len(missing)} tensors are not in its files and start at random, for instance {missing[0]}"
        warnings.warn(f"backbone {name}: {what}", stacklevel=2)
    return backbone


def hub_commit(name: str) -> str:
    """The commit of a checkpoint of the Hugging Face hub, once it has been loaded; "" where it is not known."""
    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent.name if isinstance(config, str) else ""


def check_hub(name: str) -> None:
    """Errors: DataError where a checkpoint of the hub is neither in the local cache nor to be had."""
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(f"backbone {name}: neither a folder nor a checkpoint that the Hugging Face hub has") from error
    except NETWORK_ERRORS as error:
        raise DataError(
            f"backbone {name}: no such folder, and the Hugging Face hub cannot be reached ({error}). Missing are "
            "config.json, model*.safetensors, tokenizer*, *processor*.json and chat_template.*; where there is a "
            f"network, `hf download {name}` fetches them. Bring their folder here, and give it as the backbone"
        ) from error


def describe(model: Any, processor: Any, name: str = "") -> Backbone:
    """A model and its processor as a `Backbone`.

    name: what error messages call the checkpoint.
    Errors: DataError where the model does not read images as tokens of its text.
    """
    if not hasattr(model, "get_image_features") or not hasattr(processor, "image_processor"):
        raise DataError(f"backbone {name}: {type(model).__name__} takes no images")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise DataError(f"backbone {name}: {type(model).__name__} does not read images as tokens in its text")
    try:
        image_text, chat_format = chat.image_text(processor), chat.chat_format(processor)
    except DataError as error:
        raise DataError(f"backbone {name}: {error}") from error
    layout = find_layout(model, processor, image_text)
    if not layout.why_unpacked:
        attention.use_blocks(model)
    return Backbone(model, processor, *chat_format, image_text, layout)


def language_model(model: Any) -> torch.nn.Module:
    """The language model inside, without its output head. model: a PreTrainedModel, or the PeftModel around one."""
    inner = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def last_mlp(model: Any) -> torch.nn.Module | None:
    """The MLP of the language model's last layer; None where it has another name or chooses experts (some of these give
    more than a tensor), and where the backward computes the layer again."""
    layers = getattr(language_model(model), "layers", None)
    if not layers or getattr(layers[-1], "gradient_checkpointing", False):
        return None
    mlp = getattr(layers[-1], "mlp", None)
    return None if hasattr(mlp, "experts") else mlp

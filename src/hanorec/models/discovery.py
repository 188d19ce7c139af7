"""Find out how a model family places its tokens and what they see.

In: a model and its processor. Out: the `Layout` with which a packed sequence is read as the model reads each response
behind a prompt of its own. The model decides by what it computes: a short text with two images is read the plain way
and packed under each visibility, and the one whose hidden states agree is taken. Where none does, responses are not
packed, and `Layout.why_unpacked` says why. Nothing goes by a family's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hanorec.models.inputs import packed_inputs, unpacked, unpacked_inputs
from hanorec.models.layout import FULL, SLIDING, VISIBILITIES, Layout
from hanorec.models.packing import Prompt, pack

SHORT_WINDOW = 5  # tokens that sliding layers see while a layout is sought: a short text does not show a window of 4096

# What models raise that cannot read a text without pixels, or do not take the masks of a packed sequence: PaliGemma 2
# looks up the shape of a dict of masks (AttributeError), layers that read one token after the other multiply a
# four-dimensional mask into their input (RuntimeError), and code of a checkpoint's own may check it (the others).
REFUSALS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)


def find_layout(model: Any, processor: Any, image_text: str) -> Layout:
    """The layout of a model's tokens.

    image_text: what a text says where an image stands.
    Returns: a layout whose packed sequences score as plain ones do, or one whose `why_unpacked` says why there is none.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    accepted = inspect.signature(model.forward).parameters
    layout = Layout(
        image_token=image_token(model, processor),
        kinds=frozenset(getattr(config, "layer_types", None) or [SLIDING if window else FULL]),
        window=window,
        types=tuple(name for name in ("token_type_ids", "mm_token_type_ids") if name in accepted),
        axes=_three_axes(model.base_model, image_token(model, processor)),
    )
    text = f"one {image_text} two {image_text} three"
    images = [[Image.new("RGB", (64, 96)), Image.new("RGB", (96, 64))]]
    processed = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    candidates = [v for v in VISIBILITIES if _types_agree(replace(layout, visibility=v), processed)]
    if not candidates:
        return replace(layout, why_unpacked="its processor writes token types of its own, so that scores may be wrong")
    layout = replace(layout, visibility=candidates[0])  # of all that have the same token types, as far as plain ones go
    if sequential := layout.kinds - {FULL, SLIDING}:
        return replace(
            layout, why_unpacked=f"its layers of kind {', '.join(sorted(sequential))} read token after token"
        )

    words = processor.tokenizer("one two three", add_special_tokens=False).input_ids[:3]
    try:
        with _shortened(model, config, layout) as short:
            first, differences = _compare(model, short, candidates, processed, [words, words[::-1]])
    except REFUSALS as error:
        reason = f"it does not take the masks of a packed sequence ({type(error).__name__}: {error})"
        return replace(layout, why_unpacked=reason)
    best = min(candidates, key=lambda visibility: differences[visibility])
    layout = replace(layout, visibility=best, first=first)
    if differences[best] < tolerance(model.dtype):
        return layout
    return replace(
        layout, why_unpacked=f"packed and plain sequences differ by {differences[best]:.0%} in its hidden states"
    )


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative difference of hidden states that counts as rounding: half of the digits of `dtype`.

    That is 3e-4 in float32, 0.03 in float16 and 0.09 in bfloat16. Measured with the families of `tools/families.py`,
    their weights as they are and scaled by 0.1, and the pretrained tiny backbone: under the right visibility the
    difference is 0 on a CPU (with all positions moved by one, which changes nothing but rounding, at most 4e-6 in
    float32 and 0.06 in bfloat16); under a wrong one, or with a window of 7 tokens instead of 5, it is at least 0.1.
    """
    return torch.finfo(dtype).eps ** 0.5


def image_token(model: Any, processor: Any) -> int:
    """The id of the placeholder for a token of an image."""
    for name in ("image_token_id", "image_token_index"):
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name)
    return processor.image_token_id


def _three_axes(inner: Any, placeholder: int):
    """`Layout.axes` of a model with multimodal rotary embeddings; None for others."""
    if not hasattr(inner, "get_rope_index"):
        return None

    def axes(ids: Sequence[int], grids: Tensor | None) -> np.ndarray:
        tokens = torch.tensor([ids])
        types = (tokens == placeholder).int()
        positions, _ = inner.get_rope_index(tokens, mm_token_type_ids=types, image_grid_thw=grids)
        return positions[:, 0].numpy()

    return axes


def _types_agree(layout: Layout, processed: Any) -> bool:
    """Whether the token types with which the plain way reads a prompt are those that the processor wrote for it."""
    prompt = Prompt(processed["input_ids"][0].tolist(), [])
    inputs = unpacked_inputs(unpacked([prompt], [[[0]]], pad=0), layout, torch.device("cpu"))
    return all(inputs[name].equal(processed[name]) for name in layout.types if name in processed)


@contextmanager
def _shortened(model: Any, config: Any, layout: Layout) -> Iterator[Layout]:
    """While open, the language model has as few of its first layers as show every kind, at least two, and its sliding
    layers see so few tokens back that it shows in a short text; yields the layout of that.

    The first layers are enough to tell visibilities apart. With all 30 of SmolVLM-256M a forward of 1,100 tokens, about
    the length of this text with images in tiles, takes 4.1 s on a core instead of 0.4 s.
    """
    decoder = model.get_decoder()
    layers, window = decoder.layers, layout.window
    order = list(getattr(config, "layer_types", None) or layout.kinds)
    decoder.layers = layers[: max(2, *(order.index(kind) + 1 for kind in layout.kinds))]
    if SLIDING in layout.kinds:
        config.sliding_window = SHORT_WINDOW
    try:
        yield replace(layout, window=SHORT_WINDOW if SLIDING in layout.kinds else window)
    finally:
        decoder.layers = layers
        if SLIDING in layout.kinds:
            config.sliding_window = window


def _compare(
    model: Any, layout: Layout, candidates: Sequence[str], processed: Any, responses: list[list[int]]
) -> tuple[int, dict[str, float]]:
    """The position of a sequence's first token, and for each candidate visibility the largest relative difference
    between the hidden states of a packed sequence and those of the plain ones, over the prompt and the responses.

    The prompt counts because a response alone hardly shows how an image's tokens see each other, and not at all where
    a sliding window has passed the image.
    """
    prompts, grids = [Prompt(processed["input_ids"][0].tolist(), [0, 1])], processed.get("image_grid_thw")
    length = len(prompts[0].ids)
    plain = unpacked(prompts, [responses], pad=0)
    inputs = unpacked_inputs(plain, layout, model.device)
    if grids is not None:
        inputs["image_grid_thw"] = grids.repeat(len(responses), 1).to(model.device)
    expected, first = _hidden_states(model, inputs)
    expected = torch.cat([expected[0, :length], expected[plain.row, plain.column]])

    differences = {}
    for visibility in candidates:
        candidate = replace(layout, visibility=visibility, first=first)
        packed = pack(prompts, [responses], pad=0, layout=candidate, grids=[grids])
        hidden, _ = _hidden_states(model, packed_inputs(packed, candidate, model.device, model.dtype))
        hidden = torch.cat([hidden[0, :length], hidden[packed.row, packed.column]])
        differences[visibility] = ((hidden - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
    return first, differences


@torch.no_grad()
def _hidden_states(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, int]:
    """What a forward gives to the output head, [B, L, width], and the first of the positions that it gives to its
    language model.

    Only that argument tells the first position (1 in PaliGemma): rotary embeddings depend on the distance of two
    positions, so that with all of them moved by one the hidden states differ by rounding alone.
    """
    hidden, first = [], [0]

    def read_hidden(_, arguments) -> tuple[Tensor]:
        hidden.append(arguments[0].float())
        return (arguments[0][:, :1],)  # logits of one position: nobody reads them

    def read_positions(_, arguments, named) -> None:
        if named.get("position_ids") is not None:
            first[0] = int(named["position_ids"].min())

    handles = [
        model.get_output_embeddings().register_forward_pre_hook(read_hidden),
        model.get_decoder().register_forward_pre_hook(read_positions, with_kwargs=True),
    ]
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden[0], first[0]

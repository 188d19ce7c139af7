"""Log-probabilities of many responses to one prompt, in one forward: the only way in which SFT, DPO and evaluation
get theirs.

In: a model, prompts (token ids, and which items' images fill their placeholders) and each prompt's responses. Out: one
summed log-probability a response. A prompt is packed with its responses and read once (`packing.py`); where a model
family does not allow that, each response is read with a prompt of its own. The output head sees only the positions
that predict a response's token, so there are no logits of the prompt or of padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hanorec import distributed
from hanorec.cache import cached, content_fingerprint
from hanorec.data.batching import batches
from hanorec.losses import packed_response_logps, perturbed_logits
from hanorec.models.backbone import Backbone, last_mlp
from hanorec.models.images import CatalogImages
from hanorec.models.inputs import packed_inputs, unpacked, unpacked_inputs
from hanorec.models.packing import Packed, Prompt, pack


def score(
    backbone: Backbone,
    images: CatalogImages,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    noise_std: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """log π(y|x) of every response y to its prompt x, summed over the response's tokens; differentiable.

    Args:
        backbone: the model π.
        prompts, responses: B prompts, and each one's responses as token ids; where a prompt has branches, those of one
            branch after those of another, as many for each.
        noise_std: σ_n of NoDO on the logits (`losses.perturbed_logits`); 0 adds none.
        generators: B sources of its ε, one a prompt, so that the noise does not depend on what else is in the batch.
    Returns: [N] in nats, one a response, in the order of `responses`. A value may be infinite or nan; the
        caller checks.
    Errors: ValueError for no prompts, an empty prompt, or a response without tokens.
    """
    device, layout = backbone.device, backbone.layout
    if layout.why_unpacked:
        packed = unpacked(prompts, responses, pad=backbone.pad)
        items = [item for prompt, answers in zip(prompts, responses) for item in prompt.image_items * len(answers)]
        inputs = unpacked_inputs(packed, layout, device)
        if (grids := images.grids(items)) is not None:
            inputs["image_grid_thw"] = grids.to(device)
    else:
        packed = pack_for(backbone, images, prompts, responses)
        items = [item for prompt in prompts for item in prompt.all_image_items]
        inputs = packed_inputs(packed, layout, device, backbone.compute)
    inputs |= images.outputs(backbone, items)
    logits = logits_at(backbone, packed.row, packed.column, **inputs, use_cache=False)  # [M, V], prompt by prompt
    if noise_std > 0:
        sizes = [sum(map(len, answers)) for answers in responses]
        sources = generators if generators is not None else [None] * len(sizes)
        rows = zip(logits.split(sizes), sources, strict=True)
        logits = torch.cat([perturbed_logits(own, noise_std, generator) for own, generator in rows])  # NoDO
    count = sum(map(len, responses))
    return packed_response_logps(logits, packed.labels.to(device), packed.response.to(device), count)


@torch.no_grad()
def score_all(
    backbone: Backbone,
    images: CatalogImages,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    weights: str,
    forward_tokens: int = 8192,
    cache: Path | None = None,
) -> Tensor:
    """log π_ref(y|x) of every response of a run, noise and dropout off, computed once and kept in the folder `cache`.

    Args:
        prompts, responses: as in `score`.
        weights: the fingerprint of the model's weights (`cache.weights_fingerprint`), under which they are kept.
        forward_tokens: tokens a forward takes at most.
    Returns: [N] in nats, as `score`; float32 on the CPU.
    """

    def make() -> dict[str, Tensor]:
        backbone.model.eval()
        asked = list(zip(prompts, responses))
        if backbone.layout.why_unpacked:  # each response has a prompt of its own, so no forward need hold them all
            asked = [(prompt, [answer]) for prompt, answers in asked for answer in answers]
        micro_batches = batches([prompt.length + sum(map(len, answers)) for prompt, answers in asked], forward_tokens)
        with tqdm(total=len(asked), desc="reference", unit="prompt", leave=False) as bar:

            def logps(batch: list[int]) -> Tensor:
                bar.update(distributed.world_size() * len(batch))
                return score(backbone, images, *zip(*(asked[i] for i in batch))).cpu()

            scored = torch.cat(distributed.map_over_ranks(logps, micro_batches))
        order = sum(micro_batches, [])
        rows = dict(zip(order, scored.split([len(asked[i][1]) for i in order])))
        return {"logps": torch.cat([rows[i] for i in range(len(asked))])}

    sequences = []
    for prompt, answers in zip(prompts, responses):
        ends = [branch.end for branch in prompt.branches]
        branches = [ids for branch in prompt.branches for ids in (branch.ids, branch.image_items)]
        sequences += [prompt.ids, prompt.image_items, ends, *branches, *answers]
    fingerprint = content_fingerprint(
        weights,
        images.fingerprint,
        np.array([len(ids) for ids in sequences], dtype=np.int32),
        np.array([id for ids in sequences for id in ids], dtype=np.int32),
    )
    return cached(cache, "reference", fingerprint, make, together=True)["logps"]


def logits_at(backbone: Backbone, row: Tensor, column: Tensor, **inputs) -> Tensor:
    """The model's logits at M positions alone, [M, V]: its output head never sees the others. The last layer's MLP does
    not either, since nothing looks at a position after it but the head."""
    positions = torch.stack([row, column]).unique(dim=1).to(backbone.device)
    row, column = row.to(backbone.device), column.to(backbone.device)
    head = backbone.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][row, column][None],))
    half = backbone.compute != torch.float32
    try:
        with (
            only_at(positions, last_mlp(backbone.model)),
            torch.autocast(backbone.device.type, backbone.compute) if half else nullcontext(),
        ):
            return backbone.model(**inputs).logits[0]
    finally:
        handle.remove()


@contextmanager
def only_at(positions: Tensor, module: torch.nn.Module | None) -> Iterator[None]:
    """Let a module that takes each position by itself, [B, L, width] -> [B, L, width], compute P of them and give zeros
    at the others. positions: [2, P], the sequence and the column of each."""
    shape = torch.Size()

    def select(_, inputs: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0][tuple(positions)][None],)

    def put_back(_, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.new_zeros(shape).index_put(tuple(positions), output[0])

    hooks = [module.register_forward_pre_hook(select), module.register_forward_hook(put_back)] if module else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def pack_for(
    backbone: Backbone, images: CatalogImages, prompts: Sequence[Prompt], responses, *, start: int | None = None
) -> Packed:
    """`packing.pack` with what the backbone's family needs."""
    grids = [images.grids(prompt.all_image_items) for prompt in prompts] if backbone.layout.axes else None
    return pack(prompts, responses, pad=backbone.pad, start=start, layout=backbone.layout, grids=grids)

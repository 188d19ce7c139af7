"""Models at their published sizes, without their weights: do parameters and placeholders count right, and does a packed
HaNoRec step run through?

    python -m experiments.speed.geometry

SmolVLM-256M takes one real step on random weights. Qwen2.5-VL-3B is on the meta device, where shapes are computed and
numbers are not. Their processors have the published settings and a small vocabulary, since the published ones' tables
are not needed. Writes geometry.md.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image

from experiments.speed.turns import RESULTS
from hanorec.evaluation.report import markdown
from hanorec.losses import hanorec_loss
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.inputs import packed_inputs
from hanorec.models.lora import add_lora
from hanorec.models.packing import Prompt
from hanorec.models.scoring import logits_at, pack_for, score
from tools.backbones import qwen2_5_vl_3b, smolvlm


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [
        row("SmolVLM-256M", 256_484_928, smolvlm("SmolVLM-256M")),
        row("Qwen2.5-VL-3B (meta)", 3_754_622_976, qwen2_5_vl_3b("meta")),
    ]
    header = [
        "backbone", "parameters", "published", "placeholders of a 512 × 512 image", "LoRA parameters, rank 8",
        "tokens of a packed pair", "a HaNoRec step",
    ]  # fmt: skip
    text = markdown(header, rows) + "\n"
    RESULTS.with_name("geometry.md").write_text(text, encoding="utf-8")
    print(text)


def row(name: str, published: int, backbone: Backbone) -> list[str]:
    """One line: counts, and a HaNoRec step over 5 images a prompt."""
    parameters = backbone.num_parameters
    pictures = [Image.new("RGB", (512, 512), (40 * n, 90, 120)) for n in range(5)]
    policy = add_lora(backbone)
    images = CatalogImages(policy, pictures, progress=False)
    ids = [backbone.tokens("a")[0]]
    for item in range(5):
        ids = ids + images.placeholders(item) + backbone.tokens("a b")
    prompt, pair = Prompt(ids, list(range(5))), [backbone.tokens("a b a"), backbone.tokens("b a b")]
    placeholders = images.placeholders(0).count(backbone.layout.image_token)
    trained = [p for p in policy.model.train().parameters() if p.requires_grad]
    real = backbone.device.type != "meta"
    if real:
        logps = score(policy, images, [prompt], [pair]).view(-1, 2)
        loss = hanorec_loss(*logps.T, *logps.detach().T, torch.ones(1)).loss
    else:  # no number there can be checked for being finite, so the step goes as far as the log-probabilities
        loss = meta_logps(policy, images, prompt, pair).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained)
    assert not real or abs(loss.item() - 0.6931) < 1e-3
    count = sum(p.numel() for p in trained)
    step = "ran, loss log 2" if real else "forward and backward ran, gradients of the right shapes"
    return [name, f"{parameters:,}", f"{published:,}", str(placeholders), f"{count:,}", str(len(ids) + 4), step]


def meta_logps(policy: Backbone, images: CatalogImages, prompt: Prompt, pair: list[list[int]]) -> torch.Tensor:
    """The vision tower's features, from random weights, have the shape of the placeholders; then the language model's
    log-probabilities without them: how many placeholders they fill is a number, which the meta device cannot count."""
    pixels = images.contents[0]
    with torch.no_grad():
        tower = type(policy.model.get_base_model().model.visual)(policy.model.config.vision_config).eval()
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    assert features.shape == (prompt.ids.count(policy.layout.image_token) // 5, policy.width), features.shape
    packed = pack_for(policy, images, [prompt], [pair])
    inputs = packed_inputs(packed, policy.layout, policy.device, torch.float32)
    logits = logits_at(policy, packed.row, packed.column, **inputs, use_cache=False)
    assert logits.shape == (len(packed.labels), policy.model.config.get_text_config().vocab_size)
    return logits.log_softmax(-1)[:, 0]


if __name__ == "__main__":
    main()

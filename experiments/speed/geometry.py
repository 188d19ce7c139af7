#!/usr/bin/env python3
"""Models at their published sizes, without their weights: do parameters and placeholders count right, and does a packed
HaNoRec step run through?

    python experiments/geometry.py

SmolVLM-256M takes one real step on random weights. Qwen2.5-VL-3B is on the meta device, where shapes are computed and
numbers are not. Their processors are built with the published settings around a small vocabulary, for which the
published ones' tables are not needed. Writes experiments/results/geometry.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from hanorec.evaluation.report import markdown
from hanorec.losses import hanorec_loss
from hanorec.models import tiny
from hanorec.models.backbone import Backbone, describe
from hanorec.models.images import CatalogImages
from hanorec.models.inputs import packed_inputs
from hanorec.models.lora import add_lora
from hanorec.models.packing import Prompt
from hanorec.models.scoring import logits_at, pack_for, score

HERE = Path(__file__).resolve().parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [
        row("SmolVLM-256M", 256_484_928, smolvlm_256m()),
        row("Qwen2.5-VL-3B (meta)", 3_754_622_976, qwen2_5_vl_3b("meta")),
    ]
    header = [
        "backbone", "parameters", "published", "placeholders of a 512 × 512 image", "LoRA parameters, rank 8",
        "tokens of a packed pair", "a HaNoRec step",
    ]  # fmt: skip
    text = markdown(header, rows)
    (HERE / "results" / "geometry.md").write_text(text + "\n")
    print(text)


def smolvlm_256m(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """SmolVLM-256M with random weights."""
    tokenizer = tiny.build_tokenizer(["a b"], 400)
    image = {"longest_edge": 512}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size=image, max_image_size=image, do_image_splitting=False), tokenizer,
        SmolVLMVideoProcessor(), image_seq_len=64, chat_template=tiny.CHAT_TEMPLATE,
    )  # fmt: skip
    text = dict(
        model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49280, max_position_embeddings=8192, rope_theta=100_000.0,
    )  # fmt: skip
    vision = dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512,
        patch_size=16,
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=4, tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = describe(made(hf.SmolVLMForConditionalGeneration, config, device, dtype), processor)
    backbone.compute = dtype
    return backbone


def qwen2_5_vl_3b(device: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """Qwen2.5-VL-3B with random weights, or on the meta device with none."""
    tokenizer = tiny.build_tokenizer(["a b"], 400)
    special = ["<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    id = tokenizer.convert_tokens_to_ids
    text = dict(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        vocab_size=151_936, max_window_layers=70, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1_000_000.0, mrope_section=[16, 24, 24]),
    )  # fmt: skip
    vision = dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048, patch_size=14,
        spatial_merge_size=2, window_size=112, fullatt_block_indexes=[7, 15, 23, 31], tokens_per_second=2,
    )  # fmt: skip
    tokens = dict(
        image_token_id=id("<|image_pad|>"), video_token_id=id("<|video_pad|>"),
        vision_start_token_id=id("<|vision_start|>"), vision_end_token_id=id("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    # How tokens are laid out does not depend on sizes, and the meta device could not tell: a small model is asked.
    small_text = text | dict(hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    small_vision = vision | dict(depth=1, out_hidden_size=256)
    small = hf.Qwen2_5_VLConfig(text_config=small_text, vision_config=small_vision, **tokens)
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    images = hf.Qwen2VLImageProcessor(
        patch_size=14, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
    )
    processor = hf.Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHATML)
    layout = describe(hf.Qwen2_5_VLForConditionalGeneration(small).eval(), processor).layout
    model = made(hf.Qwen2_5_VLForConditionalGeneration, config, device, dtype)
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    return Backbone(model, processor, [], [], [], shown, layout, compute=dtype)


def made(kind: type, config: hf.PretrainedConfig, device: str, dtype: torch.dtype) -> hf.PreTrainedModel:
    """A model of random weights, made where it is to be."""
    with torch.device(device):
        return kind._from_config(config, dtype=dtype).eval()


def row(name: str, published: int, backbone: Backbone) -> list[str]:
    """One line: counts, and a HaNoRec step over 5 images a prompt."""
    parameters = backbone.num_parameters
    pictures = [Image.new("RGB", (512, 512), (40 * n, 90, 120)) for n in range(5)]
    policy = add_lora(backbone)
    images = CatalogImages(policy, pictures, progress=False)
    ids = [backbone.tokens("a")[0]]
    for item in range(5):
        ids = ids + images.placeholders(item) + backbone.tokens("a b")
    pair = [backbone.tokens("a b a"), backbone.tokens("b a b")]
    placeholders = images.placeholders(0).count(backbone.layout.image_token)
    trained = [p for p in policy.model.train().parameters() if p.requires_grad]
    real = backbone.device.type != "meta"
    if real:
        logps = score(policy, images, [Prompt(ids, list(range(5)))], [pair]).view(-1, 2)
        loss = hanorec_loss(*logps.T, *logps.detach().T, torch.ones(1)).loss
    else:  # no number there can be checked for being finite, so the step goes as far as the log-probabilities
        loss = meta_logps(policy, images, ids, pair).sum()
    loss.backward()
    norms = all(p.grad is not None and p.grad.shape == p.shape for p in trained)
    assert norms and (not real or abs(loss.item() - 0.6931) < 1e-3)
    count = sum(p.numel() for p in trained)
    step = "ran, loss log 2" if real else "forward and backward ran, gradients of the right shapes"
    return [name, f"{parameters:,}", f"{published:,}", str(placeholders), f"{count:,}", str(len(ids) + 4), step]


def meta_logps(policy: Backbone, images: CatalogImages, ids: list[int], pair) -> torch.Tensor:
    """The vision tower's features, from random weights, have the shape of the placeholders; then the language model's
    log-probabilities without them: how many placeholders they fill is a number, which the meta device cannot count."""
    pixels = images.contents[0]
    with torch.no_grad():
        tower = type(policy.model.get_base_model().model.visual)(policy.model.config.vision_config).eval()
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    assert features.shape == (ids.count(policy.layout.image_token) // 5, policy.width), features.shape
    packed = pack_for(policy, images, [Prompt(ids, list(range(5)))], [pair])
    inputs = packed_inputs(packed, policy.layout, policy.device, torch.float32)
    logits = logits_at(policy, packed.row, packed.column, **inputs, use_cache=False)
    assert logits.shape == (len(packed.labels), policy.model.config.get_text_config().vocab_size)
    return logits.log_softmax(-1)[:, 0]


if __name__ == "__main__":
    main()

"""Backbones of known sizes with random weights, for measurements that do not depend on what a model has learned.

In: the name of a size. Out: a SmolVLM of it in memory or as a Hugging Face checkpoint, Qwen2.5-VL-3B in memory, and a
toy catalogue whose images have as many pixels as a size asks for.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from PIL import Image
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from hanorec.data.toy import NAMES, THEMES, World, make_toy
from hanorec.models import tiny
from hanorec.models.backbone import Backbone, describe

SMOLLM2_135M = dict(
    model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49280, max_position_embeddings=8192, rope_theta=100_000.0,
)  # fmt: skip
SIGLIP_BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SMALL_VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6)
SIZES = {  # language model, vision tower, pixels a side, and by how much the connector folds a side of patches
    "11.6M": (
        SMOLLM2_135M | dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3),
        dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4), 64, 2,
    ),
    "135M": (SMOLLM2_135M, SMALL_VISION, 64, 2),
    "SmolVLM-256M": (SMOLLM2_135M, SIGLIP_BASE, 512, 4),  # as it is published
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)


def smolvlm(size: str, device: str = "cpu", dtype: torch.dtype = torch.float32, tokenizer=None) -> Backbone:
    """A SmolVLM of one of the `SIZES`. tokenizer: a small vocabulary, if not given."""
    language, vision, pixels, fold = SIZES[size]
    tokenizer = tokenizer or tiny.build_tokenizer(["a b"], 400)
    image = {"longest_edge": pixels}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size=image, max_image_size=image, do_image_splitting=False), tokenizer,
        SmolVLMVideoProcessor(), image_seq_len=(pixels // 16 // fold) ** 2, chat_template=tiny.CHAT_TEMPLATE,
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        text_config=language | dict(pad_token_id=tokenizer.pad_token_id), pad_token_id=tokenizer.pad_token_id,
        vision_config=vision | dict(image_size=pixels, patch_size=16), scale_factor=fold,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=size != "SmolVLM-256M",
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = describe(_random(hf.SmolVLMForConditionalGeneration, config, device, dtype), processor)
    backbone.compute = dtype
    return backbone


def checkpoint(size: str, folder: Path, pretrained: str | None = None) -> str:
    """What `--backbone` takes for a size: a checkpoint made in `folder` if it is not there, or "tiny".

    pretrained: a checkpoint that is the 135M one, and whose tokenizer the others take.
    """
    if size == "tiny" or (size == "135M" and pretrained):
        return pretrained if pretrained and size == "135M" else size
    if not (folder / "model.safetensors").exists():
        words = [f"{word} {given}" for theme in THEMES.values() for word in theme for given in NAMES]
        own = hf.AutoTokenizer.from_pretrained(pretrained) if pretrained else tiny.build_tokenizer(words)
        backbone = smolvlm(size, tokenizer=own)
        backbone.processor.save_pretrained(folder)
        backbone.model.save_pretrained(folder)
    return str(folder)


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
    model = _random(hf.Qwen2_5_VLForConditionalGeneration, config, device, dtype)
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    return Backbone(model, processor, [], [], [], shown, layout, compute=dtype)


def _random(kind: type, config: hf.PretrainedConfig, device: str, dtype: torch.dtype) -> hf.PreTrainedModel:
    """A model of random weights, made where it is to be."""
    with torch.device(device):
        return kind._from_config(config, dtype=dtype).eval()


def catalogue(folder: Path, size: str) -> Path:
    """A small toy catalogue whose images are JPEG files of as many pixels as a size asks for."""
    pixels = SIZES[size][2] if size in SIZES else tiny.IMAGE_SIZE
    if not (folder / "test.tsv").exists():
        make_toy(folder, World(warm_per_cell=10, cold_per_cell=2, users=400, cold_users=40))
        for path in sorted((folder / "images").iterdir()):
            Image.open(path).convert("RGB").resize((pixels, pixels)).save(path.with_suffix(".jpg"), quality=90)
            if path.suffix != ".jpg":
                path.unlink()
    return folder

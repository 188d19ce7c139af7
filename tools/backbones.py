"""What the benchmark runs on: checkpoints of known geometries, and a catalogue whose images have the size they ask for.

In: a name and a folder. Out: a Hugging Face checkpoint with random weights (speed does not depend on their values) or
a dataset in the layout of docs/data.md, the toy catalogue with its drawings scaled.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from hanorec.data.toy import NAMES, THEMES, World, make_toy
from hanorec.models import tiny

SMOLLM2_135M = dict(
    model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49280,
)  # fmt: skip
SIGLIP_BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SMALL_VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6)
GEOMETRIES = {  # language model, vision tower, pixels a side, and by how much the connector folds a side of patches
    "11.6M": (
        SMOLLM2_135M | dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3),
        dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4), 64, 2,
    ),
    "135M": (SMOLLM2_135M, SMALL_VISION, 64, 2),
    "SmolVLM-256M": (SMOLLM2_135M, SIGLIP_BASE, 512, 4),
}  # fmt: skip


def build(name: str, folder: Path, pretrained: str | None = None) -> str:
    """The checkpoint of a geometry, made in `folder` if it is not there; "tiny" is the embedded one.

    pretrained: a checkpoint that is the 135M one, and whose tokenizer the others take.
    """
    if name == "tiny" or (name == "135M" and pretrained):
        return pretrained if name == "135M" else name
    if not (folder / "model.safetensors").exists():
        language, vision, pixels, fold = GEOMETRIES[name]
        words = [f"{word} {given}" for theme in THEMES.values() for word in theme for given in NAMES]
        tokenizer = AutoTokenizer.from_pretrained(pretrained) if pretrained else tiny.build_tokenizer(words)
        image = {"longest_edge": pixels}
        processor = SmolVLMProcessor(
            SmolVLMImageProcessor(size=image, max_image_size=image, do_image_splitting=False), tokenizer,
            SmolVLMVideoProcessor(), image_seq_len=(pixels // 16 // fold) ** 2, chat_template=tiny.CHAT_TEMPLATE,
        )  # fmt: skip
        config = SmolVLMConfig(
            text_config=language | dict(max_position_embeddings=8192, pad_token_id=tokenizer.pad_token_id),
            vision_config=vision | dict(image_size=pixels, patch_size=16), scale_factor=fold,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        processor.save_pretrained(folder)
        SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def pixels_of(name: str) -> int:
    return GEOMETRIES[name][2] if name in GEOMETRIES else tiny.IMAGE_SIZE


def catalogue(folder: Path, pixels: int) -> Path:
    """A small toy catalogue whose images are JPEG files with `pixels` a side."""
    if not (folder / "test.tsv").exists():
        make_toy(folder, World(warm_per_cell=10, cold_per_cell=2, users=400, cold_users=40))
        for path in sorted((folder / "images").iterdir()):
            Image.open(path).convert("RGB").resize((pixels, pixels)).save(path.with_suffix(".jpg"), quality=90)
            if path.suffix != ".jpg":
                path.unlink()
    return folder

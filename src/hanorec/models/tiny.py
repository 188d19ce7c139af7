"""The default backbone: the SmolVLM architecture at 2.8 million parameters, in Hugging Face format.

In: texts to learn a vocabulary from. Out: a folder that `AutoModelForImageTextToText` and
`AutoProcessor` load like any checkpoint of the hub. `PRETRAINED` is the folder that ships with the package:
this architecture, pretrained on drawn and captioned images by `tools/pretrain_tiny.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

PRETRAINED = Path(__file__).parent / "tiny_backbone"

IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR = 64, 16, 2  # 4 × 4 patches, shuffled into 2 × 2 tokens an image
PAD, START, END = "<|pad|>", "<|im_start|>", "<end_of_utterance>"
SPECIAL_TOKENS = [PAD, START, END, "<fake_token_around_image>", "<image>", "<global-img>"]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocabulary_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from `texts`; every string can be written in its bytes. Digits stand
    alone, so that a year never needs a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[3:],
        model_max_length=2048,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> SmolVLMProcessor:
    """The processor of the SmolVLM family, for one 64 × 64 view an image."""
    image_processor = SmolVLMImageProcessor(
        size={"longest_edge": IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=False
    )
    return SmolVLMProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=(IMAGE_SIZE // PATCH_SIZE // SCALE_FACTOR) ** 2,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> SmolVLMForConditionalGeneration:
    """The model with random weights (seed torch first): 4 language layers of width 192, 3 vision layers of 128."""
    special: dict[str, Any] = dict(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = SmolVLMConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            initializer_range=0.04,
            **special,
        ),
        vision_config=dict(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.get_vocab()["<image>"],
        tie_word_embeddings=True,
        **special,
    )
    return SmolVLMForConditionalGeneration(config)


def save_tiny(folder: str | Path, texts: Iterable[str]) -> Path:
    """Build vocabulary, processor and random weights and save them in `folder` in Hugging Face format."""
    folder = Path(folder)
    tokenizer = build_tokenizer(texts)
    build_processor(tokenizer).save_pretrained(folder)
    build_model(tokenizer).save_pretrained(folder)
    return folder

"""Backbones of other families, from small random checkpoints in hub format: packed, plain and ready features agree."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from hanorec import tiny
from hanorec.backbone import load_backbone
from hanorec.catalog import DataError
from hanorec.dataset import split_examples
from hanorec.prompts import Prompts
from hanorec.ranking import ask_model
from hanorec.scoring import Prompt, score
from hanorec.session import encoder_for

LANGUAGE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
VISION = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)


def idefics3(tokenizer):
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE, pad_token_id=tokenizer.pad_token_id)
    config = Idefics3Config(text_config=text.to_dict(), vision_config=VISION, image_token_id=image, scale_factor=2,
                            pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    # 64 × 64 images in views of 32 × 32: four tiles and the whole, as large models see large images
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tiny.CHAT_TEMPLATE)
    return Idefics3ForConditionalGeneration(config), processor


def llava(tokenizer):
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE, pad_token_id=tokenizer.pad_token_id)
    config = LlavaConfig(
        text_config=text, vision_config=CLIPVisionConfig(**VISION, projection_dim=16), image_token_id=image
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tiny.CHAT_TEMPLATE, image_token="<image>",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


@pytest.fixture(params=[idefics3, llava], ids=lambda build: build.__name__)
def checkpoint(request, tmp_path):
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer(["Comet of the", "Tide of the"], 400)
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*tiny.SPECIAL_TOKENS[3:], *rows]})
    model, processor = request.param(tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_packed_equals_the_processor_and_model_used_plainly(checkpoint, data):
    backbone = load_backbone(str(checkpoint), dtype="float32", device=torch.device("cpu"))
    encoder = encoder_for(backbone, data.catalog)
    words = backbone.tokens
    prompt = [*words("Comet "), *encoder.block(0), *words(" then "), *encoder.block(5), *words("?")]
    responses = [words("Tide of"), words("Comet"), words("the other one")]
    images = [Image.open(data.catalog.images[i]) for i in (0, 5)]
    text = f"Comet {backbone.image_text} then {backbone.image_text}?"
    inputs = backbone.processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
    assert sorted(inputs["input_ids"][0].tolist()) == sorted(prompt)  # the same placeholders as the processor's own

    with torch.no_grad():
        packed = score(encoder, [Prompt(prompt, [0, 5])], [responses])
        pixels = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", "token_type_ids")}
        plain = []
        for response in responses:
            logits = backbone.model(input_ids=torch.tensor([prompt + response]), use_cache=False, **pixels).logits[0]
            logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            plain.append(logps[torch.arange(len(response)), response].sum())
        torch.testing.assert_close(packed, torch.stack(plain), atol=1e-4, rtol=0)
        once = encoder_for(backbone, data.catalog, frozen=True)
        torch.testing.assert_close(score(once, [Prompt(prompt, [0, 5])], [responses]), packed, atol=1e-5, rtol=0)


def test_another_family_ranks_candidates(checkpoint, data):
    encoder = encoder_for(load_backbone(str(checkpoint), dtype="float32"), data.catalog)
    examples = split_examples(data, "test", "next", candidates=5, users=3)
    answers = ask_model(Prompts(encoder, data.catalog.titles, "next"), examples)
    assert answers.scores.shape == (3, 5) and (answers.scores < 0).all()


def test_a_text_only_model_is_an_error(tmp_path):
    tokenizer = tiny.build_tokenizer(["a b"], 300)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="image-text-to-text|takes no images"):
        load_backbone(str(tmp_path))

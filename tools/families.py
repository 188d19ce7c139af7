"""Small random checkpoints of many model families, in hub format, each with the family's own processor class, its
special tokens and a chat template of its form, and the family's own forward to compare with. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from hanorec.data.toy import THEMES
from hanorec.models import tiny

TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    initializer_range=0.3,
)  # fmt: skip
VISION = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + PARTS + "<|im_end|>\n{% endfor %}"


def tokenizer_with(*special: str, **named: str):
    """A small vocabulary with these special tokens; `named` ones are attributes of the tokenizer too."""
    tokenizer = tiny.build_tokenizer([f"{word} of the" for words in THEMES.values() for word in words], 500)
    tokenizer.add_special_tokens({"extra_special_tokens": [*special, *named.values()]})
    for name, token in named.items():
        tokenizer.add_special_tokens({name: token}) if name.endswith("s_token") else None
    tokenizer._set_model_specific_special_tokens({k: v for k, v in named.items() if not k.endswith("s_token")})
    return tokenizer


def idefics3():
    return _idefics(
        hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, hf.Idefics3ImageProcessor, hf.Idefics3Processor
    )


def smolvlm():
    return _idefics(
        hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, hf.SmolVLMImageProcessor, hf.SmolVLMProcessor,
        video_processor=SmolVLMVideoProcessor(),
    )  # fmt: skip


def _idefics(config, model, images, processor, **more):
    tokenizer = tokenizer_with(
        *tiny.SPECIAL_TOKENS[3:], *(f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3))
    )
    text = hf.LlamaConfig(vocab_size=len(tokenizer), **TEXT, pad_token_id=tokenizer.pad_token_id)
    model_config = config(
        text_config=text.to_dict(), vision_config=VISION, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    # 64 × 64 images in views of 32 × 32: four tiles and the whole, as large models see large images
    size = images(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return model(model_config), processor(size, tokenizer, image_seq_len=4, chat_template=tiny.CHAT_TEMPLATE, **more)


def llava():
    tokenizer = tokenizer_with("<image>")
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(vocab_size=len(tokenizer), **TEXT, pad_token_id=tokenizer.pad_token_id),
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        "{% for m in messages %}{{ m['role'] | upper }}: " + PARTS.replace("IMAGE", "<image>\n") + " {% endfor %}"
    )
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template, image_token="<image>",
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def llava_onevision():
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>", "<image>", "<video>")
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
    )
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]]
    )
    processor = hf.LlavaOnevisionProcessor(
        images, tokenizer, LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen(config, model, processor, video, text: dict, vision: dict, patch: int):
    tokenizer = tokenizer_with(
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    token_id = tokenizer.convert_tokens_to_ids
    rope = dict(rope_type="default", rope_theta=10_000.0, mrope_section=[2, 3, 3])
    model_config = config(
        text_config=TEXT | dict(vocab_size=len(tokenizer), rope_parameters=rope) | text, vision_config=vision,
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessor(
        patch_size=patch, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return model(model_config), processor(images, tokenizer, video, chat_template=template)


def qwen2_vl():
    vision = dict(depth=2, embed_dim=24, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=8)
    return _qwen(
        hf.Qwen2VLConfig,
        hf.Qwen2VLForConditionalGeneration,
        hf.Qwen2VLProcessor,
        Qwen2VLVideoProcessor(),
        {},
        vision,
        8,
    )


def qwen2_5_vl():
    vision = dict(
        depth=2, hidden_size=24, out_hidden_size=32, intermediate_size=32, num_heads=2, patch_size=8, window_size=32,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    sliding = dict(use_sliding_window=True, sliding_window=64, max_window_layers=1)  # the second layer slides
    return _qwen(
        hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor, Qwen2VLVideoProcessor(),
        sliding, vision, 8,
    )  # fmt: skip


QWEN3_VISION = dict(
    depth=3, hidden_size=24, out_hidden_size=32, intermediate_size=32, num_heads=2, patch_size=8,
    num_position_embeddings=64,
)  # fmt: skip


def qwen3_vl():
    return _qwen(
        hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor, Qwen3VLVideoProcessor(),
        dict(head_dim=16), QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1]), 8,
    )  # fmt: skip


def qwen3_5():
    text = dict(
        head_dim=16, num_hidden_layers=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=2,
    )  # fmt: skip
    rope = dict(rope_type="default", rope_theta=10_000.0, mrope_section=[1, 1, 0], partial_rotary_factor=0.25)
    return _qwen(
        hf.Qwen3_5Config, hf.Qwen3_5ForConditionalGeneration, hf.Qwen3VLProcessor, Qwen3VLVideoProcessor(),
        text | dict(rope_parameters=rope), QWEN3_VISION, 8,
    )  # fmt: skip


def internvl():
    tokenizer = tokenizer_with(
        "<|im_start|>", "<|im_end|>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(vocab_size=len(tokenizer), **TEXT),
        vision_config=VISION | dict(image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = hf.InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3():
    tokenizer = tokenizer_with(
        "<start_of_turn>", "<end_of_turn>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )  # fmt: skip
    token_id = tokenizer.convert_tokens_to_ids
    text = TEXT | dict(num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=16, vocab_size=len(tokenizer))
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = hf.Gemma3Config(
        text_config=text | dict(sliding_window=24, layer_types=layers, pad_token_id=tokenizer.pad_token_id),
        vision_config=VISION | dict(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4, image_token_index=token_id("<image_soft_token>"),
        boi_token_index=token_id("<start_of_image>"), eoi_token_index=token_id("<end_of_image>"),
    )  # fmt: skip
    template = (
        tiny.START + "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        + PARTS.replace("IMAGE", "<start_of_image>") + "<end_of_turn>\n{% endfor %}"
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32}, do_pan_and_scan=False)
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zero when it is new
    return model, hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)


def paligemma():
    return _paligemma(hf.GemmaConfig, dict(head_dim=16))


def paligemma2():
    return _paligemma(hf.Gemma2Config, dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=24))


def _paligemma(text, more: dict):
    tokenizer = tokenizer_with(image_token="<image>")
    config = hf.PaliGemmaConfig(
        text_config=text(vocab_size=len(tokenizer), **TEXT, **more, pad_token_id=tokenizer.pad_token_id),
        vision_config=VISION | dict(model_type="siglip_vision_model", vision_use_head=False, projection_dim=32),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=32, hidden_size=32,
    )  # fmt: skip
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, tokenizer)


PACKED = [
    smolvlm, idefics3, llava, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, gemma3, paligemma,
]  # fmt: skip
PLAIN = [paligemma2, qwen3_5]  # these fall back: see `Layout.why_unpacked`


def asked_plainly(backbone, pictures, text: str) -> tuple[list[int], dict]:
    """Prompt ids and inputs as the family's processor makes them of a text in which IMAGE stands for each picture."""
    text = text.replace("IMAGE", backbone.image_text)
    inputs = backbone.processor(text=[text], images=[list(pictures)], add_special_tokens=False, return_tensors="pt")
    ids = inputs.pop("input_ids")[0].tolist()
    return ids, {k: v.to(backbone.device) for k, v in inputs.items() if k not in ("attention_mask", "labels")}


def plain_logps(backbone, ids: list[int], inputs: dict, responses) -> torch.Tensor:
    """log π(y|x) by the family's own forward, each response in a sequence with the prompt and its pixels,
    [responses]."""
    logps, half = [], backbone.compute != torch.float32
    for response in responses:
        whole, types = torch.tensor([ids + response], device=backbone.device), {}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:  # PaliGemma: the answer is causal, which its processor writes as type 1
                causal = int(type(backbone.processor).__name__.startswith("PaliGemma"))
                after = inputs[name].new_full((1, len(response)), causal)
                types[name] = torch.cat([inputs[name], after], dim=1)
        with torch.autocast(backbone.device.type, backbone.compute, enabled=half):
            logits = backbone.model(
                **(inputs | types), input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False
            ).logits
        of_response = logits[0].float().log_softmax(-1)[len(ids) - 1 : -1]
        logps.append(of_response[torch.arange(len(response)), response].sum())
    return torch.stack(logps)


def save(build, folder: Path) -> Path:
    torch.manual_seed(0)
    model, processor = build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

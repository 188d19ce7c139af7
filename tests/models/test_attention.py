"""Attention in blocks equals attention over the whole mask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hanorec.models import attention
from hanorec.models.inputs import additive
from hanorec.models.layout import Layout
from hanorec.models.packing import Branch, Prompt, pack

GROUPED = SimpleNamespace(num_key_value_groups=2, is_causal=True)  # four heads share two of keys and values


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 5)
    monkeypatch.setattr(attention, "LEAST", 0)


def test_blocks_of_queries_see_what_the_whole_mask_shows_them():
    """Two trunks of unequal lengths with branches, so that there is padding, too; values and gradients."""
    prompts = [Prompt(list(range(9)), [], (Branch(3, [1, 2]), Branch(9, [4]))), Prompt(list(range(4)), [])]
    packed = pack(prompts, [[[1, 2, 3], [4, 5]], [[6, 7, 8]]], pad=0)
    mask = additive(packed.attention_mask, torch.float32)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, heads, mask.shape[-1], 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]

    def output_and_gradients(attend):
        output, _ = attend(GROUPED, *states, mask, scaling=0.3, dropout=0.0)
        return output, *torch.autograd.grad((output * output.detach().cos()).sum(), states)

    for blocks, whole in zip(output_and_gradients(attention.attend), output_and_gradients(sdpa_attention_forward)):
        torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=0)


def test_keys_that_no_query_of_a_block_sees_are_not_read():
    """A key of infinite length would make every score that it takes part in not finite."""
    prompt = Prompt([0] * 10, [], (Branch(5, [1] * 5), Branch(10, [2] * 5)))
    mask = additive(pack([prompt], [[[3], [3]]], pad=0).attention_mask, torch.float32)  # columns 10-14 and 15-19
    query, key, value = (torch.ones(1, 4, 20, 8) for _ in range(3))
    key[:, :, 10:15] = torch.inf
    output, _ = attention.attend(SimpleNamespace(is_causal=True), query, key, value, mask, scaling=0.3, dropout=0.0)
    finite = output.isfinite().all(dim=-1)[0].all(dim=-1)
    assert finite[:10].all() and finite[15:].all() and not finite[10:15].any()


def test_a_packed_backbone_attends_in_blocks_and_is_saved_without_a_trace(backbone, tmp_path):
    assert backbone.layout == Layout(image_token=backbone.layout.image_token)
    assert backbone.model.config.get_text_config()._attn_implementation == attention.NAME
    backbone.model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()

"""Packed scoring equals the plain forward: one prompt with one response in a sequence of its own."""

from __future__ import annotations

import pytest
import torch

from hanorec.backbone import add_lora
from hanorec.scoring import IGNORE, Prompt, pack, score


def plain_logp(encoder, prompt: Prompt, response: list[int]) -> torch.Tensor:
    """log π(response | prompt) as the model's own forward gives it: pixels in, causal mask, no packing."""
    backbone = encoder.backbone
    pixels = [encoder.pixels[item] for item in prompt.images]
    images = {name: torch.cat([p[name] for p in pixels], dim=1) for name in pixels[0]} if pixels else {}
    ids = torch.tensor([prompt.ids + response])
    logits = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **images).logits[0]
    logps = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
    return logps[torch.arange(len(response)), response].sum()


@pytest.fixture
def batch(encoder):
    """Three prompts of 2, 1 and 0 images and unequal lengths, with 1, 3 and 2 responses of unequal lengths."""
    word = encoder.backbone.tokens
    prompts = [
        Prompt(word("Comet") + encoder.block(0) + word(" and ") + encoder.block(7) + word("?"), [0, 7]),
        Prompt(word("Tide of ") + encoder.block(3), [3]),
        Prompt(word("no image here, but some words"), []),
    ]
    responses = [
        [word("Orbit Bara")],
        [word("a"), word("Comet Dara, longer"), word("Tide")],
        [word("Yes"), word("No no")],
    ]
    return prompts, responses


def test_packed_log_probabilities_equal_the_plain_forward(encoder, batch):
    prompts, responses = batch
    packed = score(encoder, prompts, responses)
    plain = torch.stack([plain_logp(encoder, p, r) for p, answers in zip(prompts, responses) for r in answers])
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)


def test_packed_lora_gradients_equal_the_plain_forward(encoder, batch):
    prompts, responses = batch
    torch.manual_seed(1)
    model = encoder.backbone.model = add_lora(encoder.backbone.model, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)  # zero in a fresh adapter, where half the gradients vanish
    weights = torch.linspace(-1, 1, 6)  # not all alike, as in a preference loss

    def gradients(logps: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        (logps * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    packed = gradients(score(encoder, prompts, responses))
    plain = gradients(
        torch.stack([plain_logp(encoder, p, r) for p, answers in zip(prompts, responses) for r in answers])
    )
    assert plain.norm() > 0
    assert (packed - plain).norm() / plain.norm() < 1e-3


def test_features_computed_once_equal_features_computed_live(encoder, batch):
    prompts, responses = batch
    with torch.no_grad():
        live = score(encoder, prompts, responses)
        encoder.freeze()
        torch.testing.assert_close(score(encoder, prompts, responses), live, atol=1e-5, rtol=0)


def test_a_response_does_not_see_its_siblings(encoder, batch):
    prompts, responses = batch
    together = score(encoder, prompts[1:2], [responses[1]])
    reversed_ = score(encoder, prompts[1:2], [responses[1][::-1]])
    torch.testing.assert_close(together, reversed_.flip(0), atol=1e-5, rtol=0)


def test_the_layout_of_a_packed_batch():
    """Worked by hand: prompts of 2 and 1 tokens end at column 1, so responses begin at column 2."""
    packed = pack([Prompt([5, 6], []), Prompt([7], [])], [[[1, 2], [3]], [[4]]], pad=0)
    assert packed.input_ids.tolist() == [[5, 6, 1, 2, 3], [0, 7, 4, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 0, 1, 0, 0]]
    assert packed.row.tolist() == [0, 0, 1]
    assert packed.labels.tolist() == [[1, 2], [3, IGNORE], [4, IGNORE]]
    assert packed.keep == 4  # columns 1 to 4: the prompts' last and the responses
    assert packed.column[0].tolist() == [0, 1]  # the prompt predicts 1, token 1 (kept column 1) predicts 2
    assert packed.column[1, 0] == 0 and packed.column[2, 0] == 0
    seen = packed.attention_mask[0, 0]
    assert seen[4].tolist() == [True, True, False, False, True]  # the second response: prompt and itself
    assert seen[3].tolist() == [True, True, True, True, False]
    assert packed.attention_mask[1, 0, 2].tolist() == [False, True, True, False, False]  # no padding


def test_noise_on_logits_is_reproducible_and_off_by_default(encoder, batch):
    prompts, responses = batch
    with torch.no_grad():
        clean, again = score(encoder, prompts, responses), score(encoder, prompts, responses)
        noisy = [
            score(encoder, prompts, responses, noise_std=0.5, generator=torch.Generator().manual_seed(s))
            for s in (1, 1, 2)
        ]
    assert torch.equal(clean, again)
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.allclose(noisy[0], clean, atol=1e-3)


def test_empty_prompts_and_responses_are_refused():
    for prompts, responses in ([], []), ([Prompt([], [])], [[[1]]]), ([Prompt([1], [])], [[[]]]):
        with pytest.raises(ValueError, match="prompts"):
            pack(prompts, responses, pad=0)

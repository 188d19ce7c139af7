"""Packed scoring equals the plain forward: one prompt with one response in a sequence of its own."""

from __future__ import annotations

import pytest
import torch

from hanorec.data.batching import batches
from hanorec.data.dataset import split_examples
from hanorec.hardness import embed_items, nearest, pair_hardness
from hanorec.losses import hanorec_loss
from hanorec.models.backbone import language_model
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.packing import Prompt, pack
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score, score_all


def plain_logp(backbone, images, prompt: Prompt, response: list[int]) -> torch.Tensor:
    """log π(response | prompt) as the model's own forward gives it: pixels in, causal mask, no packing."""
    backbone = backbone
    pixels = [images.contents[item] for item in prompt.image_items]
    images = {name: torch.cat([p[name] for p in pixels], dim=1) for name in pixels[0]} if pixels else {}
    ids = torch.tensor([prompt.ids + response])
    logits = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **images).logits[0]
    logps = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
    return logps[torch.arange(len(response)), response].sum()


@pytest.fixture
def batch(backbone, images):
    """Three prompts of 2, 1 and 0 images and unequal lengths, with 1, 3 and 2 responses of unequal lengths, two of
    which begin alike."""
    word = backbone.tokens
    prompts = [
        Prompt(word("Comet") + images.placeholders(0) + word(" and ") + images.placeholders(7) + word("?"), [0, 7]),
        Prompt(word("Tide of ") + images.placeholders(3), [3]),
        Prompt(word("no image here, but some words"), []),
    ]
    responses = [
        [word("Orbit Bara")],
        [word("a"), word("Comet Dara, longer"), word("Comet Dara Tide")],
        [word("Yes"), word("No no")],
    ]
    return prompts, responses


def test_packed_log_probabilities_equal_the_plain_forward(backbone, images, batch):
    prompts, responses = batch
    packed = score(backbone, images, prompts, responses)
    plain = torch.stack([plain_logp(backbone, images, p, r) for p, answers in zip(prompts, responses) for r in answers])
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)


def test_packed_lora_gradients_equal_the_plain_forward(backbone, images, batch):
    prompts, responses = batch
    torch.manual_seed(1)
    policy = add_lora(backbone, dropout=0.0)
    model = policy.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)  # zero in a fresh adapter, where half the gradients vanish
    weights = torch.linspace(-1, 1, 6)  # not all alike, as in a preference loss

    def gradients(logps: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        (logps * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    packed = gradients(score(policy, images, prompts, responses))
    plain = gradients(
        torch.stack([plain_logp(policy, images, p, r) for p, answers in zip(prompts, responses) for r in answers])
    )
    assert plain.norm() > 0
    assert (packed - plain).norm() / plain.norm() < 1e-3


def test_the_last_mlp_computes_only_where_a_token_is_predicted(backbone, images, batch):
    """A position is computed once, however many tokens are predicted there; all are where the backward computes the
    layer again."""
    prompts, responses = batch
    seen = []
    mlp = language_model(backbone.model).layers[-1].mlp
    mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    score(backbone, images, prompts, responses)
    packed = pack(prompts, responses, pad=backbone.pad, layout=backbone.layout)
    positions = set(zip(packed.row.tolist(), packed.column.tolist()))
    assert seen == [len(positions)] and len(positions) < len(packed.row) < packed.input_ids.numel()
    language_model(backbone.model).layers[-1].gradient_checkpointing = True
    score(backbone, images, prompts, responses)
    assert seen[1:] == [packed.input_ids.numel()]


def test_a_hanorec_step_equals_the_plain_way(backbone, images, data):
    """Features encoded once, reference scored once, prompts read once against four plain forwards a pair with live
    images: the same losses, β and gradients, noise and dropout off."""
    examples = split_examples(data, "train", "next", users=6, candidates=6)
    once = CatalogImages(backbone, data.catalog.images, frozen=True)
    prompts = Prompts(backbone, once, data.catalog.titles, "next", list_candidates=False)
    asked = [prompts.prompt(example) for example in examples]
    answers = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]
    similarities, _ = nearest(embed_items(backbone, once, data.catalog.titles), 5)
    hardness = pair_hardness(similarities, examples, temperature=0.05)[:, 0]

    reference = score_all(backbone, once, asked, answers, weights="", forward_tokens=300)
    plain_reference = torch.stack(
        [plain_logp(backbone, images, p, a).detach() for p, both in zip(asked, answers) for a in both]
    )
    torch.manual_seed(1)
    policy = add_lora(backbone, dropout=0.0)
    model = policy.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)

    def step(policy, reference):
        model.zero_grad()
        output = hanorec_loss(*policy.view(-1, 2).T, *reference.view(-1, 2).T, hardness)
        output.loss.backward()
        return output, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    fast, gradient = step(score(policy, once, asked, answers), reference)
    plain = torch.stack([plain_logp(policy, images, p, a) for p, both in zip(asked, answers) for a in both])
    slow, plain_gradient = step(plain, plain_reference)
    torch.testing.assert_close(fast.losses, slow.losses, atol=1e-4, rtol=0)
    torch.testing.assert_close(fast.beta, slow.beta, atol=1e-4, rtol=0)
    assert fast.beta.std() > 1e-3 and plain_gradient.norm() > 0
    assert (gradient - plain_gradient).norm() / plain_gradient.norm() < 1e-3


def test_features_computed_once_equal_features_computed_live(backbone, images, data, batch):
    prompts, responses = batch
    once = CatalogImages(backbone, data.catalog.images, frozen=True)
    with torch.no_grad():
        live = score(backbone, images, prompts, responses)
        torch.testing.assert_close(score(backbone, once, prompts, responses), live, atol=1e-5, rtol=0)


def test_a_response_does_not_see_its_siblings(backbone, images, batch):
    prompts, responses = batch
    together = score(backbone, images, prompts[1:2], [responses[1]])
    reversed_ = score(backbone, images, prompts[1:2], [responses[1][::-1]])
    torch.testing.assert_close(together, reversed_.flip(0), atol=1e-5, rtol=0)


def test_the_layout_of_a_packed_batch():
    """Worked by hand. Prompts of 2 and 1 tokens end at column 1, so responses begin at column 2. Of the first
    prompt's responses 1 2 3 and 1 4, token 1 is read once, in column 2; token 2 in column 3; 3 and 4 are last and
    never read. The second prompt's only token 5 is predicted by the prompt and never read."""
    packed = pack([Prompt([8, 9], []), Prompt([7], [])], [[[1, 2, 3], [1, 4]], [[5]]], pad=0)
    assert packed.input_ids.tolist() == [[8, 9, 1, 2], [0, 7, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert packed.labels.tolist() == [1, 2, 3, 1, 4, 5]
    assert packed.column.tolist() == [1, 2, 3, 1, 2, 1]
    assert packed.row.tolist() == [0, 0, 0, 0, 0, 1]
    assert packed.response.tolist() == [0, 0, 0, 1, 1, 2]
    seen = packed.attention_mask[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert packed.attention_mask[1, 0].int().tolist()[:2] == [[1, 0, 0, 0], [0, 1, 0, 0]]  # no padding


def test_responses_part_where_their_tokens_do():
    """Responses 1 2 3 4 and 1 5 6: token 5 sees the prompt and 1, not 2 or 3, and stands where 2 stands."""
    packed = pack([Prompt([9], [])], [[[1, 2, 3, 4], [1, 5, 6]]], pad=0)
    assert packed.input_ids.tolist() == [[9, 1, 2, 3, 5]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.attention_mask[0, 0, 4].tolist() == [True, True, False, False, True]


def test_common_beginnings_are_scored_as_if_apart(backbone, images):
    word = backbone.tokens
    prompt = Prompt(word("Tide of ") + images.placeholders(3), [3])
    answers = [word(text) for text in ("Comet Dara", "Comet Dara, longer", "Comet", "Comet Bara", "Comet Dara")]
    with torch.no_grad():
        together = score(backbone, images, [prompt], [answers])
        apart = torch.cat([score(backbone, images, [prompt], [[answer]]) for answer in answers])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert len(pack([prompt], [answers], pad=0).input_ids[0]) < len(prompt.ids) + sum(map(len, answers)) - len(answers)


def test_batches_hold_similar_lengths_within_the_budget():
    lengths = [3, 9, 4, 4, 10, 1, 30]
    found = batches(lengths, 20)
    assert found == [[6], [4, 1], [2, 3, 0, 5]]  # 30 alone is over the budget; 2 × 10; 4 × 4
    assert sorted(sum(found, [])) == list(range(7)) and batches([], 20) == []


def generators(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 * seed + prompt) for prompt in range(3)]


def test_a_prompts_noise_does_not_depend_on_its_neighbours(backbone, images, batch):
    prompts, responses = batch
    with torch.no_grad():
        together = score(backbone, images, prompts, responses, noise_std=0.5, generators=generators(1))
        alone = [
            score(backbone, images, [p], [r], noise_std=0.5, generators=[g])
            for p, r, g in zip(prompts, responses, generators(1))
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_noise_on_logits_is_reproducible_and_off_by_default(backbone, images, batch):
    prompts, responses = batch
    with torch.no_grad():
        clean, again = score(backbone, images, prompts, responses), score(backbone, images, prompts, responses)
        noisy = [
            score(backbone, images, prompts, responses, noise_std=0.5, generators=generators(s)) for s in (1, 1, 2)
        ]
    assert torch.equal(clean, again)
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.allclose(noisy[0], clean, atol=1e-3)


def test_empty_prompts_and_responses_are_refused():
    for prompts, responses in ([], []), ([Prompt([], [])], [[[1]]]), ([Prompt([1], [])], [[[]]]):
        with pytest.raises(ValueError, match="prompts"):
            pack(prompts, responses, pad=0)

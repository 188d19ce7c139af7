"""The other objectives: each against numbers worked out by hand and against its authors' formula, and their ties."""

import json
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from hanorec.losses import NotFiniteError, chosen_and_rejected, hanorec_loss, policy_responsiveness
from hanorec.related.batch_objectives import RunningGaps, beta_dpo_loss, dama_loss
from hanorec.related.group_objectives import (
    cross_entropy_loss,
    dmpo_loss,
    grpo_loss,
    hanorec_softmax_loss,
    sdpo_loss,
)
from hanorec.related.objectives import PAPER_BETA, WITH_HARDNESS, WITH_RUNNING_GAPS, related_objective
from hanorec.related.pair_objectives import cdpo_loss, dpo_loss, ipo_loss, orpo_loss, simpo_loss

EXACT = {"rtol": 0, "atol": 0}
LN3 = math.log(3)  # σ(0) = 1/2, σ(ln 3) = 3/4, σ(-ln 3) = 1/4, σ(2 ln 3) = 9/10
BOTH = ("policy", "reference")
OBJECTIVES = {  # by name: the function, and the tables that it takes
    "dpo": (dpo_loss, BOTH),
    "cdpo": (cdpo_loss, BOTH),
    "ipo": (ipo_loss, BOTH),
    "simpo": (simpo_loss, ("policy", "lengths")),
    "orpo": (orpo_loss, ("policy", "lengths")),
    "s-dpo": (sdpo_loss, BOTH),
    "hanorec-softmax": (hanorec_softmax_loss, (*BOTH, "hardness")),
    "dmpo": (dmpo_loss, BOTH),
    "cross-entropy": (cross_entropy_loss, ("policy",)),
    "grpo": (grpo_loss, (*BOTH, "lengths")),
    "beta-dpo": (beta_dpo_loss, BOTH),
    "dama": (dama_loss, (*BOTH, "hardness")),
}
PAIRWISE = ("dpo", "cdpo", "ipo", "simpo", "orpo", "beta-dpo", "dama")
FILTERED = ("beta-dpo", "dama")
REFERENCE_FREE = ("simpo", "orpo", "cross-entropy")
OWN = {name: {} for name in OBJECTIVES} | dict.fromkeys(FILTERED, {"keep": 1.0})  # every pair, so nothing is random
OWN["hanorec-softmax"] = {"responsiveness": 0.9}  # η, which is a constant to the gradient


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tables(prompts=4, rejected=3, seed=0):
    """Policy and reference in nats, lengths in tokens, hardness: random, and such as a model might give."""
    reference = -5 - 20 * torch.rand(prompts, 1 + rejected, dtype=torch.float64, generator=seeded(seed))
    policy = reference + torch.randn(reference.shape, dtype=torch.float64, generator=seeded(seed + 1))
    lengths = torch.randint(2, 9, reference.shape, generator=seeded(seed + 2))
    hardness = 0.8 + 0.4 * torch.rand(prompts, rejected, dtype=torch.float64, generator=seeded(seed + 3))
    return policy, reference, lengths, hardness


def state_of(running):
    return running.mean, running.deviation


def call(name, policy, reference, lengths, hardness, **options):
    function, taken = OBJECTIVES[name]
    given = {"policy": policy, "reference": reference, "lengths": lengths, "hardness": hardness}
    return function(*(given[table] for table in taken), **OWN[name] | options)


# Worked by hand. Rewards β log π/π_ref of two prompts, each with two rejected responses, where β = 2:
#   prompt 1: chosen ln 3, rejected -ln 3 and ln 3, so margins β Δ = 2 ln 3 and 0
#   prompt 2: chosen 0,    rejected ln 3 and -ln 3, so margins β Δ = -ln 3 and ln 3
REFERENCE = f64([-2, -5, -7], [-1, -3, -4])
POLICY = REFERENCE + f64([LN3, -LN3, LN3], [0, LN3, -LN3]) / 2
CHOSEN, REJECTED = f64(LN3, LN3, 0, 0), f64(-LN3, LN3, LN3, -LN3)


def test_dpo_by_hand():
    out = dpo_loss(POLICY, REFERENCE, beta=2.0)
    # -log σ of the margins: -log 9/10, -log 1/2, -log 1/4, -log 3/4
    assert_close(out.losses, f64(10 / 9, 2, 4, 4 / 3).log())
    assert out.loss.item() == pytest.approx(0.618121, abs=1e-6)  # (0.105361 + 0.693147 + 1.386294 + 0.287682) / 4
    assert_close((out.chosen_rewards, out.rejected_rewards), (CHOSEN, REJECTED))
    assert_close((out.beta, out.responsiveness), (f64(2, 2, 2, 2), f64(1)[0]))


def test_cdpo_by_hand():
    out = cdpo_loss(POLICY, REFERENCE, beta=2.0, label_smoothing=0.25)
    # 3/4 of -log σ(margin) and 1/4 of -log σ(-margin): σ(-margin) = 1/10, 1/2, 3/4, 1/4
    first = 0.75 * math.log(10 / 9) + 0.25 * math.log(10)
    third = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)
    fourth = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert_close(out.losses, f64(first, math.log(2), third, fourth))
    assert_close((out.chosen_rewards, out.rejected_rewards), (CHOSEN, REJECTED))


def test_ipo_by_hand():
    # τ = 1/4, target 1/(2τ) = 2; log-ratios 2, 1, -2, so Δ = 1 and 4: (1 - 2)² and (4 - 2)²
    out = ipo_loss(f64([0, -2, -5]), f64([-2, -3, -3]), beta=0.25)
    assert_close((out.losses, out.loss), (f64(1, 4), f64(2.5)[0]))
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(0.5, 0.5), f64(0.25, -0.5)))


def test_simpo_by_hand():
    # Means over tokens: -1/2; -1/2 - (1 + ln 3)/2; -1. With β = 2, γ = 1: 1 + ln 3 - 1 = ln 3 and 1 - 1 = 0.
    policy, lengths = f64([-1, -4 - 2 * LN3, -1]), torch.tensor([[2, 4, 1]])
    out = simpo_loss(policy, lengths, beta=2.0, gamma=1.0)
    assert_close(out.losses, f64(4 / 3, 2).log())
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(-1, -1), f64(-2 - LN3, -2)))


def test_orpo_by_hand():
    # P, the geometric mean over tokens, is 3/4, 1/2, 1/4: odds 3, 1, 1/3, ratios 3 and 9. L_SFT = -log 3/4; λ = 1/2.
    out = orpo_loss(f64([0.75, 0.5, 0.25]).log() * f64(2, 3, 1), torch.tensor([[2, 3, 1]]), beta=0.5)
    assert_close(out.losses, f64(4 / 3, 4 / 3).log() + 0.5 * f64(4 / 3, 10 / 9).log())
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(LN3, LN3) / 2, f64(0, -LN3) / 2))


def test_sdpo_by_hand():
    out = sdpo_loss(POLICY, REFERENCE, beta=2.0)
    # exp(rewards): 3, 1/3, 3, of which the chosen has 3 / (19/3) = 9/19; and 1, 3, 1/3: 1 / (13/3) = 3/13
    assert_close((out.losses, out.loss), (f64(19 / 9, 13 / 3).log(), f64(247 / 27).log()[0] / 2))
    assert_close((out.chosen_rewards, out.rejected_rewards), (CHOSEN, REJECTED))


def test_dmpo_by_hand():
    # The rejected rewards have mean 0 in both prompts: -log σ(ln 3 - 0) and -log σ(0 - 0)
    out = dmpo_loss(POLICY, REFERENCE, beta=2.0)
    assert_close((out.losses, out.loss), (f64(4 / 3, 2).log(), f64(8 / 3).log()[0] / 2))
    assert_close((out.chosen_rewards, out.rejected_rewards), (CHOSEN, REJECTED))


def test_cross_entropy_by_hand():
    # β log π: ln 9, ln 3, 0, so that the chosen response has 9 / (9 + 3 + 1)
    out = cross_entropy_loss(f64([LN3, LN3 / 2, 0]) - 5, beta=2.0)
    assert_close((out.losses, out.loss), (f64(13 / 9).log(), f64(13 / 9).log()[0]))
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(*[2 * LN3 - 10] * 2), f64(LN3 - 10, -10)))


def test_hanorec_with_several_rejected_responses_by_hand():
    # Log-ratio margins Δ = ln 3 and 2 ln 3; β = 2 · 0.5 · λ = 1 and 2: β Δ = ln 3 and 4 ln 3
    policy, reference = f64([LN3, 0, -LN3]), f64([0, 0, 0])
    arguments = dict(beta=2.0, responsiveness=0.5)
    pairs = hanorec_loss(*pairs_of(policy, reference), f64(1, 2), **arguments)
    assert_close(pairs.losses, f64(4 / 3, 82 / 81).log())  # -log σ(ln 3) = -log 3/4, -log σ(4 ln 3) = -log 81/82
    softmax = hanorec_softmax_loss(policy, reference, f64([1, 2]), **arguments)
    assert_close(softmax.losses, f64(1 + 1 / 3 + 1 / 81).log())  # log(1 + e^(-ln 3) + e^(-4 ln 3)) = log 109/81
    for out in pairs, softmax:
        assert_close((out.beta, out.responsiveness), (f64(1, 2), f64(0.5)[0]))
        assert_close((out.chosen_rewards, out.rejected_rewards), (f64(LN3, 2 * LN3), f64(0, -2 * LN3)))


def test_grpo_by_hand():
    """Log-probabilities −2, −1, −3, −4: the rejected stand at places 1, 3 and 4, so that 1/log₂(ρ + 1) is 1, 1/2 and
    1/log₂ 5 = 0.430677, with sum 1.930677. Rewards 1, −0.517953, −0.258977, −0.223070: their mean is 0, the mean of
    their squares (1 + 0.268276 + 0.067069 + 0.049760)/4 = 0.346276, their deviation 0.588452.
    Advantages 1.699374, −0.880196, −0.440098, −0.379080. Lengths 2, 1, 3, 2: means a token −1, −1, −1, −2.
    −mean(Â log π a token) = (1.699374 − 0.880196 − 0.440098 − 0.758160)/4 = −0.379080/4 = −0.094770.
    log π_ref/π_θ is 0 but for the chosen one, where it is 2 ln 3, a token ln 3: D = 3 − ln 3 − 1 = 0.901388.
    β D/4 with β = 2: 0.450694.
    """
    policy, lengths = f64([-2, -1, -3, -4]), torch.tensor([[2, 1, 3, 2]])
    out = grpo_loss(policy, policy + f64([2 * LN3, 0, 0, 0]), lengths, beta=2.0)
    assert_close(out.losses, f64(-0.094770 + 0.450694), atol=2e-6, rtol=0)
    assert_close(out.chosen_rewards, f64(*[-4 * LN3] * 3))


def test_grpo_punishes_a_wrong_item_the_more_the_more_confidently_the_policy_holds_it():
    policy = f64([-5, -1, -2, -9, -7]).requires_grad_()
    out = grpo_loss(policy, policy.detach(), torch.ones(1, 5))
    (gradient,) = torch.autograd.grad(out.loss, policy)
    assert gradient[0, 1] > gradient[0, 2] > gradient[0, 4] > gradient[0, 3] > 0 > gradient[0, 0]


def test_beta_dpo_by_hand():
    # Δ = 1 and 3: mean 2, deviation √2. M₀ = (0 + 2)/2 = 1, so β = β₀ (1 + α (2 - 1)) = 2 β₀ = ln 3 where α = 1.
    # -log σ(ln 3) = -log 3/4 and -log σ(3 ln 3) = -log 27/28
    running = RunningGaps(momentum=0.5)
    out = beta_dpo_loss(f64([1, 0, -2]), f64([0, 0, 0]), beta=LN3 / 2, alpha=1.0, keep=1.0, running=running)
    assert_close((out.losses, out.beta, out.responsiveness), (f64(4 / 3, 28 / 27).log(), f64(LN3, LN3), f64(2)[0]))
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(LN3, LN3), f64(0, -2 * LN3)))
    assert state_of(running) == pytest.approx((1.0, math.sqrt(2) / 2))
    # Then Δ = -9 alone: M₀ = (1 - 9)/2 = -4, 1 + (-9 + 4) < 0, and β is its floor
    out = beta_dpo_loss(f64([-9, 0]), f64([0, 0]), alpha=1.0, keep=1.0, running=running)
    assert_close((out.beta, out.responsiveness), (f64(1e-3), f64(-4)[0]))
    assert state_of(running) == pytest.approx((-4.0, math.sqrt(2) / 4))  # the deviation of one margin is 0


def test_dama_by_hand():
    # Δ = ln 3 and 2 ln 3: mean σ(Δ) = (3/4 + 9/10)/2 = 0.825. M₀ = 0: η = 0.825 / (1/2) = 1.65.
    # β = 10/33 · 1.65 · λ = λ/2 = 1 and 2: -log σ(ln 3) = -log 3/4 and -log σ(4 ln 3) = -log 81/82
    policy, reference, running = f64([LN3, 0, -LN3]), f64([0, 0, 0]), RunningGaps()
    out = dama_loss(policy, reference, f64([2, 4]), beta=10 / 33, keep=1.0, running=running)
    assert_close((out.losses, out.beta, out.responsiveness), (f64(4 / 3, 82 / 81).log(), f64(1, 2), f64(1.65)[0]))
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(LN3, 2 * LN3), f64(0, -2 * LN3)))
    # The running mean counts this batch afterwards: 0.1 · 1.5 ln 3. The deviation of ln 3 and 2 ln 3 is ln 3/√2.
    assert state_of(running) == pytest.approx((0.15 * LN3, 0.1 * LN3 / math.sqrt(2)))
    # M₀ = ln 3: η = 0.825 / (3/4) = 1.1. And λ = 0 leaves β at its floor.
    running = RunningGaps()
    running.load_state_dict({"mean": LN3, "deviation": 0.0})
    out = dama_loss(policy, reference, f64([2, 0]), beta=0.5, keep=1.0, running=running)
    assert_close((out.beta, out.responsiveness), (f64(1.1, 1e-3), f64(1.1)[0]))


# The authors' definitions, written again from the formulas: one number at a time
def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax_dpo(ratio_w, ratios, beta):
    return -math.log(sigmoid(-math.log(sum(math.exp(beta * (r - ratio_w)) for r in ratios))))


def odds_ratio_dpo(logp_w, logp_l, weight):
    odds_w, odds_l = (math.exp(p) / (1 - math.exp(p)) for p in (logp_w, logp_l))
    return -logp_w - weight * math.log(sigmoid(math.log(odds_w / odds_l)))


def group_policy_gradient(logps, means, reference_means, beta):
    place = {k: 1 + sum(other > logps[k] for other in logps) for k in range(1, len(logps))}
    total = sum(1 / math.log(place[k] + 1) for k in place)
    rewards = [1.0] + [-1 / math.log(place[k] + 1) / total for k in place]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    terms = []
    for r, p, q in zip(rewards, means, reference_means, strict=True):
        terms.append((r - mean) / deviation * p - beta * (math.exp(q - p) - (q - p) - 1))
    return -sum(terms) / len(terms)


def by_definition(name, policy, reference, lengths, hardness, beta):
    """The loss of the batch, with the options the objectives have by default, but for `keep` 1."""
    losses, margins = [], []
    for prompt in range(len(policy)):
        pi, ref, length = policy[prompt].tolist(), reference[prompt].tolist(), lengths[prompt].tolist()
        ratios = [p - q for p, q in zip(pi, ref, strict=True)]
        means = [p / n for p, n in zip(pi, length, strict=True)]
        if name == "s-dpo":
            losses.append(softmax_dpo(ratios[0], ratios[1:], beta))
        if name == "cross-entropy":
            losses.append(-math.log(math.exp(beta * pi[0]) / sum(math.exp(beta * p) for p in pi)))
        if name == "grpo":
            losses.append(group_policy_gradient(pi, means, [q / n for q, n in zip(ref, length, strict=True)], beta))
        if name == "hanorec-softmax":  # with η = 0.9
            adaptive = [beta * 0.9 * weight for weight in hardness[prompt].tolist()]
            gaps = [b * (ratios[0] - r) for b, r in zip(adaptive, ratios[1:], strict=True)]
            losses.append(-math.log(sigmoid(-math.log(sum(math.exp(-gap) for gap in gaps)))))
        if name == "dmpo":
            losses.append(-math.log(sigmoid(beta * ratios[0] - sum(beta * r for r in ratios[1:]) / len(ratios[1:]))))
        for k in range(1, len(pi)):
            h = ratios[0] - ratios[k]
            margins.append((h, hardness[prompt, k - 1].item()))
            if name == "dpo":
                losses.append(-math.log(sigmoid(beta * h)))
            if name == "cdpo":
                losses.append(-0.9 * math.log(sigmoid(beta * h)) - 0.1 * math.log(sigmoid(-beta * h)))
            if name == "ipo":
                losses.append((h - 1 / beta / 2) ** 2)
            if name == "simpo":
                losses.append(-math.log(sigmoid(beta * means[0] - beta * means[k] - 1.0)))
            if name == "orpo":
                losses.append(odds_ratio_dpo(means[0], means[k], beta))
    gap = sum(h for h, _ in margins) / len(margins)
    if name == "beta-dpo":  # M₀ = 0.9 · 0 + 0.1 · gap, a first batch
        dynamic = beta * (1 + 0.6 * (gap - 0.1 * gap))
        losses = [-math.log(sigmoid(dynamic * h)) for h, _ in margins]
    if name == "dama":  # M₀ = 0, a first batch
        response = sum(sigmoid(h) for h, _ in margins) / len(margins) / sigmoid(0.0)
        losses = [-math.log(sigmoid(beta * weight * response * h)) for h, weight in margins]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("beta", [0.1, 1.3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_its_authors_definition(name, beta):
    inputs = tables(prompts=5, rejected=3)
    state = {"running": RunningGaps()} if name in FILTERED else {}
    expected = by_definition(name, *inputs, beta)
    assert call(name, *inputs, beta=beta, **state).loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in FILTERED])
def test_gradients_match_finite_differences(name):
    policy, *others = tables(prompts=2, rejected=2)
    assert gradcheck(lambda p: call(name, p, *others).loss, policy.requires_grad_())


# What ties them
def pairs_of(policy, reference):
    """policy_chosen, policy_rejected, reference_chosen, reference_rejected of every pair."""
    return *chosen_and_rejected(policy), *chosen_and_rejected(reference)


def test_with_unit_hardness_and_responsiveness_hanorec_is_dpo_and_its_softmax_is_sdpo():
    policy, reference, *_ = tables(prompts=3, rejected=2)
    ones, unit = torch.ones(3, 2, dtype=torch.float64), {"responsiveness": 1, "beta": 0.3}
    dpo, sdpo = dpo_loss(policy, reference, beta=0.3), sdpo_loss(policy, reference, beta=0.3)
    assert_close(tuple(hanorec_loss(*pairs_of(policy, reference), ones.flatten(), **unit)), tuple(dpo))
    assert_close(tuple(hanorec_softmax_loss(policy, reference, ones, **unit)), tuple(sdpo))


def test_hanorec_takes_responsiveness_from_all_its_pairs_where_none_is_given():
    policy, reference, _, hardness = tables(prompts=3, rejected=2)
    pairs = pairs_of(policy, reference)
    expected = hanorec_loss(*pairs, hardness.flatten(), beta=0.3)
    assert expected.responsiveness == policy_responsiveness(0.3 * (pairs[0] - pairs[2] - pairs[1] + pairs[3])) != 1
    softmax = hanorec_softmax_loss(policy, reference, hardness, beta=0.3)
    assert_close(tuple(softmax)[2:], tuple(expected)[2:])
    # Of R = β₀ Δ: mean Δ = 5e-8 would be a scale to Eq. 8, mean R = 5e-9 is not, and η = 1.
    policy, ones = f64([0, -1, 1, -2e-7, 0]), torch.ones(1, 4)
    assert hanorec_softmax_loss(policy, 0 * policy, ones, beta=0.1).responsiveness.item() == pytest.approx(1)


def test_with_one_rejected_response_hanorecs_softmax_is_hanorec():
    policy, reference, _, hardness = tables(prompts=6, rejected=1)
    softmax = hanorec_softmax_loss(policy, reference, hardness)
    assert_close(tuple(softmax), tuple(hanorec_loss(*pairs_of(policy, reference), hardness.flatten())))


def test_with_a_reference_that_is_indifferent_sdpo_is_cross_entropy():
    policy, *_ = tables()
    indifferent = sdpo_loss(policy, torch.zeros_like(policy), beta=0.7)
    assert_close(tuple(cross_entropy_loss(policy, beta=0.7)), tuple(indifferent))


def test_dama_is_hanorec_with_another_responsiveness():
    policy, reference, lengths, hardness = tables(prompts=3, rejected=2)
    dama = call("dama", policy, reference, lengths, hardness, running=RunningGaps())
    assert dama.responsiveness != 1
    assert_close(
        tuple(dama),
        tuple(hanorec_loss(*pairs_of(policy, reference), hardness.flatten(), responsiveness=dama.responsiveness)),
    )


@pytest.mark.parametrize(
    ("name", "rejected", "options"),
    [
        ("cdpo", 3, {"label_smoothing": 0.0}),
        ("s-dpo", 1, {}),
        ("dmpo", 1, {}),
        ("beta-dpo", 3, {"alpha": 0.0}),
    ],
)
def test_dpo_is_the_limit_of(name, rejected, options):
    inputs = tables(rejected=rejected)
    assert_close(tuple(call(name, *inputs, beta=0.3, **options)), tuple(call("dpo", *inputs, beta=0.3)))


def test_without_state_one_pair_of_unit_hardness_is_dpo_in_the_filtered_objectives_too():
    policy, reference, lengths, _ = tables(prompts=1, rejected=1)  # its margin is its own usual margin
    for name in FILTERED:
        out = call(name, policy, reference, lengths, torch.ones(1, 1))
        assert_close(tuple(out), tuple(dpo_loss(policy, reference)))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in (*REFERENCE_FREE, "grpo")])
def test_at_the_reference_the_loss_knows_no_preference(name):
    _, reference, lengths, hardness = tables(rejected=3)
    over_all = math.log(1 + 3)
    expected = {"ipo": (1 / (2 * 0.2)) ** 2, "s-dpo": over_all, "hanorec-softmax": over_all}.get(name, math.log(2))
    out = call(name, reference, reference, lengths, hardness, beta=0.2)
    assert_close(out.losses, torch.full_like(out.losses, expected))
    assert_close((out.chosen_rewards, out.rejected_rewards), (torch.zeros(12).double(),) * 2, **EXACT)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_chosen_response_is_pushed_up_and_every_rejected_one_down(name):
    policy, *others = tables()
    (gradient,) = torch.autograd.grad(call(name, policy.requires_grad_(), *others).loss, policy)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1:] > 0).all()


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_pairwise_objective_takes_each_rejected_response_as_a_pair_of_its_own(name):
    def pairs(table):
        return torch.stack([table[:, :1].expand_as(table[:, 1:]), table[:, 1:]], -1).reshape(-1, 2)

    policy, reference, lengths, hardness = tables(prompts=3, rejected=4)
    together = call(name, policy, reference, lengths, hardness)
    apart = call(name, pairs(policy), pairs(reference), pairs(lengths), hardness.view(-1, 1))
    assert_close(tuple(together), tuple(apart))
    assert_close(together.loss, together.losses.mean())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_by_its_name_an_objective_has_its_published_settings(name):
    policy, reference, lengths, hardness = tables()
    state = {"running": RunningGaps(), "generator": seeded()} if name in WITH_RUNNING_GAPS else {}
    eta = {"responsiveness": 0.7} if name == "hanorec-softmax" else {}
    function, taken = OBJECTIVES[name]
    known = {"policy": policy, "reference": reference, "lengths": lengths, "hardness": hardness}
    expected = function(*(known[table] for table in taken), **state | eta)
    state = {"running": RunningGaps(), "generator": seeded()} if name in WITH_RUNNING_GAPS else {}
    other = {"responsiveness": lambda gaps: 0.7} if eta else {}
    out = related_objective(name, policy, reference, lengths, hardness, beta=PAPER_BETA[name], **state | other)
    assert_close(tuple(out), tuple(expected), **EXACT)
    assert ("hardness" in taken) == (name in WITH_HARDNESS)


@pytest.mark.parametrize("name", WITH_RUNNING_GAPS)
def test_margins_are_kept_from_batch_to_batch(name):
    running = RunningGaps()
    for batch in range(2):
        before = state_of(running)
        related_objective(name, *tables(seed=batch), beta=0.1, running=running, generator=seeded())
        assert state_of(running) != before


def test_every_name_is_an_objective_and_hanorec_stands_in_the_script():
    assert {"hanorec", *OBJECTIVES} == set(PAPER_BETA)
    for name in ("hanorec", "ppo"):
        with pytest.raises(KeyError):
            related_objective(name, *tables(), beta=0.1)


def test_hanorecs_softmax_gives_all_its_reward_gaps_to_the_responsiveness():
    policy, reference, lengths, hardness = tables(prompts=3, rejected=2)
    out = related_objective(
        "hanorec-softmax", policy, reference, lengths, hardness, beta=0.3, responsiveness=policy_responsiveness
    )
    assert_close(tuple(out), tuple(hanorec_softmax_loss(policy, reference, hardness, beta=0.3)))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in (*REFERENCE_FREE, "grpo")])
def test_only_the_log_ratios_of_a_prompt_against_each_other_count(name):
    policy, reference, lengths, hardness = tables()
    shift, both = torch.arange(4.0)[:, None], torch.randn(4, 4, generator=seeded(9))
    shifted = call(name, policy + shift + both, reference + both, lengths, hardness)
    out = call(name, policy, reference, lengths, hardness)
    assert_close((shifted.losses, shifted.beta), (out.losses, out.beta))


# Where β follows the batch
@pytest.mark.parametrize("name", FILTERED)
def test_the_batchs_beta_is_a_constant_to_the_gradient(name):
    policy, reference, lengths, hardness = tables(prompts=3, rejected=1)
    leaves = policy.requires_grad_(), hardness.requires_grad_()
    out = call(name, policy, reference, lengths, hardness, running=RunningGaps())
    assert {key for key, value in out._asdict().items() if value.requires_grad} == {"loss", "losses"}
    margins = (out.chosen_rewards - out.rejected_rewards).detach()
    by_hand = -out.beta * torch.sigmoid(-margins) / 3  # dL/dlog π_w of the mean over three pairs
    gradient, through_hardness = torch.autograd.grad(out.loss, leaves, allow_unused=True)
    assert_close(gradient, torch.stack([by_hand, -by_hand], 1))
    assert through_hardness is None


@pytest.mark.parametrize(
    ("name", "margins", "share"),
    [
        # Three pairs, one drawn. The batch's mean 1 and deviation √3: weights e^(-1/6), e^(-1/6), e^(-2/3)
        ("beta-dpo", [0, 0, 3], math.exp(-1 / 2) / (2 + math.exp(-1 / 2))),
        # M₀ = 0 and deviation 1: weights 1, 1, 1/3
        ("dama", [0, 0, math.sqrt(2 * LN3)], 1 / 7),
    ],
)
def test_pairs_are_drawn_with_the_density_of_their_margin(name, margins, share):
    policy = torch.zeros(3, 2, dtype=torch.float64)
    policy[:, 0] = f64(*margins)
    generator, draws, last = seeded(), 2000, 0
    for _ in range(draws):
        state = {"running": RunningGaps()} if name == "dama" else {}
        out = call(name, policy, 0 * policy, None, torch.ones(3, 1), keep=0.34, generator=generator, **state)
        last += out.loss.item() == out.losses[2].item()
    assert last / draws == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))


@pytest.mark.parametrize(("keep", "count"), [(1.0, 10), (0.8, 8), (0.25, 2), (0.01, 1)])
@pytest.mark.parametrize("name", FILTERED)
def test_a_share_of_the_pairs_is_drawn_without_replacement_and_teaches(name, keep, count):
    policy, reference, lengths, hardness = tables(prompts=5, rejected=2)
    out = call(name, policy.requires_grad_(), reference, lengths, hardness, keep=keep, generator=seeded())
    (gradient,) = torch.autograd.grad(out.loss, policy, retain_graph=True)
    drawn = (gradient[:, 1:] != 0).flatten()
    assert drawn.sum() == count
    assert_close(out.loss, out.losses[drawn].mean())


@pytest.mark.parametrize("name", FILTERED)
def test_pairs_that_are_not_drawn_do_not_move_beta(name):
    policy = torch.zeros(10, 2)
    policy[9, 0] = 500.0  # hundreds of deviations from M₀: its weight is 0
    running = RunningGaps(momentum=0.99)
    running.load_state_dict({"mean": 0.0, "deviation": 1.0})
    out = call(name, policy, torch.zeros(10, 2), None, torch.ones(10, 1), keep=0.9, generator=seeded(), running=running)
    # The nine others have Δ = 0. β-DPO: M₀ = 0.01 · 50, 1 + 0.6 (0 - M₀). DAMA: M₀ = 0, σ(0)/σ(0).
    assert out.responsiveness.item() == pytest.approx({"beta-dpo": 0.7, "dama": 1.0}[name])


@pytest.mark.parametrize("name", FILTERED)
def test_the_draw_follows_its_generator(name):
    inputs = tables(prompts=8, rejected=2)
    one, same, *others = (call(name, *inputs, keep=0.5, generator=seeded(s)).loss for s in (1, 1, 2, 3))
    assert_close(one, same, **EXACT)
    assert all(other != one for other in others)


def test_running_gaps_go_on_from_a_checkpoint():
    running = RunningGaps()
    assert running.update(f64(1, 3)) == pytest.approx((0.2, 0.1 * math.sqrt(2)))
    resumed = RunningGaps()
    resumed.load_state_dict(json.loads(json.dumps(running.state_dict())))  # as a run's state.json keeps it
    assert resumed.update(f64(-4)) == running.update(f64(-4)) == pytest.approx((-0.22, 0.09 * math.sqrt(2)))


# Numbers
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_extreme_log_probabilities_leave_every_output_and_gradient_finite(name, size):
    policy = -size * torch.rand(6, 4, generator=seeded())
    policy[0], policy[1, 0] = 0, 0  # what softmax rounds to where a model is sure
    reference = -size * torch.rand(6, 4, generator=seeded(1))
    state = {"running": RunningGaps(), "keep": 0.8} if name in FILTERED else {}
    for _ in range(3):  # states far from the first one, too
        leaf = policy.clone().requires_grad_()
        out = call(name, leaf, reference, torch.ones(6, 4), torch.ones(6, 3), **state)
        out.loss.backward()
        assert all(value.isfinite().all() for value in (*out, leaf.grad))
        policy, reference = reference, policy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_is_computed_in_float32_and_float64_stays(name, dtype):
    half = [table.to(dtype) for table in tables()]
    wide = [table.float() for table in half]
    assert_close(tuple(call(name, *half)), tuple(call(name, *wide)), **EXACT)
    assert all(value.dtype == torch.float64 for value in call(name, *tables()))


# Errors
TABLE = torch.full((2, 3), -1.0)
LEGAL = {"policy": TABLE, "reference": TABLE, "lengths": -TABLE, "hardness": -TABLE[:, 1:], "beta": 0.1}
LEGAL_OWN = {
    "cdpo": {"label_smoothing": 0.1},
    "simpo": {"gamma": 1.0},
    "beta-dpo": {"alpha": 0.6, "keep": 0.8, "beta_floor": 1e-3},
    "dama": {"keep": 0.8, "beta_floor": 1e-3},
    "hanorec-softmax": {"beta_floor": 1e-6, "responsiveness": 1.0},
}


def legal(objective):
    _, taken = OBJECTIVES[objective]
    return {name: LEGAL[name] for name in (*taken, "beta")} | LEGAL_OWN.get(objective, {})


def illegal(name, value):
    if isinstance(value, Tensor):
        shapes = [] if name == "policy" else [value[0], value[None], value[:0], value[:1], value[:, 1:]]
        return [value * math.nan, value * math.inf, *shapes, *([value * 0] if name == "lengths" else [])]
    also = {"label_smoothing": [0.5, -0.1], "gamma": [-0.1], "alpha": [-0.1], "keep": [0.0, 1.1], "responsiveness": []}
    return [math.nan, math.inf, *also.get(name, [0.0, -1.0])]


@pytest.mark.parametrize(
    ("objective", "name", "value"),
    [
        (objective, name, value)
        for objective in OBJECTIVES
        for name, usual in legal(objective).items()
        for value in illegal(name, usual)
    ],
)
def test_an_error_names_its_argument_and_leaves_the_state_alone(objective, name, value):
    running = RunningGaps()
    state = {"running": running} if objective in FILTERED else {}
    with pytest.raises(ValueError, match=f"^{name} "):
        OBJECTIVES[objective][0](**legal(objective) | state | {name: value})
    assert state_of(running) == (0.0, 0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3), (2, 1), (2, 0)])
def test_tables_without_a_prompt_or_a_rejected_response_are_an_error(objective, shape):
    with pytest.raises(ValueError, match="^policy "):
        call(objective, *[torch.ones(shape)] * 3, torch.ones(2, 2))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_a_momentum_out_of_range_is_an_error(momentum):
    with pytest.raises(ValueError, match="^momentum "):
        RunningGaps(momentum=momentum)


def test_a_table_that_is_not_finite_has_an_error_of_its_own():
    with pytest.raises(NotFiniteError, match="^policy "):
        dpo_loss(TABLE * math.nan, TABLE)

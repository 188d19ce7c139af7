"""HaNoRec's equations, each against numbers worked out by hand, and what must hold for every input."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from hanorec import losses as L

EXACT = {"rtol": 0, "atol": 0}
T = torch.tensor
repeatable = settings(derandomize=True, deadline=None)
LN3 = math.log(3)  # σ(0) = 1/2, σ(ln 3) = 3/4, σ(2 ln 3) = 9/10


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of_margins(margins, **options):
    """`hanorec_loss` where only the policy's chosen response differs from the reference: Δ = margins."""
    zero = torch.zeros_like(margins)
    return L.hanorec_loss(margins, zero, zero, zero, options.pop("hardness", zero + 1), **options)


# log π(y|x), and NoDO on the logits
def test_response_logp_is_the_sum_over_labels_without_a_shift():
    # Position 0: softmax(log [1, 2, 5]) = [1, 2, 5]/8, label 1: log 2/8. Position 1: [3, 3, 2]/8, label 2:
    # log 2/8. Position 2 is ignored. Sum: 2 log 1/4. The second row is padding and sums to 0.
    logits = T([[1.0, 2, 5], [3, 3, 2], [1, 1, 9]]).log().expand(2, 3, 3)
    labels = T([[1, 2, -100], [-100, -100, -100]])
    assert_close(L.response_logps(logits, labels), T([2 * math.log(0.25), 0.0]))


def test_ignored_positions_touch_neither_the_value_nor_the_gradient():
    logits = T([[[0.0, 0.0], [math.nan, math.inf]]], requires_grad=True)
    logp = L.response_logps(logits, T([[0, -100]]))
    assert logp.item() == pytest.approx(-math.log(2))
    # d log softmax(z)[0] / dz = [1 - 1/2, -1/2] at the response
    assert_close(*torch.autograd.grad(logp.sum(), logits), T([[[0.5, -0.5], [0.0, 0.0]]]))


def test_a_token_masked_with_minus_infinity_is_legal_unless_it_is_the_label():
    logits = T([[[0.0, LN3, -math.inf]]])  # probabilities 1/4, 3/4, 0
    assert L.response_logps(logits, T([[1]])).item() == pytest.approx(math.log(0.75))
    with pytest.raises(ValueError, match="^logits "):
        L.response_logps(logits, T([[2]]))


def test_a_tokens_log_probability_is_that_of_a_response_of_one_token():
    # softmax(log [1, 2, 5]) = [1, 2, 5]/8, softmax(log [3, 3, 2]) = [3, 3, 2]/8
    logits = T([[1.0, 2, 5], [3, 3, 2]]).log()
    assert_close(L.token_logps(logits, T([1, 0])), T([1 / 4, 3 / 8]).log())
    logits, labels = torch.randn(2, 3, 50, generator=seeded()), torch.randint(50, (2, 3), generator=seeded())
    tokens = L.token_logps(logits.flatten(0, 1), labels.flatten()).view(2, 3)
    assert_close(tokens.sum(-1), L.response_logps(logits, labels), **EXACT)
    assert L.token_logps(logits[0, :0], labels[0, :0]).shape == (0,)
    assert_close(L.token_logps(logits[0].bfloat16(), labels[0].int()), tokens[0], atol=0.05, rtol=0)


def test_a_tokens_log_probability_is_not_looked_at(monkeypatch):
    """The values decide nothing: no test of them makes the CPU wait for the device, and a nan goes through."""
    logits, labels = T([[0.0, math.nan], [0.0, -math.inf], [0.0, 0.0]]), T([0, 1, 1])
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("a value was asked for"))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a value was asked for"))
    logps = L.token_logps(L.perturbed_logits(logits, 0.1, seeded()), labels)
    monkeypatch.undo()
    assert logps.isnan().tolist() == [True, False, False] and logps[1] == -math.inf and logps[2].isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_float64_stays(dtype):
    logits = torch.randn(4, 6, 50, generator=seeded()).mul(5).to(dtype)
    labels = torch.randint(50, (4, 6), generator=seeded())
    assert_close(L.response_logps(logits, labels), L.response_logps(logits.float(), labels), **EXACT)
    assert L.response_logps(logits.double(), labels).dtype == torch.float64
    rows = T([[-100.25, -30.5], [-90, -31.2], [-100, -31], [-90.5, -29], [1, 0.9]]).to(dtype)
    assert_close(tuple(L.hanorec_loss(*rows)), tuple(L.hanorec_loss(*rows.float())), **EXACT)


def test_logit_noise_is_gaussian_of_the_given_std_on_every_token_of_every_position():
    # Two equal logits: log p0/p1 = σ_n (ε0 - ε1) = d ~ N(0, 2 σ_n²), which log p0 alone tells.
    n, std = 40_000, 0.1
    zeros = torch.zeros(n, 2, 2, dtype=torch.float64)
    logp = L.response_logps(zeros, T([[0, -100]]).expand(n, 2), noise_std=std, generator=seeded())
    d = logp - (-logp.expm1()).log()
    assert d.mean().abs() < 4 * std * math.sqrt(2 / n)
    assert d.std().item() == pytest.approx(std * math.sqrt(2), rel=0.02)
    assert (d / d.std()).pow(4).mean().item() == pytest.approx(3, abs=0.15)  # kurtosis
    # Labels 0, 1: log p0 + log p1' ≈ -2 log 2 + (d - d')/2, std σ_n; noise shared by positions would cancel.
    logp = L.response_logps(zeros, T([[0, 1]]).expand(n, 2), noise_std=std, generator=seeded())
    assert logp.std().item() == pytest.approx(std, rel=0.02)


def test_perturbed_logits_are_the_logits_and_noise_in_at_least_float32():
    logits = torch.randn(40, 500, generator=seeded())
    noise = L.perturbed_logits(logits, 0.3, seeded(1)) - logits
    assert_close((noise.mean(), noise.std()), (T(0.0), T(0.3)), atol=0.01, rtol=0)
    assert_close(noise, 0.3 * torch.randn(40, 500, generator=seeded(1)), atol=1e-6, rtol=0)
    for dtype, wide in [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]:
        z = logits.to(dtype)
        noisy = L.perturbed_logits(z, 0.3, seeded(1))
        assert noisy.dtype == wide and (noisy != z).any()
        assert_close(L.perturbed_logits(z, 0.0), z.to(wide), **EXACT)
    quiet = seeded()
    L.perturbed_logits(logits, 0.0, quiet)
    assert torch.equal(quiet.get_state(), seeded().get_state())  # std 0 draws nothing


def test_noise_of_a_prompts_rows_does_not_depend_on_what_else_is_in_the_batch():
    logits, labels = torch.randn(5, 7, generator=seeded()), T([1, 2, 3, 4, 5])
    sources = [seeded(3), seeded(4)]
    noisy = [L.perturbed_logits(rows, 0.1, s) for rows, s in zip(logits.split([2, 3]), sources, strict=True)]
    together = L.token_logps(torch.cat(noisy), labels)
    assert_close(together[2:], L.token_logps(L.perturbed_logits(logits[2:], 0.1, seeded(4)), labels[2:]), **EXACT)
    response = L.response_logps(logits[None, 2:], labels[None, 2:], noise_std=0.1, generator=seeded(4))
    assert_close(together[2:].sum(), response[0])


def test_log_probabilities_keep_no_second_copy_of_the_logits():
    """What autograd keeps for the backward: the logits themselves (with noise, the noisy ones) and small things."""
    for std in 0.0, 0.1:
        logits = torch.randn(4, 6, 500, generator=seeded(), requires_grad=True)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.setdefault(t.data_ptr(), t), lambda t: t):
            logp = L.response_logps(logits, torch.randint(500, (4, 6), generator=seeded()), noise_std=std)
        large = [t for t in kept.values() if t.numel() >= logits.numel()]
        assert len(large) == 1
        assert (large[0].data_ptr() == logits.data_ptr()) == (std == 0)
        logp.sum().backward()
        assert_close(logits.grad.sum(-1), torch.zeros(4, 6), atol=1e-5, rtol=0)  # softmax less one label sums to 0


def test_logit_noise_follows_its_generator_and_falls_on_responses_only():
    logits, labels = torch.randn(2, 3, 7, generator=seeded()), T([[1, 2, 3], [4, 5, 6]])
    one, same, other = (L.response_logps(logits, labels, noise_std=0.1, generator=seeded(s)) for s in (1, 1, 2))
    assert_close(one, same, **EXACT)
    assert (one != other).all()
    # A prompt in front takes no noise, so the responses get the same.
    longer = (
        torch.cat([torch.randn(2, 4, 7, generator=seeded(3)), logits], 1),
        F.pad(labels, (4, 0), value=-100),
    )
    assert_close(L.response_logps(*longer, noise_std=0.1, generator=seeded(1)), one, **EXACT)
    quiet = seeded()
    clean = L.response_logps(logits, labels, noise_std=0.0, generator=quiet)
    assert_close(clean, L.response_logps(logits, labels), **EXACT)
    assert torch.equal(quiet.get_state(), seeded().get_state())  # std 0 draws nothing


def test_gradients_match_finite_differences():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=seeded(), requires_grad=True)
    labels = T([[0, 4, -100], [2, -100, 1]])
    for std in (0.0, 0.3):
        assert gradcheck(lambda z, s=std: L.response_logps(z, labels, noise_std=s, generator=seeded()), logits)
    chosen, rejected, *reference = torch.randn(4, 5, dtype=torch.float64, generator=seeded())
    policy = chosen.requires_grad_(), rejected.requires_grad_()
    fixed = {"hardness": f64(0.9, 1.0, 1.1, 0.8, 1.2), "beta": 2.0, "responsiveness": 0.7}
    assert gradcheck(lambda w, r: L.hanorec_loss(w, r, *reference, **fixed)[:2], policy)


# Eq. 5 and 6, hardness
@pytest.mark.parametrize(
    ("chosen", "rejected", "temperature", "delta"),
    [
        ([LN3, 0], [0, 0], 1.0, math.sqrt(2) / 4),  # P = [3/4, 1/4], [1/2, 1/2]: δ = √(1/16 + 1/16)
        ([LN3, 0], [0, 0], 0.5, 0.4 * math.sqrt(2)),  # S_w/τ = [2 ln 3, 0], P_w = [9/10, 1/10]: √(2 · 0.4²)
        ([0, 0], [LN3, 0], 0.5, 0.4 * math.sqrt(2)),  # the distance is symmetric
        ([LN3, 0], [0, 0], 1e-4, math.sqrt(0.5)),  # τ -> 0: P_w = [1, 0], δ = √(2/4)
        ([LN3, 0], [0, 0], 1e9, 0.0),  # τ -> ∞: every neighbourhood is uniform
        ([0.6, 0.2], [0.6, 0.2], 1.0, 0.0),  # equal neighbourhoods
        ([0, 50], [50, 0], 1.0, math.sqrt(2)),  # P = [0, 1], [1, 0], the largest distance
    ],
)
def test_eq5_distance_of_neighbourhoods(chosen, rejected, temperature, delta):
    distance = L.neighbourhood_distance(f64(chosen), f64(rejected), temperature=temperature)
    assert_close(distance, f64(delta), atol=1e-8, rtol=1e-8)


def test_eq6_weighs_a_distance_against_the_mean_distance():
    distance = f64(0.0, 2 * LN3)  # mean ln 3: λ = [1/2, 9/10] / (3/4)
    assert_close(L.hardness_weight(distance), f64(2 / 3, 6 / 5))
    assert_close(L.hardness_weight(distance, mean_distance=0.0), f64(1.0, 9 / 5))
    assert_close(L.hardness_weight(distance, mean_distance=distance[1]), f64(5 / 9, 1.0))
    assert_close(L.hardness_weight(f64(0.3, 0.3, 0.3)), f64(1.0, 1.0, 1.0))


@repeatable
@given(st.lists(st.floats(0, math.sqrt(2)), min_size=2, max_size=20))
def test_eq6_the_hardest_pair_is_below_one_and_hardness_grows_with_distance(distances):
    distance = f64(*sorted(distances))
    weight = L.hardness_weight(distance)
    assert (weight.diff()[distance.diff() > 1e-9] > 0).all()
    assert weight[0] <= 1 + 1e-9 and weight[-1] >= 1 - 1e-9


# Eq. 7, 8 and 11
def test_eq7_margin():
    # [-1 - (-3)] - [-4 - (-5)] = 2 - 1 and [-2 - (-1)] - [-7 - (-3)] = -1 + 4
    assert_close(L.log_ratio_margin(f64(-1, -2), f64(-4, -7), f64(-3, -1), f64(-5, -3)), f64(1, 3), **EXACT)


@pytest.mark.parametrize(
    ("gaps", "eta"),
    [
        ([1, 10, 3, 2], 0.890975),  # mean 4, trimmed (2 + 3)/2: σ(2.5/4) / σ(1) = 0.651355 / 0.731059
        ([-1, -10, -3, -2], 0.890975),  # all signs turned, R/R̄ is the same
        ([-2, 0, 0, 6], 0.683940),  # mean 1, trimmed 0: σ(0) / σ(1) = 0.5 / 0.731059
        ([8, 8, 0], 1.118343),  # of tied extremes one goes: mean 16/3, 8 · 3/16 = 1.5: 0.817574 / 0.731059
        ([-1, 4], 1.0),  # fewer than three: nothing is trimmed
        ([-4, 4], 1.0),  # the same where the mean is 0
        ([5], 1.0),
        ([0.3] * 5, 1.0),  # all equal: trimming changes nothing
        ([0] * 5, 1.0),
        ([-3, 1, 1, 1], 1.321513),  # mean 0: the scale is mean |R| = 1.5: σ(1/1.5) / σ(0) = 0.660756 / 0.5
        ([1, -1, 4e-7, 0], 1.204825),  # mean 1e-7 is the scale: σ(2e-7/1e-7) / σ(1) = 0.880797 / 0.731059
        ([1, -1, 4e-9, 0], 1.0),  # mean 1e-9 is not: both means vanish against mean |R| = 0.5
        (
            [-3e-9, 1e-9, 1e-9, 1e-9],
            1.049958,
        ),  # mean |R| = 1.5e-9, scale 1e-8: σ(0.1) / σ(0) = 0.524979 / 0.5
    ],
)
def test_eq8_responsiveness(gaps, eta):
    responsiveness = L.policy_responsiveness(f64(*gaps).requires_grad_())
    assert responsiveness.item() == pytest.approx(eta, abs=1e-6)
    assert not responsiveness.requires_grad


@repeatable
@given(st.lists(st.floats(0.1, 10), min_size=1), st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_eq8_depends_on_neither_the_scale_nor_the_order_of_the_gaps(gaps, scale, random):
    eta = L.policy_responsiveness(f64(*gaps)).item()
    random.shuffle(gaps)
    assert L.policy_responsiveness(scale * f64(*gaps)).item() == pytest.approx(eta, rel=1e-9)


@pytest.mark.parametrize("size", [0.4, 15, 900])  # nats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eq8_is_one_where_gaps_are_the_rounding_of_log_probabilities(size, dtype):
    """The same numbers, added up in another order and in other groups, are the same but for their last digits."""
    tokens = -2 * size * torch.rand(2, 64, 40, generator=seeded(), dtype=dtype) / 40
    reference, policy = tokens.sum(-1), tokens.flip(-1).view(2, 64, 8, 5).sum(-1).cumsum(-1)[..., -1]
    logps, noise = (*policy, *reference), 1e-3 * size * torch.randn(64, generator=seeded()).to(dtype)
    assert L.policy_responsiveness(0.1 * L.log_ratio_margin(*logps)) != 1
    assert L.policy_responsiveness(L.reward_gaps(*logps)) == L.hanorec_loss(*logps, torch.ones(64)).responsiveness == 1
    assert L.RunningResponsiveness()(L.reward_gaps(*logps)) == 1
    real = (policy[0] + noise, *logps[1:])  # one real gap would do
    assert_close(L.reward_gaps(*real, beta=0.5), 0.5 * L.log_ratio_margin(*real), **EXACT)
    assert_close(L.reward_gaps(*real[:2], *map(torch.Tensor.double, real[2:])).float(), L.reward_gaps(*real).float())


def test_eq8_denominator_is_sigma_of_one_even_where_large_gaps_cancel():
    # A hundred gaps that sum to 1/64 exactly: R/R̄ exceeds 6e7, and the float32 mean of such numbers is not 1.
    gaps = torch.randint(-640_000, 640_000, (99,), generator=seeded(2))
    gaps = torch.cat([gaps, 1 - gaps.sum(0, keepdim=True)]) / 64  # the last is -64568: trimming it lifts the mean
    assert L.policy_responsiveness(gaps).item() == pytest.approx(1 / 0.731059, abs=1e-5)  # σ(∞) / σ(1)


def test_running_responsiveness_worked_by_hand():
    """Momentum 0.75, so that every number is exact; σ(0) = 1/2, σ(ln 3) = 3/4, σ(2 ln 3) = 9/10.

    1. Gaps −5, ln 3, ln 3, 9: the trimmed mean is m = ln 3 and so is M: η = 1, though the mean gap is another one.
    2. Gaps 0, 0: nothing is trimmed, m = 0. m − M = −ln 3 = −1.0986 is clipped to −1:
       η = σ(ln 3 − 1)/σ(ln 3) = σ(0.098612)/0.75 = 0.524633/0.75 = 0.699511. Then M = 0.75 ln 3 = 0.823959.
    3. m = M + ln 2 = 1.517106: e^−M = 3^−0.75 = 0.438691, so σ(M) = 1/1.438691 = 0.695076,
       σ(m) = 1/(1 + 0.438691/2) = 1/1.219346 = 0.820112, η = 1.179888. Then M = 0.823959 + ln 2/4 = 0.997246.
    4. m = M again: η = 1.
    """
    running = L.RunningResponsiveness(momentum=0.75)
    assert running.state_dict() == {}
    assert running(f64(-5, LN3, LN3, 9)).item() == 1
    assert running(f64(0, 0)).item() == pytest.approx(0.699511, abs=1e-6)
    assert running.state_dict() == {"mean": pytest.approx(0.823959, abs=1e-6)}
    assert running(f64(*[0.75 * LN3 + math.log(2)] * 3)).item() == pytest.approx(1.179888, abs=1e-6)
    assert running.mean == pytest.approx(0.997246, abs=1e-6)
    assert running(f64(*[running.mean] * 3)).item() == 1


def test_running_responsiveness_is_one_from_a_start_without_gaps():
    running = L.RunningResponsiveness()
    assert [running(torch.zeros(8)).item() for _ in range(3)] == [1, 1, 1]


def test_running_responsiveness_of_a_usual_training_scatters_around_one():
    """Gaps of a batch have a standard deviation of 0.3; their mean stays at 0 for 100 steps and then grows to 2."""
    noise = 0.3 * torch.randn(300, 16, generator=seeded())
    gaps = noise + torch.cat([torch.zeros(100), torch.linspace(0, 2, 200)])[:, None]
    running = L.RunningResponsiveness()
    eta = torch.stack([running(batch) for batch in gaps])
    assert eta[:100].mean().item() == pytest.approx(1, abs=0.01)
    assert eta[100:].mean().item() == pytest.approx(1.02, abs=0.02)  # it rises while the gap grows, and only a little
    assert eta.min() > 0.85 and eta.max() < 1.2
    own = torch.stack([L.policy_responsiveness(batch) for batch in gaps[:100]])  # Eq. 8 on the same batches
    assert own.min() < 0.3 and own.max() > 1.3


@repeatable
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9), min_size=1, max_size=6))
def test_running_responsiveness_stays_in_its_bounds_without_gradient(batches):
    running = L.RunningResponsiveness()
    for gaps in batches:
        eta = running(T(gaps).requires_grad_())
        assert not eta.requires_grad and eta.ndim == 0
        assert math.exp(-1) * 0.99 <= eta <= math.e * 1.01  # float32 holds M + 1 to 0.001 where M is 1e4


def test_running_responsiveness_reaches_its_bounds_where_the_policy_is_wrong():
    running = L.RunningResponsiveness()
    running(T([-200.0]))  # σ(−200) is 0 in float32
    assert running(T([200.0])).item() == pytest.approx(math.e, rel=1e-4)
    assert running(T([-1e4])).item() == pytest.approx(1 / math.e, rel=1e-4)


def test_running_responsiveness_goes_on_from_its_state_and_keeps_it_from_what_is_not_finite():
    running, gaps = L.RunningResponsiveness(), torch.randn(6, 8, generator=seeded())
    for batch in gaps[:3]:
        running(batch)
    resumed = L.RunningResponsiveness()
    resumed.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert [resumed(batch) for batch in gaps[3:]] == [running(batch) for batch in gaps[3:]]
    state = running.state_dict()
    with pytest.raises(L.NotFiniteError, match="^reward_gaps "):
        running(gaps[0] * math.nan)
    assert running.state_dict() == state
    running.load_state_dict({})
    assert running(gaps[5]) == 1


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_a_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match="^momentum "):
        L.RunningResponsiveness(momentum)


def test_eq11_beta():
    assert_close(L.adaptive_beta(f64(1, 3), 0.5, beta=0.2), f64(0.1, 0.3))  # 0.2 · 0.5 · λ
    assert_close(L.adaptive_beta(f64(1, 3), f64(0.5)[0]), f64(0.05, 0.15))  # β₀ = 0.1
    assert_close(L.adaptive_beta(f64(1, 3), 0.0), f64(1e-6, 1e-6))
    assert_close(L.adaptive_beta(f64(1, 3), 0.5, floor=0.1), f64(0.1, 0.15))


# Eq. 12
def test_eq12_loss_rewards_and_gradient():
    # Log-ratios: chosen [ln 3, 1], rejected [0, 1 - ln 3], so Δ = ln 3 twice; β = 4 · 0.25 · [1, 2].
    chosen, rejected = f64(LN3 - 2, -1).requires_grad_(), f64(-5, -4 - LN3).requires_grad_()
    out = L.hanorec_loss(chosen, rejected, f64(-2, -2), f64(-5, -5), f64(1, 2), beta=4.0, responsiveness=0.25)
    assert_close(out.losses, f64(-math.log(3 / 4), -math.log(9 / 10)))  # 0.287682 and 0.105361
    assert out.loss.item() == pytest.approx(0.196521, abs=1e-6)
    assert_close((out.beta, out.responsiveness), (f64(1.0, 2.0), f64(0.25)[0]))
    assert_close((out.chosen_rewards, out.rejected_rewards), (f64(LN3, 2), f64(0, 2 - 2 * LN3)))
    assert not out.chosen_rewards.requires_grad and not out.rejected_rewards.requires_grad
    # dL/dlog π_w = -β σ(-βΔ) / B: -1 · 1/4 / 2 and -2 · 1/10 / 2
    gradient = torch.autograd.grad(out.loss, (chosen, rejected))
    assert_close(gradient, (f64(-1 / 8, -1 / 10), f64(1 / 8, 1 / 10)))


def test_eq12_takes_responsiveness_from_the_reward_gaps_of_its_batch():
    out = loss_of_margins(f64(-2, 0, 0, 6), beta=0.5)
    assert out.responsiveness.item() == pytest.approx(0.683940, abs=1e-6)  # as in Eq. 8 above
    assert_close(out.beta, f64(*[0.341970] * 4), atol=1e-6, rtol=0)
    # R = β₀ Δ, not Δ: mean Δ = 5e-8 would be a scale, mean R = 5e-9 is not.
    assert loss_of_margins(f64(1, -1, 2e-7, 0), beta=0.1).responsiveness.item() == pytest.approx(1.0)


def test_adaptive_beta_is_a_constant_to_the_gradient():
    margins, hardness = f64(-2, 0, 0.5, 6).requires_grad_(), f64(1, 0.9, 1.1, 1).requires_grad_()
    for eta in (None, f64(0.7)[0].requires_grad_()):
        out = loss_of_margins(margins, hardness=hardness, responsiveness=eta)
        by_hand = -out.beta * torch.sigmoid(-out.beta * margins.detach()) / 4
        assert_close(*torch.autograd.grad(out.loss, margins), by_hand)
        assert {name for name, value in out._asdict().items() if value.requires_grad} == {"loss", "losses"}


def test_with_unit_hardness_and_responsiveness_the_loss_is_dpo():
    rows = torch.randn(4, 2, dtype=torch.float64, generator=seeded()) * 20
    dpo = -F.logsigmoid(0.1 * ((rows[0] - rows[1]) - (rows[2] - rows[3])))
    two = L.hanorec_loss(*rows, torch.ones(2))  # η = 1, as of two gaps nothing is trimmed
    assert_close((two.losses, two.loss), (dpo, dpo.mean()))
    assert_close(L.hanorec_loss(*rows.repeat(1, 3), torch.ones(6), responsiveness=1).losses, dpo.repeat(3))


def test_loss_ignores_the_order_of_pairs_and_a_shift_of_a_prompts_log_probabilities():
    rows, hardness = torch.randn(4, 6, generator=seeded()).double() * 10, torch.linspace(0.8, 1.2, 6)
    out, order = L.hanorec_loss(*rows, hardness), T([3, 5, 0, 2, 4, 1])
    permuted = L.hanorec_loss(*rows[:, order], hardness[order])
    assert_close((permuted.loss, permuted.losses), (out.loss, out.losses[order]))
    assert_close(tuple(L.hanorec_loss(*(rows + torch.linspace(-9, 9, 6)), hardness)), tuple(out))


@repeatable
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=16), st.floats(1e-6, 0.05))
def test_extreme_margins_leave_every_output_finite_and_beta_above_its_floor(values, floor):
    margins = T(values, requires_grad=True)  # float32
    out = loss_of_margins(margins, beta_floor=floor)
    out.loss.backward()
    assert all(value.isfinite().all() for value in (*out, margins.grad))
    assert 0 <= out.responsiveness <= 3.7183  # 1 / σ(-1) = 1 + e
    assert (out.beta >= T(floor)).all()


def test_loss_is_linear_where_the_policy_is_far_wrong_and_zero_where_it_is_far_right():
    assert_close(loss_of_margins(T([-1e4, 1e4])).losses, T([1000.0, 0.0]))  # β = 0.1, -log σ(∓1000)


# NoDO on the LoRA weights
class LoraLinear(nn.Module):
    """y = W x + b + B A x, laid out as PEFT does."""

    def __init__(self, size=6, rank=3):
        super().__init__()
        self.base_layer = nn.Linear(size, size)
        self.lora_A = nn.ModuleDict({k: nn.Linear(size, rank, bias=False) for k in ("default", "idle")})
        self.lora_B = nn.ModuleDict({k: nn.Linear(rank, size, bias=False) for k in ("default", "idle")})
        self.active_adapters, self.disable_adapters = ["default", "absent"], False

    def enable_adapters(self, enabled):
        self.disable_adapters = not enabled

    def forward(self, x):
        y = self.base_layer(x)
        return y if self.disable_adapters else y + self.lora_B["default"](self.lora_A["default"](x))


@pytest.fixture(params=["by hand", "peft"])
def model(request):
    torch.manual_seed(0)
    if request.param == "by hand":
        return nn.Sequential(LoraLinear(), nn.Tanh(), LoraLinear())
    config = LoraConfig(r=3, target_modules=["0", "2"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), config)
    model.add_adapter("idle", config)
    return model


X = torch.randn(5, 6, generator=seeded())


def matrices(model, adapter="default"):
    return [m for name, m in model.named_modules() if name.endswith((f"A.{adapter}", f"B.{adapter}"))]


def used(linear):
    """The weight that a forward of a matrix multiplies with."""
    return linear(torch.eye(linear.in_features)).T.detach()


def noisy(model, adapter="default"):
    """For A and B of every layer: does the forward see something else than the stored weight?"""
    return [not torch.equal(used(linear), linear.weight) for linear in matrices(model, adapter)]


def test_lora_noise_shows_in_the_forward_and_never_in_the_stored_weights(model):
    stored, clean = copy.deepcopy(model.state_dict()), model(X)
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        assert not torch.allclose(model(X), clean, atol=1e-3)
        assert_close(model.state_dict(), stored, **EXACT)
    assert_close((model.state_dict(), model(X)), (stored, clean), **EXACT)
    with pytest.raises(RuntimeError, match="forward failed"), L.perturbed_lora(model, 0.1):
        raise RuntimeError("forward failed")
    assert_close((model.state_dict(), model(X)), (stored, clean), **EXACT)
    assert noisy(model) == [False] * 4


def gradients(model, x, recompute="no"):
    """y = model(x), and the gradients of Σ y² with respect to A and B of every layer and to x."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x) if recompute == "no" else checkpoint(model, x, use_reentrant=recompute == "reentrant")
    y.pow(2).sum().backward()
    return [y.detach(), x.grad, *(linear.weight.grad for linear in matrices(model))]


@pytest.mark.parametrize("recompute", ["no", "reentrant", "not reentrant"])
def test_gradients_are_those_at_the_noisy_weights_and_reach_the_stored_ones(model, recompute):
    twin = copy.deepcopy(model)  # it will store the noisy weights
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        for linear, target in zip(matrices(model), matrices(twin), strict=True):
            target.weight.data = used(linear)
        found = gradients(model, X, recompute)
    expected = gradients(twin, X)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().sum() > 0
        assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_lora_noise_is_not_lost_in_the_forward_that_reentrant_checkpointing_computes_again(model):
    """Noise that is on around the forward alone, as in the authors' release, is gone
    when the backward computes the forward again: activations and gradients are then those of clean weights."""
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        kept = gradients(model, X)
        assert_close(gradients(model, X, "reentrant"), kept, **EXACT)
        noise = [used(linear) - linear.weight.detach() for linear in matrices(model)]

    def in_place(recompute):
        model.zero_grad()
        x = X.clone().requires_grad_()
        with torch.no_grad():
            for linear, own in zip(matrices(model), noise, strict=True):
                linear.weight.data.add_(own)  # .data: autograd would refuse a changed weight, and so hide the loss
        y = model(x) if recompute == "no" else checkpoint(model, x, use_reentrant=True)
        with torch.no_grad():
            for linear, own in zip(matrices(model), noise, strict=True):
                linear.weight.data.sub_(own)
        y.pow(2).sum().backward()
        return [y.detach(), x.grad, *(linear.weight.grad for linear in matrices(model))]

    lost = in_place("reentrant")
    assert_close(lost[0], kept[0])  # the forward had the noise
    for ours, theirs in zip(kept[1:], lost[1:], strict=True):
        assert (ours - theirs).norm() > 0.05 * ours.norm()
    # Without noise in the forward that is computed again, what is left of it is the gradient that reaches y.
    x = X.clone().requires_grad_()
    clean = torch.autograd.grad(model(x), [x, *(linear.weight for linear in matrices(model))], 2 * kept[0])
    assert_close(lost[1:], list(clean))


def test_lora_noise_keeps_to_autocast_as_the_weight_does(model):
    """Types are those of a model that stores the noisy weights, and what bfloat16 rounds off is about as much."""
    twin = copy.deepcopy(model)
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        for linear, target in zip(matrices(model), matrices(twin), strict=True):
            target.weight.data = used(linear)
        exact = gradients(model, X)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = gradients(model, X), gradients(twin, X)
            assert {used(linear).dtype for linear in matrices(model)} == {torch.bfloat16}
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for value, ours, theirs in zip(exact, found, expected, strict=True):
        assert 0 < (ours - value).norm() < 2 * (theirs - value).norm() < 0.1 * value.norm()


def test_lora_noise_in_a_model_of_another_precision(model):
    """Weights may be stored in float32 and used in bfloat16, as FSDP does: noise keeps to their use."""
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        exact = model(X)
        model.to(torch.bfloat16)
        found = model(X.bfloat16())
    clean = model(X.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.02 * exact.norm() < 0.1 * (clean - exact).norm()


def test_lora_noise_is_gaussian_of_the_given_std_and_independent_on_a_and_b():
    layer = LoraLinear(size=500, rank=40)
    with L.perturbed_lora(layer, 0.05, generator=seeded()):
        noise = torch.stack([(used(m) - m.weight.detach()).flatten() for m in matrices(layer)])
    assert (noise.mean(1).abs() < 4 * 0.05 / math.sqrt(20_000)).all()
    assert_close(noise.std(1), T([0.05, 0.05]), rtol=0.02, atol=0)
    assert_close((noise / 0.05).pow(4).mean(1), T([3.0, 3.0]), rtol=0, atol=0.2)  # kurtosis
    assert torch.corrcoef(noise)[0, 1].abs() < 0.03


def test_lora_noise_follows_its_generator_and_is_drawn_once_a_context(model):
    def forward(generator):
        with L.perturbed_lora(model, 0.1, generator=generator):
            assert_close(model(X), model(X), **EXACT)
            return model(X)

    generator = seeded(1)
    first, second = forward(generator), forward(generator)
    assert_close(forward(seeded(1)), first, **EXACT)
    assert (first != second).all()
    quiet = seeded()
    with L.perturbed_lora(model, 0.0, generator=quiet), L.perturbed_lora(nn.Linear(2, 2), 0.0):
        assert noisy(model) == [False] * 4
    assert torch.equal(quiet.get_state(), seeded().get_state())  # std 0 draws nothing


def test_a_context_in_another_adds_its_noise_and_takes_away_no_more(model):
    def weights():
        return [used(linear) for linear in matrices(model)]

    stored = weights()
    with L.perturbed_lora(model, 0.1, generator=seeded(1)):
        outer = weights()
        with L.perturbed_lora(model, 0.1, generator=seeded(2)):
            both = weights()
        assert_close(weights(), outer, **EXACT)
    assert_close(weights(), stored, **EXACT)
    with L.perturbed_lora(model, 0.1, generator=seeded(2)):
        inner = weights()
    for all_of_it, one, other, clean in zip(both, outer, inner, stored, strict=True):
        assert_close(all_of_it - clean, (one - clean) + (other - clean))


def test_a_context_that_cannot_draw_all_its_noise_leaves_none(model, monkeypatch):
    draw, calls = L._gaussian, []

    def fail_at_the_third(like, generator):
        calls.append(like)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return draw(like, generator)

    monkeypatch.setattr(L, "_gaussian", fail_at_the_third)
    with pytest.raises(RuntimeError, match="out of memory"), L.perturbed_lora(model, 0.1):
        pass
    assert noisy(model) == [False] * 4


def test_disabled_layers_and_adapters_that_are_not_active_get_no_noise(model):
    next(m for m in model.modules() if hasattr(m, "lora_A")).enable_adapters(False)
    with L.perturbed_lora(model, 0.1):
        assert noisy(model) == [False, False, True, True]
        assert noisy(model, "idle") == [False] * 4


# Errors
def test_what_is_not_finite_has_an_error_of_its_own():
    assert issubclass(L.NotFiniteError, ValueError)
    bad, ones = T([0.0, math.nan]), torch.ones(2)
    not_finite = [
        lambda: L.response_logps(T([[[0.0, math.nan]]]), T([[0]])),
        lambda: L.hanorec_loss(bad, ones, ones, ones, ones),
        lambda: L.adaptive_beta(ones, math.inf),
        lambda: L.hardness_weight(ones, mean_distance=math.nan),
    ]
    for call in not_finite:
        with pytest.raises(L.NotFiniteError):
            call()
    plain = [
        lambda: L.adaptive_beta(ones, 1.0, beta=math.nan),
        lambda: L.perturbed_logits(ones, math.inf),
        lambda: L.hanorec_loss(ones, ones[:1], ones, ones, ones),
    ]
    for call in plain:
        with pytest.raises(ValueError) as error:
            call()
        assert error.type is ValueError


TWO = torch.zeros(2)
ITEMS = dict.fromkeys(("chosen_similarities", "rejected_similarities"), torch.zeros(2, 4))
PAIRS = dict.fromkeys(("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"), TWO)
LEGAL = {
    L.response_logps: {"logits": torch.zeros(2, 3, 5), "labels": torch.ones(2, 3).long(), "noise_std": 0.1},
    L.neighbourhood_distance: ITEMS | {"temperature": 1.0},
    L.hardness_weight: {"distance": TWO, "mean_distance": 0.5},
    L.log_ratio_margin: PAIRS,
    L.reward_gaps: PAIRS | {"beta": 0.1},
    L.policy_responsiveness: {"reward_gaps": TWO},
    L.adaptive_beta: {"hardness": TWO, "responsiveness": 1.0, "beta": 0.1, "floor": 1e-6},
    L.hanorec_loss: PAIRS | {"hardness": TWO, "responsiveness": 1.0, "beta": 0.1, "beta_floor": 1e-6},
    L.perturbed_lora: {"model": LoraLinear(), "noise_std": 0.1},
}


def illegal(name, value):
    if name == "model":
        convolution = LoraLinear()
        convolution.lora_A["default"] = nn.Conv1d(6, 3, 1)
        return [nn.Linear(2, 2), convolution]
    if name == "labels":
        return [value[:, 1:], value + 4, value - 2, value.float(), value.bool()]
    if isinstance(value, torch.Tensor):  # empty, an axis too many, nan, infinite
        return [value[:0], value[None], value * math.nan, value + math.inf]
    also = {"noise_std": [-0.1], "mean_distance": [TWO], "responsiveness": [TWO]}.get(name, [0.0, -1.0])
    return [math.nan, math.inf, *also]


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [(f, name, bad) for f, legal in LEGAL.items() for name in legal for bad in illegal(name, legal[name])],
)
def test_an_error_names_its_argument(function, name, value):
    with pytest.raises(ValueError, match=f"^{name} "):  # noqa: SIM117
        with function(**LEGAL[function] | {name: value}):  # a context manager raises as it is entered
            pass


def test_shapes_of_tokens_are_named():
    logits, labels = torch.zeros(3, 5), torch.ones(3).long()
    for bad in logits[None], logits[0], logits[:, :0]:
        with pytest.raises(ValueError, match="^logits "):
            L.token_logps(bad, labels)
    for bad in labels[:1], labels[None], labels.float(), labels.bool():
        with pytest.raises(ValueError, match="^labels "):
            L.token_logps(logits, bad)
    for bad in -0.1, math.nan, math.inf:
        with pytest.raises(ValueError, match="^noise_std "):
            L.perturbed_logits(logits, bad)


@pytest.mark.parametrize("function", [L.neighbourhood_distance, L.log_ratio_margin, L.reward_gaps, L.hanorec_loss])
def test_a_batch_of_another_size_is_an_error_that_names_it(function):
    function(**LEGAL[function])
    for name in [name for name, value in LEGAL[function].items() if isinstance(value, torch.Tensor)][1:]:
        with pytest.raises(ValueError, match=f"^{name} "):  # one row would broadcast
            function(**LEGAL[function] | {name: LEGAL[function][name][:1]})

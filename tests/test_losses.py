"""HaNoRec's equations, each against numbers worked out by hand, and what must hold for every input."""

import copy
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


def test_log_probabilities_keep_no_second_copy_of_the_logits():
    """What autograd keeps for the backward: the logits themselves (with noise, the noisy ones) and small things."""
    for std in 0.0, 0.1:
        logits = torch.randn(4, 6, 500, generator=seeded(), requires_grad=True)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.setdefault(t.data_ptr(), t), lambda t: t):
            logp = L.response_logps(logits, torch.randint(500, (4, 6), generator=seeded()), noise_std=std)
        assert sum(t.numel() >= logits.numel() for t in kept.values()) == 1
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


def test_eq8_denominator_is_sigma_of_one_even_where_large_gaps_cancel():
    # A hundred gaps that sum to 1/64 exactly: R/R̄ exceeds 6e7, and the float32 mean of such numbers is not 1.
    gaps = torch.randint(-640_000, 640_000, (99,), generator=seeded(2))
    gaps = torch.cat([gaps, 1 - gaps.sum(0, keepdim=True)]) / 64  # the last is -64568: trimming it lifts the mean
    assert L.policy_responsiveness(gaps).item() == pytest.approx(1 / 0.731059, abs=1e-5)  # σ(∞) / σ(1)


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


def noisy(model, adapter="default"):
    """For A and B of every layer: does the forward see something else than the stored weight?"""
    return [linear.weight is not linear._parameters["weight"] for linear in matrices(model, adapter)]


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


@pytest.mark.parametrize("recompute", ["no", "reentrant", "not reentrant"])
def test_gradients_are_those_at_the_noisy_weights_and_reach_the_stored_ones(model, recompute):
    twin, x = copy.deepcopy(model), X.clone().requires_grad_()  # the twin will store the noisy weights
    with L.perturbed_lora(model, 0.1, generator=seeded()):
        for linear, target in zip(matrices(model), matrices(twin), strict=True):
            target.weight.data = linear.weight.detach().clone()
        y = model(x) if recompute == "no" else checkpoint(model, x, use_reentrant=recompute == "reentrant")
        y.pow(2).sum().backward()
    twin(X).pow(2).sum().backward()
    assert_close(y, twin(X))
    for linear, target in zip(matrices(model), matrices(twin), strict=True):
        assert target.weight.grad.abs().sum() > 0
        assert_close(linear.weight.grad, target.weight.grad)


def test_lora_noise_is_gaussian_of_the_given_std_and_independent_on_a_and_b():
    layer = LoraLinear(size=500, rank=40)
    with L.perturbed_lora(layer, 0.05, generator=seeded()):
        noise = torch.stack([(m.weight - m._parameters["weight"]).flatten() for m in matrices(layer)])
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
    stored, inner = [m.weight for m in matrices(model)], seeded(2)
    with L.perturbed_lora(model, 0.1):
        outer = [m.weight for m in matrices(model)]
        with L.perturbed_lora(model, 0.1, generator=inner):
            added = [m.weight - before for m, before in zip(matrices(model), outer, strict=True)]
        assert all(m.weight is before for m, before in zip(matrices(model), outer, strict=True))
    with L.perturbed_lora(model, 0.1, generator=seeded(2)):
        assert_close(added, [m.weight - before for m, before in zip(matrices(model), stored, strict=True)])


def test_disabled_layers_and_adapters_that_are_not_active_get_no_noise(model):
    next(m for m in model.modules() if hasattr(m, "lora_A")).enable_adapters(False)
    with L.perturbed_lora(model, 0.1):
        assert noisy(model) == [False, False, True, True]
        assert noisy(model, "idle") == [False] * 4


# Errors

TWO = torch.zeros(2)
ITEMS = dict.fromkeys(("chosen_similarities", "rejected_similarities"), torch.zeros(2, 4))
PAIRS = dict.fromkeys(("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"), TWO)
LEGAL = {
    L.response_logps: {"logits": torch.zeros(2, 3, 5), "labels": torch.ones(2, 3).long(), "noise_std": 0.1},
    L.neighbourhood_distance: ITEMS | {"temperature": 1.0},
    L.hardness_weight: {"distance": TWO, "mean_distance": 0.5},
    L.log_ratio_margin: PAIRS,
    L.policy_responsiveness: {"reward_gaps": TWO},
    L.adaptive_beta: {"hardness": TWO, "responsiveness": 1.0, "beta": 0.1, "floor": 1e-6},
    L.hanorec_loss: PAIRS | {"hardness": TWO, "responsiveness": 1.0, "beta": 0.1, "beta_floor": 1e-6},
    L.perturbed_lora: {"model": LoraLinear(), "noise_std": 0.1},
}


def illegal(name, value):
    if name == "model":
        return [nn.Linear(2, 2)]
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


@pytest.mark.parametrize("function", [L.neighbourhood_distance, L.log_ratio_margin, L.hanorec_loss])
def test_a_batch_of_another_size_is_an_error_that_names_it(function):
    function(**LEGAL[function])
    for name in [name for name, value in LEGAL[function].items() if isinstance(value, torch.Tensor)][1:]:
        with pytest.raises(ValueError, match=f"^{name} "):  # one row would broadcast
            function(**LEGAL[function] | {name: LEGAL[function][name][:1]})

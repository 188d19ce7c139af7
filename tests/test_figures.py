"""Figures of the published formulas: fixed inputs, and what Eqs. 5 to 12 give for them.

The expected numbers were computed in float64 with Python's math module from the formulas alone (δ, λ, η, β and the loss
as docs/paper.md states them), before and apart from this project's functions, and rounded to nine digits.
"""

import pytest
import torch
from test_losses import LoraLinear, seeded
from torch.testing import assert_close

from hanorec import losses as L


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


CHOSEN_SIMILARITIES = f64(
    [[0.91, 0.88, 0.73, 0.70], [0.66, 0.64, 0.41, 0.40], [0.95, 0.31, 0.30, 0.12], [0.80, 0.79, 0.78, 0.77],
     [0.52, 0.49, 0.10, 0.05]]
)  # fmt: skip
REJECTED_SIMILARITIES = f64(
    [[0.90, 0.86, 0.75, 0.69], [0.93, 0.50, 0.44, 0.21], [0.60, 0.58, 0.55, 0.50], [0.81, 0.60, 0.33, 0.32],
     [0.97, 0.96, 0.40, 0.02]]
)  # fmt: skip
LOGPS = dict(
    policy_chosen=f64([-7.25, -9.5, -12.0, -6.75, -10.125]),
    policy_rejected=f64([-9.0, -9.25, -13.5, -6.25, -16.0]),
    reference_chosen=f64([-7.5, -10.0, -11.25, -7.75, -10.0]),
    reference_rejected=f64([-7.875, -9.0, -14.0, -6.625, -12.5]),
)
MARGIN = [1.375, 0.75, -1.25, 0.625, 3.375]
RESPONSIVENESS = 0.983688867
FIGURES = {  # by τ: δ, λ, β, the loss of each pair, and their mean
    1.0: (
        [0.007281482, 0.099346012, 0.164440638, 0.099599678, 0.079287819],
        [0.960453711, 1.004466149, 1.035475173, 1.004587225, 0.994887804],
        [0.094478762, 0.098808217, 0.10185854, 0.098820127, 0.097866006],
        [0.630301071, 0.656780408, 0.7588338, 0.662742642, 0.54157383],
        0.65004635,
    ),
    0.05: (
        [0.059902434, 0.568304093, 0.647410642, 0.759215564, 0.135472892],
        [0.848606846, 1.051955368, 1.08170764, 1.122503497, 0.879661644],
        [0.083476511, 0.103479678, 0.106406376, 0.110419419, 0.086531337],
        [0.637402988, 0.655095022, 0.761860928, 0.659236328, 0.557749036],
        0.65426886,
    ),
}


@pytest.mark.parametrize("temperature", FIGURES)
def test_figures_of_the_published_formulas(temperature):
    distance, hardness, beta, losses, loss = FIGURES[temperature]
    close = dict(rtol=0, atol=2e-9)
    delta = L.neighbourhood_distance(CHOSEN_SIMILARITIES, REJECTED_SIMILARITIES, temperature=temperature)
    assert_close(delta, f64(distance), **close)
    assert_close(L.hardness_weight(delta), f64(hardness), **close)
    margin = L.log_ratio_margin(**LOGPS)
    assert_close(margin, f64(MARGIN), **close)
    assert_close(L.policy_responsiveness(0.1 * margin), torch.tensor(RESPONSIVENESS).double(), rtol=0, atol=1e-7)
    output = L.hanorec_loss(**LOGPS, hardness=L.hardness_weight(delta), beta=0.1)
    assert_close(output.beta, f64(beta), **close)
    assert_close(output.losses, f64(losses), **close)
    assert output.loss.item() == pytest.approx(loss, abs=2e-9)


def test_figures_of_the_published_noise_on_lora_weights():
    """x = (1, 2), A = (0.5, −1) and B = (2, −0.25)ᵀ, so that B A x = −1.5 · B = (−3, 0.375). With noise of σ = 0.1 and
    ε drawn for A, then for B: (B + 0.1 ε_B) · ((0.5 + 0.1 ε_1) · 1 + (−1 + 0.1 ε_2) · 2), worked out below in floats."""
    layer = LoraLinear(size=2, rank=1).double()
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.base_layer.bias.zero_()
        layer.lora_A["default"].weight.copy_(f64([[0.5, -1.0]]))
        layer.lora_B["default"].weight.copy_(f64([[2.0], [-0.25]]))
    x = f64([[1.0, 2.0]])
    assert_close(layer(x), f64([[-3.0, 0.375]]))
    source = seeded(3)
    (a1, a2), (b1, b2) = (torch.randn(2, dtype=torch.float64, generator=source).tolist() for _ in range(2))
    inner = (0.5 + 0.1 * a1) * 1.0 + (-1.0 + 0.1 * a2) * 2.0
    expected = [[(2.0 + 0.1 * b1) * inner, (-0.25 + 0.1 * b2) * inner]]
    with L.perturbed_lora(layer, 0.1, generator=seeded(3)):
        assert_close(layer(x), f64(expected), rtol=0, atol=1e-12)

"""LoRA on a backbone, and the dropout before it."""

from __future__ import annotations

import pytest
import torch

from hanorec.backbone import Dropout, add_lora


def test_dropout_zeroes_a_share_p_independently_and_scales_the_rest():
    torch.manual_seed(0)
    drop, n = Dropout(0.05), 400_000
    fallen = torch.stack([(drop(torch.ones(n)) == 0).double() for _ in range(2)])
    # A share of n draws has a standard deviation of sqrt(p (1 - p) / n) = 0.00034.
    assert fallen.mean(1).sub(0.05).abs().max() < 5 * 0.00034
    assert torch.corrcoef(fallen)[0, 1].abs() < 0.01  # from call to call
    neighbours = torch.corrcoef(torch.stack([fallen[0, :-1], fallen[0, 1:]]))[0, 1]
    assert neighbours.abs() < 0.01  # and from place to place
    out = drop(torch.full((n,), 3.0))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 3 / 0.95]))
    assert out.mean().item() == pytest.approx(3, rel=2e-3)


def test_dropouts_gradient_falls_where_its_value_does():
    torch.manual_seed(0)
    x = torch.randn(3, 40, 7, requires_grad=True)
    out = Dropout(0.2)(x)
    (out * 2).sum().backward()
    assert (out == 0).any()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2 / 0.8))


def test_dropout_is_off_in_evaluation_and_follows_the_seed():
    x, drop = torch.randn(50, 20), Dropout(0.1)
    drop.eval()
    assert drop(x).equal(x)
    drop.train()
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert drop(x).equal(first) and not drop(x).equal(first)


def test_lora_trains_the_language_model_alone(encoder):
    model = add_lora(encoder.backbone.model, rank=4, dropout=0.3)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("text_model" in name and "lora_" in name for name in trained)
    assert {type(m) for name, m in model.named_modules() if name.endswith("lora_dropout.default")} == {Dropout}

"""An objective is a function chosen by name, with the options that it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hanorec.losses import RunningResponsiveness
from hanorec.related.objectives import OBJECTIVES, RunningGaps
from hanorec.training.objective import choose_objective, default_beta, takes

LOGPS = torch.tensor([[-3.0, -4.0], [-5.0, -2.0], [-4.0, -4.5]])
REFERENCE = torch.tensor([[-3.5, -3.5], [-4.0, -3.0], [-4.0, -4.0]])
TABLES = dict(lengths=torch.full((3, 2), 2.0), hardness=torch.ones(3, 1))


def options(**changes):
    base = dict(loss="hanorec", recipe="paper", beta=0.3, label_smoothing=0.2, gamma=0.7, alpha=0.4, keep=0.9)
    return SimpleNamespace(**base | changes)


@pytest.mark.parametrize(
    "loss, own",
    [
        ("dpo", {}),
        ("cdpo", {"label_smoothing": 0.2}),
        ("simpo", {"gamma": 0.7}),
        ("s-dpo", {}),
        ("hanorec", {}),
        ("hanorec-softmax", {}),
        ("grpo", {}),
    ],
)
def test_an_objective_gets_beta_and_its_own_options(loss, own):
    objective, state = choose_objective(options(loss=loss))
    expected = OBJECTIVES[loss](LOGPS, REFERENCE, **TABLES, beta=0.3, **own)
    assert objective(LOGPS, REFERENCE, **TABLES).loss.equal(expected.loss) and state is None


@pytest.mark.parametrize("loss", ["beta-dpo", "dama"])
def test_margins_are_kept_from_batch_to_batch(loss):
    objective, state = choose_objective(options(loss=loss))
    assert isinstance(state, RunningGaps) and state.mean == 0
    objective(LOGPS, REFERENCE, **TABLES, generator=torch.Generator().manual_seed(0))
    assert state.mean != 0  # moved by the batch, so the objective uses this very state


def test_the_calibrated_recipe_has_a_running_responsiveness():
    assert isinstance(choose_objective(options(recipe="calibrated"))[1], RunningResponsiveness)
    assert choose_objective(options(loss="dpo", recipe="calibrated"))[1] is None


def test_beta_is_that_of_the_objectives_paper_if_not_given():
    betas = {"hanorec": 0.1, "dpo": 0.1, "simpo": 2.0, "s-dpo": 1.0, "grpo": 0.04}
    assert {loss: default_beta(loss) for loss in betas} == betas


def test_what_an_objective_uses():
    assert {loss for loss in OBJECTIVES if takes(loss, "hardness")} == {"hanorec", "hanorec-softmax", "dama"}
    assert {loss for loss in OBJECTIVES if takes(loss, "responsiveness")} == {"hanorec", "hanorec-softmax"}
    assert {loss for loss in OBJECTIVES if takes(loss, "generator")} == {"beta-dpo", "dama"}
    assert {loss for loss in OBJECTIVES if takes(loss, "lengths")} == {"simpo", "orpo", "grpo"}

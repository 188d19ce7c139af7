"""The objective of a DPO run, chosen by name.

In: the options. Out: one function of `preference_losses` with the options that it takes filled in, and the state that
it keeps from batch to batch, if any, for checkpoints.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from hanorec.losses import LossOutput, RunningResponsiveness
from hanorec.related.objectives import OBJECTIVES, RunningGaps

OWN_OPTIONS = ("label_smoothing", "gamma", "alpha", "keep")


def choose_objective(options: Any) -> tuple[Callable[..., LossOutput], RunningResponsiveness | RunningGaps | None]:
    """The objective as a function of policy, reference, lengths and hardness (and, where it takes them, responsiveness
    or generator), and its running state: that of Eq. 8 for HaNoRec's calibrated recipe, margins for β-DPO and DAMA."""
    function = OBJECTIVES[options.loss]
    own = {name: getattr(options, name) for name in OWN_OPTIONS if takes(options.loss, name)}
    if takes(options.loss, "running"):
        gaps = RunningGaps()
        return partial(function, beta=options.beta, running=gaps, **own), gaps
    calibrated = takes(options.loss, "responsiveness") and options.recipe == "calibrated"
    return partial(function, beta=options.beta, **own), RunningResponsiveness() if calibrated else None


def takes(loss: str, argument: str) -> bool:
    """Whether an objective uses an argument. All have the same four; what one does not use is None there."""
    parameters = inspect.signature(OBJECTIVES[loss]).parameters
    unused = argument in ("lengths", "hardness") and parameters[argument].default is None
    return argument in parameters and not unused


def default_beta(loss: str) -> float:
    """The β of an objective's paper."""
    return inspect.signature(OBJECTIVES[loss]).parameters["beta"].default

"""The study's catalogues, SFT starts, worlds and methods: what is compared, and where.

Names and options of the scripts alone; `commands.py` makes commands of them. A world is a catalogue, an SFT start, and
the views that a model is measured in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

REAL = "ml-100k"  # MovieLens-100K with posters, or any other dataset folder, which --data gives
_LONG = dict(warm_per_cell=21, cold_per_cell=20, longest_row=21, shortest_row=3, shortest_cold=2)
CATALOGUES: dict[str, dict[str, Any]] = {  # arguments of `hanorec.data.toy.World`
    "toy": {},
    "near": dict(near=1.0),  # the same, with lists of near items alone
    "exchanged": dict(exchanged=0.75),  # the same rows with images that are mostly another item's
    "long": _LONG,  # histories of 2 to 20 items, warm and cold
    "long-exchanged": _LONG | dict(exchanged=0.75),
    "small": dict(warm_per_cell=6, cold_per_cell=2, users=60, cold_users=10, shortest_row=4, longest_row=6),
}

# SFT starts: catalogue, and options of train_sft.py. Steps of the long ones are what five minutes allow. Starts with
# --layers all train the vision tower, too, as every SFT did when they were first made.
TITLES = "whole-titles"  # --backbone of a real start: one that tools/fit_vocabulary.py makes of the dataset
_VISION = ("--layers", "all")
_TWENTY = ("--history", "20")
_LONG_FROZEN = (*_TWENTY, "--windows", "nested", "--max-steps", "600")
_EARLY = ("--max-steps", "500", "--windows", "every", "--validate-every", "200", *_VISION)
_SMALL = ("--max-steps", "4", "--batch-size", "4", "--validate-every", "2", "--validate-users", "6", "--log-every", "1")
_EIGHT_PASSES = (*_TWENTY, "--backbone", TITLES, "--windows", "nested", "--epochs", "8", "--batch-size", "20",
                 "--validate-users", "934", "--validate-every", "3000", "--log-every", "100",
                 *_VISION)  # fmt: skip
STARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "full": ("toy", ("--epochs", "2")),
    "full-vision": ("toy", ("--epochs", "2", "--windows", "every", *_VISION)),
    "early": ("toy", _EARLY),
    "biased": ("exchanged", _EARLY),
    "long-unbiased": ("long", (*_LONG_FROZEN, *_VISION)),
    "long-frozen": ("long", _LONG_FROZEN),
    "long-biased": ("long-exchanged", (*_LONG_FROZEN, *_VISION)),
    "small": ("small", _SMALL),
    "ml-100k-eight": (REAL, _EIGHT_PASSES),
    "ml-100k-early": (REAL, (*_EIGHT_PASSES, "--max-steps", "1000")),
}


Views = dict[str, tuple[str, tuple[str, ...]]]  # what a model is measured on: a catalogue and options of evaluate.py


class World(NamedTuple):
    """What methods are compared in.

    data: the catalogue of training after SFT. windows: how many of its windows are trained on. views: by name.
    history: most items in a prompt, of all training. options: of all training after the start. preference: of
    train_dpo.py alone. methods: those of the grid, None for all.
    """

    start: str
    data: str
    windows: int
    views: Views
    history: int = 5
    options: tuple[str, ...] = ()
    preference: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None


def _test_and_cold(data: str, *more: str) -> Views:
    return {
        "test": (data, ("--split", "test", *more)),
        "cold": (data, ("--split", "cold", "--modality", "full", "blank", *more)),
    }


_WHOLE = ("sft", "sft-continued", "dpo", "hanorec-paper", "hanorec-calibrated")  # no part of HaNoRec alone
_WHOLE_15 = (*_WHOLE, "s-dpo-15", "hanorec-15-calibrated")
_REAL_TEST: Views = {"test": (REAL, ("--split", "test", "--modality", "full", "blank"))}
WORLDS = {
    "toy": World("full", "toy", 4000, _test_and_cold("toy"), methods=_WHOLE),
    "toy-vision": World("full-vision", "toy", 4000, _test_and_cold("toy"), methods=_WHOLE),
    "early": World("early", "toy", 4000, _test_and_cold("toy")),
    "biased": World("biased", "toy", 4000, _test_and_cold("toy")),
    "long-biased": World("long-biased", "long", 2000, _test_and_cold("long"), 20),
    "long-unbiased": World("long-unbiased", "long", 2000, _test_and_cold("long"), 20, methods=_WHOLE),
    "long-frozen": World("long-frozen", "long", 2000, _test_and_cold("long"), 20, methods=_WHOLE),
    # 95 of 100 negatives are of another theme and style; `near` ranks the target among items that share one of the two.
    "hard": World(
        "early", "toy", 4000,
        {"test": ("toy", ("--split", "test")), "near": ("near", ("--split", "test", "--negatives", "listed"))},
        preference=("--negatives", "listed"),
    ),
    "ml-100k": World("ml-100k-eight", REAL, 4000, _REAL_TEST, 20, methods=_WHOLE_15),
    "ml-100k-early": World("ml-100k-early", REAL, 4000, _REAL_TEST, 20, methods=_WHOLE_15),
    # Seconds a cell; shows that the study works, and no more. Not in the grid.
    "small": World("small", "small", 16, _test_and_cold("small", "--users", "12", "--candidates", "8"), 5, _SMALL),
}  # fmt: skip
GRID = tuple(name for name in WORLDS if name != "small" and WORLDS[name].data != REAL)

_PAPER = ("--loss", "hanorec", "--recipe", "paper")
_CALIBRATED = ("--loss", "hanorec", "--recipe", "calibrated")
_SOFTMAX = ("--loss", "hanorec-softmax", "--rejected", "15", "--beta", "1")  # with the β of S-DPO
_POLICY = ("--negatives", "policy", "--rejected", "4", "--beta", "1")
SFT_METHODS = {  # options of train_sft.py
    "sft-continued": ("--lora", "on", "--learning-rate", "1e-4"),  # the control: the same adapter, windows and steps
    "sft-continued-all": ("--lora", "off", *_VISION, "--learning-rate", "1e-4"),
}
MAIN = {  # options of train_dpo.py
    "dpo": ("--loss", "dpo"),
    "hanorec-paper": _PAPER,
    "hanorec-calibrated": _CALIBRATED,
    "s-dpo-15": ("--loss", "s-dpo", "--rejected", "15"),
    "hanorec-15-paper": (*_SOFTMAX, "--recipe", "paper"),
    "hanorec-15-calibrated": (*_SOFTMAX, "--recipe", "calibrated"),
    "dpo-anchored": ("--loss", "dpo", "--sft-weight", "1"),
    "hanorec-paper-anchored": (*_PAPER, "--sft-weight", "1"),
    "hanorec-calibrated-anchored": (*_CALIBRATED, "--sft-weight", "1"),
    "dpo-policy": ("--loss", "dpo", *_POLICY),
    "hanorec-paper-policy": (*_PAPER, *_POLICY),
    "hanorec-calibrated-policy": (*_CALIBRATED, *_POLICY),
    "paper-no-hardness": (*_PAPER, "--hardness", "off"),
    "paper-no-responsiveness": (*_PAPER, "--responsiveness", "off"),
    "paper-no-noise": (*_PAPER, "--noise", "none"),
    "calibrated-no-hardness": (*_CALIBRATED, "--hardness", "off"),
    "calibrated-no-responsiveness": (*_CALIBRATED, "--responsiveness", "off"),
    "calibrated-no-noise": (*_CALIBRATED, "--noise", "none"),
    "noise-logits-0.02": (*_PAPER, "--noise-std", "0.02"),
    "noise-logits-0.05": (*_PAPER, "--noise-std", "0.05"),
    "noise-lora-0.02": (*_PAPER, "--noise", "lora", "--noise-std", "0.02"),
    "noise-lora-0.05": (*_PAPER, "--noise", "lora", "--noise-std", "0.05"),
    "noise-lora-0.1": (*_PAPER, "--noise", "lora", "--noise-std", "0.1"),
    "beta-dpo": ("--loss", "beta-dpo"),
    "dama": ("--loss", "dama"),
    "simpo": ("--loss", "simpo"),
    "grpo": ("--loss", "grpo", "--rejected", "15"),
}
SENSITIVITY = {  # one setting of the calibrated recipe at a time; its own are β₀ 0.1, K 10, τ 0.05, σ_n 0.1
    **{f"beta-{value}": (*_CALIBRATED, "--beta", value) for value in ("0.03", "0.3", "1")},
    **{f"neighbours-{value}": (*_CALIBRATED, "--neighbours", value) for value in ("3", "30")},
    **{f"temperature-{value}": (*_CALIBRATED, "--temperature", value) for value in ("0.02", "0.2", "1")},
    **{f"noise-{value}": (*_CALIBRATED, "--noise-std", value) for value in ("0.03", "0.3", "1")},
}
METHODS = {"sft": (), **SFT_METHODS, **MAIN, **SENSITIVITY}
SENSITIVE = "long-biased"  # the world of the sensitivity, with the first seed alone, unless asked for by name
# Options chosen on validation users, after a method's own: {"method" or "world/method": ("--learning-rate", "3e-4")}.
# To choose: `study --methods dpo@1e-4 dpo@3e-4 dpo@1e-3 --seeds 1`, then `study --table`.
_FAST, _SLOW = ("--learning-rate", "3e-3"), ("--learning-rate", "1e-4")
_MIDDLE = ("--learning-rate", "1e-3")
_FIFTEEN = ("s-dpo-15", "hanorec-15-paper", "hanorec-15-calibrated")
CHOSEN: dict[str, tuple[str, ...]] = {  # pairs learn best at the default, 1e-4, after an SFT that is far enough
    **dict.fromkeys(("sft-continued", *_FIFTEEN), _FAST),
    **{
        f"long-biased/{method}": _MIDDLE
        for method in ("sft-continued", *MAIN, *SENSITIVITY)
        if method not in ("s-dpo-15", "hanorec-15-calibrated")
    },
    **{f"{world}/{method}": _MIDDLE for world in ("long-unbiased", "long-frozen") for method in _WHOLE[1:]},
    **{f"{world}/sft-continued": _MIDDLE for world in ("ml-100k", "ml-100k-early")},
    **{f"{world}/{method}": _SLOW for world in ("ml-100k", "ml-100k-early") for method in _FIFTEEN},
}

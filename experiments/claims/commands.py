"""A cell of the study, (world, method, seed): its commands of the three scripts, and the settings that it depends on.

In: names of `worlds.py`. Out: the cells in the order in which they run, their commands, and their settings without
folders, which a row of results keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.claims.worlds import (
    CATALOGUES,
    CHOSEN,
    METHODS,
    SENSITIVE,
    SENSITIVITY,
    SFT_METHODS,
    STARTS,
    TITLES,
    WORLDS,
    Views,
)
from hanorec.errors import DataError

TRAINING = ("--windows", "nested", "--epochs", "1", "--validate-every", "50")  # of everything after the start
USERS = 1000  # measured in each view


class Key(NamedTuple):
    """What tells a cell of the study from the others. A method may end in @ and a learning rate: a trial, measured on
    validation users alone."""

    world: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.world}--{self.method}--{self.seed}"

    @property
    def trial(self) -> str:
        """The learning rate that is tried; empty for a cell of the grid."""
        return self.method.partition("@")[2]


def check_method(name: str) -> str:
    """Errors: DataError for a method that does not exist, which lists the known ones, and for no learning rate."""
    method, at, rate = name.partition("@")
    if method not in METHODS:
        raise DataError(f"--methods {name}: there is no such method; known are {', '.join(METHODS)}")
    try:
        tried = not at or float(rate) > 0
    except ValueError:
        tried = False
    if not tried or (at and method == "sft"):
        raise DataError(f"--methods {name}: what follows @ is a learning rate above 0, and sft has none")
    return name


def grid(worlds: Sequence[str], methods: Sequence[str] | None, seeds: Sequence[int]) -> list[Key]:
    """The cells in the order in which they run: every method once with the first seed, then with the second seed.

    methods: None for those of each world's grid.
    """
    cells = []
    for seed in seeds:
        for method in METHODS if methods is None else methods:
            for world in worlds:
                in_world = WORLDS[world].methods
                sensitivity = method in SENSITIVITY and (world != SENSITIVE or seed != seeds[0])
                usual = method in in_world if in_world else not sensitivity
                if methods is not None or usual:
                    cells.append(Key(world, method, seed))
    return list(dict.fromkeys(cells))


def training(key: Key) -> list[str]:
    """The training script of a cell after its start, and its options without folders; empty for the method sft, which
    is the start itself."""
    world, method = WORLDS[key.world], key.method.partition("@")[0]
    options = [*TRAINING, "--train-users", str(world.windows), *world.options]
    chosen = [*METHODS[method], *CHOSEN.get(method, ()), *CHOSEN.get(f"{key.world}/{method}", ())]
    if key.trial:  # in place of what was chosen by such trials
        chosen = [*METHODS[method], "--learning-rate", key.trial]
    if method == "sft":
        return []
    if method in SFT_METHODS:
        return ["train_sft.py", "--history", str(world.history), *options, *chosen]
    return ["train_dpo.py", *options, *world.preference, *chosen]


def views(key: Key) -> Views:
    """What a cell is measured on: by view the catalogue, and options of evaluate.py."""
    known = WORLDS[key.world].views
    if key.trial:
        return {"val": (WORLDS[key.world].data, (*next(iter(known.values()))[1], "--split", "val"))}
    return known


def settings(key: Key) -> dict:
    """All that a cell's figures depend on but the seed and the version of the code."""
    world = WORLDS[key.world]
    catalogue, options = STARTS[world.start]
    used = sorted({catalogue, world.data, *(data for data, _ in views(key).values())} & CATALOGUES.keys())
    return {
        "start": " ".join([catalogue, *options]),
        "training": " ".join([world.data, *training(key)]),
        "views": {name: " ".join([data, *options]) for name, (data, options) in views(key).items()},
        "catalogues": {name: CATALOGUES[name] for name in used},
    }


# commands, whose folders stand in the folder `runs`


def start_folder(start: str, seed: int, runs: Path) -> Path:
    return runs / f"start-{start}-{seed}"


def titles_folder(runs: Path) -> Path:
    """Where the tiny backbone with a token for each title of the real dataset is kept."""
    return runs / "data" / f"tiny-{TITLES}"


def start_command(start: str, seed: int, runs: Path) -> list[str]:
    """train_sft.py for a start."""
    catalogue, options = STARTS[start]
    options = tuple(str(titles_folder(runs)) if option == TITLES else option for option in options)
    return ["train_sft.py", *_places(runs / "data" / catalogue, start_folder(start, seed, runs), seed), *options]


def train_command(key: Key, runs: Path) -> list[str]:
    """The training script of a cell after its start; empty for the method sft."""
    if not (command := training(key)):
        return []
    world = WORLDS[key.world]
    start = ["--sft" if command[0] == "train_dpo.py" else "--backbone", str(start_folder(world.start, key.seed, runs))]
    return [command[0], *start, *_places(runs / "data" / world.data, runs / key.name, key.seed), *command[1:]]


def view_commands(key: Key, runs: Path) -> dict[str, list[str]]:
    """evaluate.py for every view of a cell, by the view's name."""
    first = ["evaluate.py", "--runs", str(runs / key.name), "--cache", str(runs / "cache"), "--users", str(USERS)]
    first += ["--baselines", "random", "popularity"]
    return {name: [*first, "--data", str(runs / "data" / data), *more] for name, (data, more) in views(key).items()}


def _places(data: Path, output: Path, seed: int) -> list[str]:
    cache = output.parent / "cache"
    return ["--data", str(data), "--output", str(output), "--cache", str(cache), "--seed", str(seed), "--overwrite"]

"""A cell of the study, (world, method, seed): its commands of the three scripts, and what its figures depend on.

In: names of `study_worlds.py`. Out: the cells in the order in which they run, their commands, and two fingerprints, of
a cell's settings and of the code. `study_run.py` runs the commands.

What makes a cell stale: another option in its commands or in those of its start, another toy `World` of its catalogues
(settings), and any change of src/hanorec or of the three scripts (code), except for comments, docstrings, white space
and the modules in `WITHOUT_EFFECT`.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from study_worlds import (
    BACKBONES,
    CATALOGUES,
    CHOSEN,
    METHODS,
    SENSITIVE,
    SENSITIVITY,
    SFT_METHODS,
    STARTS,
    WORLDS,
)

import hanorec
from hanorec.cache import content_fingerprint
from hanorec.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_EFFECT = ("errors.py", "evaluation/baselines.py", "evaluation/oracles.py", "evaluation/paired.py",
                  "evaluation/report.py", "training/command_line.py", "training/model_card.py")  # fmt: skip

TRAINING = ("--windows", "nested", "--epochs", "1", "--validate-every", "50")  # of everything after the start
USERS = 1000  # measured in each view


class Cell(NamedTuple):
    """One run of the study. A method may end in @ and a learning rate: a trial, measured on validation users alone."""

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


def grid(worlds: Sequence[str], methods: Sequence[str] | None, seeds: Sequence[int]) -> list[Cell]:
    """The cells in the order in which they run: every method once with the first seed, then with the second, ….

    methods: None for those of each world's grid.
    """
    cells = []
    for seed in seeds:
        for method in METHODS if methods is None else methods:
            for world in worlds:
                own = WORLDS[world].methods
                usual = method in own if own else method not in SENSITIVITY or (world == SENSITIVE and seed == seeds[0])
                if methods is not None or usual:
                    cells.append(Cell(world, method, seed))
    return list(dict.fromkeys(cells))


def start_folder(start: str, seed: int, folder: Path) -> Path:
    return folder / f"start-{start}-{seed}"


def start_command(start: str, seed: int, folder: Path) -> list[str]:
    """train_sft.py for a start. folder: where runs and catalogues are kept."""
    catalogue, options = STARTS[start]
    places = {name: fitted_folder(name, folder) for name in BACKBONES}
    if before := start_before(start):
        places[before] = start_folder(before, seed, folder)
    options = tuple(str(places.get(option, option)) for option in options)
    return ["train_sft.py", *_places(folder / "data" / catalogue, start_folder(start, seed, folder), seed), *options]


def start_before(start: str) -> str | None:
    """The start whose weights a start trains on from, if any."""
    options = STARTS[start][1]
    backbone = options[options.index("--backbone") + 1] if "--backbone" in options else ""
    return backbone if backbone in STARTS and backbone not in BACKBONES else None


def fitted_folder(backbone: str, folder: Path) -> Path:
    """Where one of `BACKBONES`, with a vocabulary of the real dataset's words or titles, is kept."""
    return folder / "data" / f"tiny-{backbone}"


def train_command(cell: Cell, folder: Path) -> list[str]:
    """The training script of a cell after its start; empty for the method sft, which is the start itself."""
    world, method = WORLDS[cell.world], cell.method.partition("@")[0]
    start = str(start_folder(world.start, cell.seed, folder))
    places = _places(folder / "data" / world.data, folder / cell.name, cell.seed)
    training = [*TRAINING, "--train-users", str(world.windows), *world.options]
    chosen = [*METHODS[method], *CHOSEN.get(method, ()), *CHOSEN.get(f"{cell.world}/{method}", ())]
    if cell.trial:  # in place of what was chosen by such trials
        chosen = [*METHODS[method], "--learning-rate", cell.trial]
    if method == "sft":
        return []
    if method in SFT_METHODS:
        return ["train_sft.py", "--backbone", start, *places, *training, *chosen]
    return ["train_dpo.py", "--sft", start, *places, *training, *world.preference, *chosen]


def view_commands(cell: Cell, folder: Path) -> dict[str, list[str]]:
    """evaluate.py for every view of a cell, by the view's name."""
    world = WORLDS[cell.world]
    views = (
        {"val": (world.data, (*next(iter(world.views.values()))[1], "--split", "val"))} if cell.trial else world.views
    )
    first = ["evaluate.py", "--runs", str(folder / cell.name), "--cache", str(folder / "cache"), "--users", str(USERS)]
    first += ["--baselines", "random", "popularity"]
    return {name: [*first, "--data", str(folder / "data" / data), *more] for name, (data, more) in views.items()}


def _places(data: Path, output: Path, seed: int) -> list[str]:
    cache = output.parent / "cache"
    return ["--data", str(data), "--output", str(output), "--cache", str(cache), "--seed", str(seed), "--overwrite"]


def catalogues(cell: Cell) -> set[str]:
    """The catalogues that a cell reads, and its start."""
    world = WORLDS[cell.world]
    return {STARTS[world.start][0], world.data, *(data for data, _ in world.views.values())}


def fingerprint(cell: Cell) -> dict[str, str]:
    """What a cell's figures depend on: its settings, those of its start among them, and the code."""
    runs, start = Path("runs"), start_fingerprint(WORLDS[cell.world].start, cell.seed)
    worlds = {name: described(name) for name in sorted(catalogues(cell))}
    settings = [start["settings"], train_command(cell, runs), view_commands(cell, runs), worlds]
    return {"settings": content_fingerprint(json.dumps(settings))[:16], "code": code_fingerprint()}


def start_fingerprint(start: str, seed: int) -> dict[str, str]:
    """The same for the weights of an SFT start."""
    settings: list = [start_command(start, seed, Path("runs")), described(STARTS[start][0])]
    if before := start_before(start):
        settings.append(start_fingerprint(before, seed)["settings"])
    return {"settings": content_fingerprint(json.dumps(settings))[:16], "code": code_fingerprint()}


def described(catalogue: str) -> dict | str:
    """What a catalogue is made from; of a real one its name."""
    made = CATALOGUES[catalogue]
    return asdict(made) if made else catalogue


def same(one: dict, other: dict, any_code: bool) -> bool:
    """Whether two fingerprints agree: in their settings and, unless any code will do, in their code."""
    return one.get("settings") == other["settings"] and (any_code or one.get("code") == other["code"])


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Of the package as it is imported, the tiny backbone in it, and the three scripts."""
    package = Path(hanorec.__file__).parent
    modules = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    files = [path for name, path in modules.items() if name not in WITHOUT_EFFECT]
    files += [ROOT / name for name in ("train_sft.py", "train_dpo.py", "evaluate.py")]
    weights = sorted((package / "models" / "tiny_backbone").iterdir())
    return content_fingerprint(*map(bare_code, files), *weights)[:16]


def bare_code(path: Path) -> str:
    """A Python file's code without comments, docstrings and white space."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for first, last in _docstrings(ast.parse(source)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "".join("".join(lines).split())


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node, clean=False) is not None:
                yield node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno

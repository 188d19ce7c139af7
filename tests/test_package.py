"""The package as a whole: imports point one way, the mathematics needs PyTorch alone, requirements agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "hanorec"
# Lower rooms first. A file imports from its own room and from lower ones, never from the room beside its own.
ROOMS = [{"losses", "distributed", "errors", "memory", "randomness"}, {"files"}, {"cache"}, {"data"},
         {"models", "recommenders"}, {"hardness", "related"}, {"training", "evaluation"}]  # fmt: skip


def imported(path: Path) -> set[str]:
    """What a file imports, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def level(name: str) -> int:
    return next(number for number, room in enumerate(ROOMS) if name in room)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not any(name.startswith("hanorec") for name in imported(path))
        return
    used = {name.split(".")[1] for name in imported(path) if name.startswith("hanorec.")} - {"__version__"}
    assert all(other == room or level(other) < level(room) for other in used), f"{room} imports {used}"


def test_the_options_of_a_command_line_are_known_to_training_alone():
    below = [path for path in SOURCE.rglob("*.py") if not path.is_relative_to(SOURCE / "training")]
    naming = [path.name for path in below if re.search(r"(?<!-)--[a-z]", path.read_text(encoding="utf-8"))]
    assert len(below) > 40 and not naming


@pytest.mark.parametrize("name", ["losses", "related/objectives"])
def test_the_mathematics_needs_pytorch_alone(name):
    outside = {module.split(".")[0] for module in imported(SOURCE / f"{name}.py")}
    allowed = {"__future__", "collections", "contextlib", "functools", "math", "typing", "torch", "hanorec"}
    assert outside <= allowed
    assert name != "losses" or "hanorec" not in outside  # a reader can copy the one file


def test_data_is_read_without_torch():
    """So that the scripts in data/ that compute nothing start at once."""
    modules = ", ".join(f"hanorec.data.{name}" for name in ("interactions", "catalog", "examples", "toy", "prepare"))
    command = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "False"


def test_no_room_has_a_circle_of_imports():
    graph = {}
    for path in SOURCE.rglob("*.py"):
        module = ".".join(("hanorec", *path.relative_to(SOURCE).with_suffix("").parts))
        graph[module] = {name for name in imported(path) if name.startswith("hanorec.")}
    graph = {
        module: {other for other in graph if any(f"{name}.".startswith(f"{other}.") for name in used)} - {module}
        for module, used in graph.items()
    }
    while leaves := {module for module, used in graph.items() if not used & graph.keys()}:
        graph = {module: used for module, used in graph.items() if module not in leaves}
    assert not graph, f"in a circle: {sorted(graph)}"


def test_requirements_name_what_the_package_needs_with_the_same_floors():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    floors = {line.split("#")[0].strip() for line in lines if line[:1].isalpha()}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(r'^    "([\w-]+>=[\d.]+)",', project, flags=re.MULTILINE)
    assert len(needed) > 8 and set(needed) <= floors and "-e ." in lines
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", floor) for floor in floors)

"""What several test files need: a very small toy catalogue, a very small random backbone, and both put together."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in several processes, and these start more
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests are of the CPU, to rounding; `checks/on_cuda.py` is of the GPU

import pytest
import torch

from hanorec.data.dataset import open_dataset
from hanorec.data.toy import NAMES, THEMES, World, make_toy
from hanorec.errors import exit_on_user_error
from hanorec.models import tiny
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ("test_end_to_end.py", "test_distributed.py", "test_families.py")  # begun first: both cores end together
SMALL_WORLD = World(warm_per_cell=6, cold_per_cell=2, users=60, cold_users=10, shortest_row=4, longest_row=6)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data") / "toy", SMALL_WORLD)


@pytest.fixture(scope="session")
def data(toy_folder):
    return open_dataset(toy_folder)


@pytest.fixture(scope="session")
def random_backbone(tmp_path_factory) -> Path:
    """The tiny architecture with random weights, saved in Hugging Face format."""
    torch.manual_seed(0)
    texts = [f"{word} {name}" for words in THEMES.values() for word in words for name in NAMES[:20]]
    return tiny.save_tiny(tmp_path_factory.mktemp("backbone") / "random", texts)


@pytest.fixture
def backbone(random_backbone):
    """Fresh for every test: the random backbone on the CPU."""
    return load_backbone(str(random_backbone), dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="session")
def opened_images(random_backbone, data) -> CatalogImages:
    """The toy catalogue's images as the random backbone sees them, opened once."""
    backbone = load_backbone(str(random_backbone), dtype="float32", device=torch.device("cpu"))
    return CatalogImages(backbone, data.catalog.images)


@pytest.fixture
def images(opened_images) -> CatalogImages:
    """The toy catalogue's images as `backbone` sees them, encoded when they are asked for; each test may change them."""
    return copy.deepcopy(opened_images)


@pytest.fixture
def script(monkeypatch, capsys):
    """Call a script's main as the command line would; returns (exit status, stdout, stderr). Unless told otherwise,
    evaluate.py does without the baselines that are trained."""

    def call(name: str, *arguments) -> tuple[int, str, str]:
        if name == "evaluate" and "--baselines" not in arguments:
            arguments += ("--baselines", "random", "popularity")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        status = 0
        try:
            with exit_on_user_error():
                importlib.import_module(name).main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call

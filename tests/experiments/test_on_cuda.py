"""experiments/checks/on_cuda.py as far as a machine without a GPU can tell: what is equal, what a row says, what is
written."""

from __future__ import annotations

import sys

import torch

from experiments.checks import on_cuda
from tools import families

CPU = torch.device("cpu")


def test_equality_is_found_in_both_precisions_and_a_difference_is_not_missed(monkeypatch):
    cells, equal = on_cuda.equality(families.llava, CPU, half=True)
    assert equal and cells[:2] == ["llava", "packed"] and float(cells[2]) < 1e-4 < float(cells[3])
    score = on_cuda.score
    monkeypatch.setattr(on_cuda, "score", lambda *arguments: score(*arguments) + 2e-3)
    assert not on_cuda.equality(families.llava, CPU, half=False)[1]
    monkeypatch.setattr(
        on_cuda, "score", lambda backbone, *more: score(backbone, *more) + (backbone.compute == torch.bfloat16)
    )
    assert not on_cuda.equality(families.llava, CPU, half=True)[1]


def test_both_ways_of_a_step_give_the_same_log_probabilities(backbone):
    cells = on_cuda.steps(backbone, pixels=64, turns=1)
    assert len(cells) == len(on_cuda.STEP_HEADER) - 1 and float(cells[-1]) < 1e-3


def test_a_way_that_runs_out_of_memory_says_so_in_its_row(backbone, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(families, "plain_logps", full)
    cells = on_cuda.steps(backbone, pixels=64, turns=1)
    assert len(cells) == len(on_cuda.STEP_HEADER) - 1 and cells[1] == "out of memory (plain)"


def test_a_row_read_once_and_its_windows_read_one_by_one_give_the_same_log_probabilities(backbone):
    lines = on_cuda.long_row(backbone, 300, turns=1)
    assert [line[2] for line in lines] == ["nested", "windows one by one"] and int(lines[0][1]) > 2
    assert all(len(line) == len(on_cuda.ROW_HEADER) and float(line[-1]) < 1e-3 for line in lines)


def test_without_a_gpu_the_rest_runs_and_nothing_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["on_cuda.py"])
    monkeypatch.setattr(families, "PACKED", [families.smolvlm])
    monkeypatch.setattr(families, "PLAIN", [])
    monkeypatch.setattr(on_cuda, "PAGE", tmp_path / "cuda.md")
    on_cuda.main()
    out = capsys.readouterr().out
    assert "| smolvlm |" in out and "There is no CUDA GPU here" in out
    assert not on_cuda.PAGE.exists()

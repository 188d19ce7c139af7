"""experiments/on_cuda.py as far as a machine without a GPU can tell: what is equal, what a row says, what is written."""

from __future__ import annotations

import sys

import torch
from conftest import ROOT
from torch.nn.attention.flex_attention import flex_attention

from tools import families

sys.path.insert(0, str(ROOT / "experiments"))

import on_cuda

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
    lines = on_cuda.long_row(backbone, 300, turns=1, flex=False)
    assert [line[2] for line in lines] == ["nested, whole mask", "windows one by one"]
    assert all(len(line) == len(on_cuda.ROW_HEADER) and float(line[-1]) < 1e-3 for line in lines)


def test_flex_attention_under_any_mask_is_pytorch_attention(monkeypatch):
    monkeypatch.setattr(on_cuda, "COMPILED", flex_attention)  # as it is, without compiling it
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 30, 16), torch.randn(2, 2, 30, 16), torch.randn(2, 2, 30, 16)
    mask = torch.zeros(2, 1, 30, 30).masked_fill(torch.rand(2, 1, 30, 30) < 0.5, torch.finfo(torch.float32).min)
    mask += torch.zeros(30, 30).fill_diagonal_(1) * -mask  # every token sees itself
    ours, _ = on_cuda.attend(None, query, key, value, mask, scaling=0.3)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), exact, rtol=1e-4, atol=1e-5)


def test_without_a_gpu_the_rest_runs_and_nothing_is_written(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["on_cuda.py"])
    monkeypatch.setattr(families, "PACKED", [families.smolvlm])
    monkeypatch.setattr(families, "PLAIN", [])
    before = sorted((ROOT / "experiments" / "results").iterdir())
    on_cuda.main()
    out = capsys.readouterr().out
    assert "| smolvlm |" in out and "There is no CUDA GPU here" in out
    assert sorted((ROOT / "experiments" / "results").iterdir()) == before

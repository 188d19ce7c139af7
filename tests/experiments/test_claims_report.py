"""The report: its answers follow from the intervals by rule, and its plots show what the rows say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.claims import answers, report
from experiments.claims.answers import Question, answer, questions, verdict
from experiments.claims.commands import Key
from experiments.common import append_row, letters
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.paired import Difference

SUMMARY = {
    "beta": [0.02, 0.09, 0.13],
    "hardness": [1.0, 0.08],
    "responsiveness": [0.7, 0.9, 1.1],
    "adapted": 0.52,
}


def content(world: str, method: str, seed: int, ahead, *, views=("test", "cold", "cold, blank"), **more) -> dict:
    """A cell with the target in these places, in all views or by view."""
    by_view = ahead if isinstance(ahead, dict) else dict.fromkeys(views, ahead)
    history = more.pop("history", [5] * len(next(iter(by_view.values()))))
    users = more.pop("users", "u")
    seen = {
        view: {"measures": {}, "candidates": 20, "users": users, "history": letters(history), "ahead": letters(a), "tied": ""}
        for view, a in by_view.items()
    }  # fmt: skip
    course = {"step": [0, 1, 2], "loss": [0.7, 0.6, 0.5], "chosen_logp": [-5, -4, -4], "rejected_logp": [-7, -8, -9],
              "responsiveness": [0.7, 0.9, 1.1], "beta_mean": [0.1, 0.09, 0.08]}  # fmt: skip
    made = {"study": "study", "world": world, "method": method, "seed": seed, "settings": {}, "version": "1.0.0"}
    return made | {"start": "s", "command": "train_dpo.py", "views": seen, "course": course, **more}


@pytest.fixture
def call(monkeypatch, capsys):
    """report.py as the command line calls it; returns (exit status, stdout, stderr)."""

    def call(results: Path, *arguments) -> tuple[int, str, str]:
        words = ["report.py", "--results", str(results), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            report.main()
            raise SystemExit(0)
        return stop.value.code, *capsys.readouterr()

    return call


# answers


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.001, 0.1, "yes"), (-0.1, -0.001, "no"), (-0.1, 0.1, "not shown"), (0.0, 0.0, "not shown"), (0.0, 0.1, "not shown")],
)  # fmt: skip
def test_an_answer_needs_an_interval_wholly_on_one_side_of_zero(low, high, expected):
    assert verdict(Difference((low + high) / 2, low, high, 0.5)) == expected


def test_answers_compare_a_recipe_with_itself_without_the_part():
    """Without hardness all targets are in the second place, with it in the first: NDCG@10 is 1 - 1/log2(3) higher.
    Responsiveness does the opposite."""
    done = {}
    for method, place in (("hanorec-paper", 1), ("paper-no-hardness", 3), ("paper-no-responsiveness", 0)):
        for seed in (1, 2):
            done[Key("early", method, seed)] = content("early", method, seed, [place] * 8)
    by_claim = {a.question.claim: a for a in answers.answers(done, ["early"]) if a.question.recipe == "paper"}
    hardness = by_claim["hardness"]
    assert (hardness.verdict, hardness.seeds, hardness.users) == ("yes", 2, 8)
    assert hardness.difference.value == pytest.approx(1 / np.log2(3) - 1 / np.log2(5))
    assert by_claim["responsiveness"].verdict == "no"
    assert by_claim["noise"].verdict == by_claim["whole"].verdict == "not measured"


def test_noise_is_asked_about_on_blank_images_and_long_histories_where_the_start_is_biased():
    def asked(world):
        return {(q.view, q.minus, q.longest) for q in questions([world]) if q.claim == "noise" and q.recipe == "paper"}

    blank = "cold, blank"
    biased = {("cold", "", False), (blank, "", False), ("cold", blank, False)}
    assert asked("early") == {("cold", "", False)}
    assert asked("biased") == biased
    assert asked("long-biased") == biased | {("cold", "", True), ("cold", blank, True)}
    assert not asked("long-unbiased")  # its grid leaves out no part
    assert {q.view for q in questions(["hard"]) if q.claim == "hardness"} == {"test", "near"}


def test_what_images_add_is_counted_over_the_long_histories_alone():
    """Noise moves the target from the fourth place to the first for the four users of 11 items and more, with true
    images alone; for the others it changes nothing."""
    history, blank = [2, 5, 8, 10, 11, 12, 19, 20], [5] * 8
    done = {}
    for method, long in (("hanorec-paper", 0), ("paper-no-noise", 3)):
        places = {"test": blank, "cold": [3] * 4 + [long] * 4, "cold, blank": blank}
        done[Key("long-biased", method, 1)] = content("long-biased", method, 1, places, history=history)
    asked = Question("noise", "paper", "long-biased", "cold", "NDCG@10", "paper-no-noise", minus="cold, blank")
    gain = 1 - 1 / np.log2(5)
    every, longest = answer(done, asked), answer(done, asked._replace(longest=True))
    assert (every.users, every.difference.value) == (8, pytest.approx(gain / 2))
    assert (longest.users, longest.difference.value) == (4, pytest.approx(gain)) and longest.verdict == "yes"


def test_an_asterisk_marks_what_survives_the_correction_over_all_answers():
    done = {}
    for world in ("early", "biased"):
        for method, places in (("hanorec-paper", [0] * 40), ("paper-no-hardness", [1] * 40), ("dpo", [0] * 39 + [1])):
            done[Key(world, method, 1)] = content(world, method, 1, places)
    rows = answers.rows(answers.answers(done, ["early", "biased"]), "hardness")
    assert [row[:3] for row in rows[:2]] == [["paper", "early", "yes"], ["paper", "biased", "yes"]]
    assert all(row[3].endswith("]*") for row in rows[:2])
    assert rows[2][2:4] == ["not measured", "–"] and rows[2][-2:] == ["–", "–"]
    against_dpo = answers.rows(answers.answers(done, ["early"]), "whole")[0]
    assert against_dpo[2] == "not shown" and against_dpo[3].endswith("]")


# plots


def test_beta_is_measured_against_the_beta_of_the_command():
    cell = content("early", "hanorec-paper", 1, [0], summary=SUMMARY)
    parts = report.spread(cell)
    assert parts["β / β₀"] == pytest.approx((0.2, 0.9, 1.3)) and parts["λ"] == pytest.approx((0.92, 1, 1.08))
    assert report.of_steps(cell, "β / β₀") == pytest.approx([1, 0.9, 0.8])
    other = cell | {"command": "train_dpo.py --beta 1 --seed 1 --beta 0.2"}  # the last one wins, as for the script
    assert report.spread(other)["β / β₀"] == pytest.approx((0.1, 0.45, 0.65))


def test_the_plot_of_beta_shows_the_share_of_adapted_pairs():
    done = {Key("early", "hanorec-paper", 1): content("early", "hanorec-paper", 1, [0], summary=SUMMARY)}
    figure = report.parts_of_beta(done)
    assert [text.get_text().strip() for text in figure.axes[2].texts] == ["52%"]
    assert report.parts_of_beta({Key("early", "dpo", 1): content("early", "dpo", 1, [0])}) is None


def test_every_axis_has_a_name_and_measures_differ_by_more_than_colour():
    methods = ("sft-continued", "dpo", "hanorec-paper")
    done = {Key("early", m, 1): content("early", m, 1, [0, 1, 2, 3], summary=SUMMARY) for m in methods}
    figures = [report.parts_of_beta(done), report.ablation(done, "early", "test")]
    for figure in figures:
        assert figure is not None and all(axes.get_xlabel() for axes in figure.axes)
    markers = [line.get_marker() for line in figures[1].axes[0].lines if line.get_label() in report.OF_MEASURE]
    assert len(set(markers)) == 2


# the page


def test_the_page_answers_every_claim_and_says_what_failed(call, tmp_path):
    results, places = tmp_path / "results.jsonl", (np.arange(12) % 8).tolist()
    for method in ("sft-continued", "dpo", "hanorec-paper"):
        append_row(results, content("small", method, 1, places, summary=SUMMARY))
    failed = content("small", "simpo", 1, [0]) | {"failed": "train_dpo.py ended: too early"}
    append_row(results, {name: failed[name] for name in ("study", "world", "method", "seed", "settings", "failed")})
    append_row(results, content("small", "dpo@1e-3", 1, [0], views=("val",)))
    status, out, err = call(results)
    assert status == 0, err
    assert "3 cells of seeds 1" in out and "1 failed" in out and "trials left out: 1" in out
    assert (tmp_path / "beta.png").read_bytes().startswith(b"\x89PNG")

    claims = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert all(text in claims for text in answers.CLAIMS.values())
    assert "- `small--simpo--1`: train_dpo.py ended" in claims
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in claims.splitlines() if line.startswith("| paper")
    ]
    against_dpo = next(row for row in rows if row[4] == "dpo")
    assert against_dpo[:4] == ["paper", "small", "not shown", "+0.000 [+0.000, +0.000]"]


def test_rows_that_answer_nothing_are_refused_with_a_reason(call, tmp_path):
    results = tmp_path / "results.jsonl"
    status, _, err = call(results)
    assert status == 2 and "holds no row of the study study" in err and err.count("\n") == 1
    append_row(results, content("small", "dpo@1e-3", 1, [0], views=("val",)))
    status, _, err = call(results)
    assert status == 2 and "has trials alone" in err and err.count("\n") == 1

"""The report: its answers follow from the intervals by rule, and it is one page that needs nothing else."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from hanorec.cache import content_fingerprint
from hanorec.data.dataset import open_dataset
from hanorec.errors import DataError, exit_on_user_error

sys.path.insert(0, str(ROOT / "experiments"))

import report
import report_claims
import report_plots
import report_users
from report_claims import Question, answer, questions, verdict
from study_cells import Cell, fingerprint, view_commands
from study_run import letters, write_cell
from study_worlds import WORLDS

from hanorec.data.toy import make_toy
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
    made = {"world": world, "method": method, "seed": seed, "fingerprint": fingerprint(Cell(world, method, seed))}
    return made | {"start": "s", "command": "train_dpo.py", "views": seen, "course": course, **more}


def write(folder: Path, cell: dict) -> None:
    write_cell(folder / f"{cell['world']}--{cell['method']}--{cell['seed']}.json", cell)


@pytest.fixture(scope="module")
def small_users(tmp_path_factory) -> tuple[str, list[int]]:
    """Fingerprint of the users of the small world's cold split, and lengths of their histories."""
    data = open_dataset(make_toy(tmp_path_factory.mktemp("toy") / "toy", report_users.CATALOGUES["small"]))
    command = view_commands(Cell("small", "dpo", 1), Path("runs"))["cold"]
    examples = report_users.examples_of(command, "small", data, 8)
    lengths = [len(example.history) for example in examples]
    return content_fingerprint(json.dumps([[e.user for e in examples], lengths]))[:12], lengths


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """report.py as the command line calls it; returns (exit status, stdout, stderr)."""

    def call(results: Path, *arguments) -> tuple[int, str, str]:
        words = ["report.py", "--results", str(results), "--output", str(tmp_path / "report"), *map(str, arguments)]
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
            done[Cell("early", method, seed)] = content("early", method, seed, [place] * 8)
    by_claim = {a.question.claim: a for a in report_claims.answers(done, ["early"]) if a.question.recipe == "paper"}
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
        done[Cell("long-biased", method, 1)] = content("long-biased", method, 1, places, history=history)
    asked = Question("noise", "paper", "long-biased", "cold", "NDCG@10", "paper-no-noise", minus="cold, blank")
    gain = 1 - 1 / np.log2(5)
    every, longest = answer(done, asked), answer(done, asked._replace(longest=True))
    assert (every.users, every.difference.value) == (8, pytest.approx(gain / 2))
    assert (longest.users, longest.difference.value) == (4, pytest.approx(gain)) and longest.verdict == "yes"


def test_an_asterisk_marks_what_survives_the_correction_over_all_answers():
    done = {}
    for world in ("early", "biased"):
        for method, places in (("hanorec-paper", [0] * 40), ("paper-no-hardness", [1] * 40), ("dpo", [0] * 39 + [1])):
            done[Cell(world, method, 1)] = content(world, method, 1, places)
    rows = report_claims.rows(report_claims.answers(done, ["early", "biased"]), "hardness")
    assert [row[:3] for row in rows[:2]] == [["paper", "early", "yes"], ["paper", "biased", "yes"]]
    assert all(row[3].endswith("]*") for row in rows[:2])
    assert rows[2][2:4] == ["not measured", "–"] and rows[2][-2:] == ["–", "–"]
    against_dpo = report_claims.rows(report_claims.answers(done, ["early"]), "whole")[0]
    assert against_dpo[2] == "not shown" and against_dpo[3].endswith("]")


# plots


def test_beta_is_measured_against_the_beta_of_the_command():
    cell = content("early", "hanorec-paper", 1, [0], summary=SUMMARY)
    parts = report_plots.spread(cell)
    assert parts["β / β₀"] == pytest.approx((0.2, 0.9, 1.3)) and parts["λ"] == pytest.approx((0.92, 1, 1.08))
    assert report_plots.of_steps(cell, "β / β₀") == pytest.approx([1, 0.9, 0.8])
    other = cell | {"command": "train_dpo.py --beta 1 --seed 1 --beta 0.2"}  # the last one wins, as for the script
    assert report_plots.spread(other)["β / β₀"] == pytest.approx((0.1, 0.45, 0.65))


def test_the_plot_of_beta_shows_the_share_of_adapted_pairs():
    done = {Cell("early", "hanorec-paper", 1): content("early", "hanorec-paper", 1, [0], summary=SUMMARY)}
    figure = report_plots.parts_of_beta(done)
    assert [text.get_text().strip() for text in figure.axes[2].texts] == ["52%"]
    assert report_plots.parts_of_beta({Cell("early", "dpo", 1): content("early", "dpo", 1, [0])}) is None


def test_every_axis_has_a_name_and_methods_differ_by_more_than_colour():
    methods = ("sft-continued", "dpo", "hanorec-paper")
    done = {Cell("early", m, 1): content("early", m, 1, [0, 1, 2, 3], summary=SUMMARY) for m in methods}
    figures = [report_plots.course(done, "early"), report_plots.parts_of_beta(done)]
    figures += [report_plots.ablation(done, "early", "test"), report_plots.modality(done, "early")]
    for figure in figures:
        assert figure is not None and all(axes.get_xlabel() for axes in figure.axes)
    lines = figures[0].axes[0].lines
    assert len(lines) == len({(line.get_marker(), str(line.get_linestyle())) for line in lines}) == 3


def test_histories_of_many_lengths_are_shown_apart():
    history = [2, 3, 6, 7, 11, 12, 16, 17]
    done = {Cell("long-biased", "dpo", 1): content("long-biased", "dpo", 1, [0] * 8, history=history)}
    titles = [axes.get_title(loc="left") for axes in report_plots.modality(done, "long-biased").axes]
    ranges = ("2 to 3", "6 to 7", "11 to 12", "16 to 17")
    assert titles == [f"histories of {own} items (2 users)" for own in ranges]


# the page


class Sources(HTMLParser):
    """Collects what a page would load, its links and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.sources += [values[name] for name in ("src", "srcset", "data") if name in values]
        self.links += [values["href"]] if tag == "a" else []
        self.anchors += [values["id"]] if "id" in values else []
        assert tag not in ("script", "link") and (tag != "img" or values["alt"])

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_is_one_page_that_needs_nothing_else(call, tmp_path, small_users):
    users, history = small_users
    cells, places = tmp_path / "cells", np.arange(len(history)) % 8
    for method in ("sft-continued", "dpo", "hanorec-paper"):
        write(cells, content("small", method, 1, places.tolist(), users=users, history=history, summary=SUMMARY))
    for path in cells.iterdir():
        path.write_text(path.read_text().replace('"candidates": 20', '"candidates": 8'))
    failed = content("small", "simpo", 1, [0]) | {"failed": "train_dpo.py ended: <b>too early</b>"}
    write(cells, {name: failed[name] for name in ("world", "method", "seed", "fingerprint", "failed")})
    write(cells, content("small", "dpo@1e-3", 1, [0], views=("val",)))
    status, out, err = call(cells)
    assert status == 0, err
    assert "3 cells of seeds 1" in out and "1 failed" in out and "1 left out" in out

    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    page = Sources()
    page.feed(text)
    plots = sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert len(page.sources) == len(plots) and all(
        source.startswith("data:image/png;base64,") for source in page.sources
    )
    assert not re.search(r"url\(|@import|https?://", text)
    assert [link.lstrip("#") for link in page.links] == page.anchors
    assert "<b>too early" not in text
    assert any("train_dpo.py ended: <b>too early</b>" in word for word in page.words)
    assert {"ablation-small-test.png", "beta.png", "course-small.png", "modality-small.png", "user-small-1.png"} <= set(
        plots
    )

    claims = (tmp_path / "report" / "claims.md").read_text(encoding="utf-8")
    assert "- `small--simpo--1`: train_dpo.py ended" in claims
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in claims.splitlines() if line.startswith("| paper")
    ]
    against_dpo = next(row for row in rows if row[4] == "dpo")
    assert against_dpo[:4] == ["paper", "small", "not shown", "+0.000 [+0.000, +0.000]"]


def test_users_of_another_catalogue_are_refused(tmp_path):
    done = {Cell("small", "dpo", 1): content("small", "dpo", 1, [0, 1], users="others")}
    with pytest.raises(DataError, match="world small, view cold: its cells have other users"):
        report_users.users_of(done, "small", tmp_path, None)


def test_a_results_folder_that_cannot_be_used_is_refused_with_a_reason(call, tmp_path):
    def refused(reason: str) -> None:
        status, _, err = call(tmp_path / "cells")
        assert status == 2 and reason in err and err.count("\n") == 1

    refused("no such folder")
    (tmp_path / "cells").mkdir()
    refused("holds no cell of the study; experiments/study.py makes them")
    write(tmp_path / "cells", content("small", "dpo@1e-3", 1, [0], views=("val",)))
    refused("holds no cell of the study (1 are trials")
    cell = content("small", "dpo", 1, [0])
    write(tmp_path / "cells", {name: value for name, value in cell.items() if name != "views"})
    refused("small--dpo--1.json: an unfinished cell")
    (tmp_path / "cells" / "small--dpo--1.json").write_text('{"kind": "sft"}')
    refused("not a cell of the study")


def test_cells_of_other_settings_are_left_out(tmp_path):
    cell = content("small", "dpo", 1, [0])
    write(tmp_path, cell | {"fingerprint": cell["fingerprint"] | {"settings": "others"}})
    write(tmp_path, content("small", "sft", 1, [0]))
    study = report.read_study(tmp_path)
    assert list(study.done) == [Cell("small", "sft", 1)] and study.others == 1
    assert set(WORLDS["small"].views) <= set(study.done[Cell("small", "sft", 1)]["views"])

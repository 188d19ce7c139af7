#!/usr/bin/env python3
"""The study as one page that reads without anything else: the paper's claims answered by rule, and plots.

    python experiments/report.py                            experiments/results/report/report.html, claims.md and plots
    python experiments/report.py --runs runs/study          users' candidates in each method's order, from its models
    python experiments/report.py --results DIR --output DIR

Reads the cells that `study.py` wrote, and no others: what is missing is said, and what failed is shown with its reason.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from report_claims import CLAIMS, HEADER, Answer, answers, claims_page, rows, rule, summary
from report_plots import ablation, course, modality, parts_of_beta
from report_users import users_of
from study_cells import ROOT, fingerprint, same
from study_run import read_cells
from study_table import Contents
from study_worlds import GRID, METHODS, REAL, WORLDS

from hanorec.errors import DataError, exit_on_user_error
from hanorec.training.checkpoints import replace_text

CSS = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #1a1a1a;
  background: #fff; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; } h3 { margin-top: 2rem; }
figure { margin: 1.5rem 0; } figure img { display: block; width: 100%; max-width: 40rem; height: auto; }
figcaption { color: #444; font-size: 0.9rem; max-width: 40rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
th, td { padding: 0.25rem 0.4rem; text-align: left; border-bottom: 1px solid #ccc; }
th { border-bottom: 2px solid #444; }
.yes, .no { font-weight: bold; } .no { text-decoration: underline; } .missing { color: #595959; font-style: italic; }
nav a { margin-right: 1rem; } code { font-size: 0.9em; overflow-wrap: anywhere; }
"""
CLASSES = {"yes": "yes", "no": "no", "not measured": "missing"}


class Study(NamedTuple):
    """The cells of a folder: those that are done, those that failed, and how many are not of today's study."""

    done: Contents
    failed: Contents
    others: int


class Plot(NamedTuple):
    """A figure of the report. name: of its file. caption: what it shows, also for those who do not see it."""

    section: str
    name: str
    caption: str
    figure: Figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = ROOT / "experiments" / "results"
    parser.add_argument("--results", type=Path, default=results / "study", metavar="DIR", help="the study's cells")
    parser.add_argument("--output", type=Path, default=results / "report", metavar="DIR")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="the study's runs, whose models rank the users' candidates"
    )
    args = parser.parse_args()
    study = read_study(args.results)
    worlds = [world for world in (*GRID, *WORLDS) if any(cell.world == world for cell in (*study.done, *study.failed))]
    worlds = list(dict.fromkeys(worlds))
    answered = answers(study.done, worlds)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = [f"`{cell.name}`: {content['failed']}" for cell, content in study.failed.items()]
    replace_text(args.output / "claims.md", claims_page(answered, about(study), failed))
    images = []
    for plot in plots(study.done, worlds, args.runs):
        content = png(plot.figure)
        (args.output / f"{plot.name}.png").write_bytes(content)
        images.append((plot.section, plot.caption, content))
    replace_text(args.output / "report.html", page(study, answered, images))
    print(f"wrote {args.output / 'report.html'}, claims.md and {len(images)} plots: {about(study)}")


def read_study(folder: Path) -> Study:
    """Errors: DataError where the folder is missing or holds no cell of the study or something else, and for a cell
    that has neither figures nor a reason why it failed."""
    done, failed, others = {}, {}, 0
    for cell, content in read_cells(folder).items():
        known = cell.world in WORLDS and cell.method in METHODS
        if not known or not same(content["fingerprint"], fingerprint(cell), any_code=True):
            others += 1
        elif "failed" in content:
            failed[cell] = content
        elif {"views", "course", "start"} <= content.keys() and set(WORLDS[cell.world].views) <= set(content["views"]):
            done[cell] = content
        else:
            raise DataError(f"{folder / cell.name}.json: an unfinished cell; remove it and run experiments/study.py")
    if not done and not failed:
        told = f" ({others} are trials or of other settings than today's)" if others else ""
        raise DataError(f"{folder}: holds no cell of the study{told}; experiments/study.py makes them")
    order = {method: place for place, method in enumerate(METHODS)}
    in_order = sorted(done, key=lambda cell: (cell.world, order[cell.method], cell.seed))
    return Study({cell: done[cell] for cell in in_order}, failed, others)


def about(study: Study) -> str:
    """What was read, in a sentence."""
    seeds = sorted({cell.seed for cell in study.done})
    codes = {content["fingerprint"]["code"] for content in study.done.values()}
    parts = [f"{len(study.done)} cells of seeds {', '.join(map(str, seeds)) or '–'}"]
    parts.append(f"made by {len(codes)} version{'s' * (len(codes) != 1)} of the code")
    parts += [f"{len(study.failed)} failed"] * bool(study.failed)
    parts += [f"{study.others} left out (trials, or other settings than today's)"] * bool(study.others)
    return "; ".join(parts) + "."


def plots(done: Contents, worlds: Sequence[str], runs: Path | None) -> Iterator[Plot]:
    """Every plot that the cells allow, section by section."""

    def made(section: str, name: str, caption: str, draw: Callable[..., Figure | None], *what) -> Iterator[Plot]:
        figure = draw(done, *what)
        if figure is not None:
            yield Plot(section, name.replace(" ", "-"), caption, figure)

    section = "Every method against SFT continued"
    for world in worlds:
        for view in WORLDS[world].views:
            caption = f"World {world}, view {view}: paired difference to SFT continued, with 95 % intervals."
            yield from made(section, f"ablation-{world}-{view}", caption, ablation, world, view)
    section = "What β came to"
    caption = (
        "Where λ stays at 1, the hardness of a pair changes nothing, and where η does, responsiveness does not: then "
        "β is β₀, and what is left of the method is DPO with noise. Ticks: the logged steps of training. Percentages: "
        "share of pairs whose β is more than 5 % from β₀."
    )
    yield from made(section, "beta", caption, parts_of_beta)
    for world in worlds:
        caption = f"World {world}: chosen (filled) and rejected (white) responses; means over five logged steps."
        yield from made("Over training", f"course-{world}", caption, course, world)
    for world in worlds:
        caption = f"World {world}: what is lost where the images of the history are grey."
        yield from made("Images and length of history", f"modality-{world}", caption, modality, world)
    measured = {cell.world for cell in done}
    of_users = [world for world in worlds if world in measured and WORLDS[world].data != REAL][:2]
    with tempfile.TemporaryDirectory() as folder:
        for world in of_users:
            for number, (caption, figure) in enumerate(users_of(done, world, Path(folder), runs), 1):
                yield Plot("A few users", f"user-{world}-{number}", caption, figure)


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def page(study: Study, answered: Sequence[Answer], images: Sequence[tuple[str, str, bytes]]) -> str:
    """The whole report as HTML with its images inside. images: section, caption and PNG of each."""
    body = ["<h1>HaNoRec: what the study shows</h1>", paragraph(about(study))]
    sections = list(dict.fromkeys(section for section, _, _ in images))
    links = ["The claims", *sections, *["Failed cells"] * bool(study.failed)]
    body.append("<nav>" + " ".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in links) + "</nav>")
    body += [heading("The claims"), *map(paragraph, rule())]
    for number, (claim, text) in enumerate(CLAIMS.items(), 1):
        body += [f"<h3>{number}. {escape(text)}</h3>", paragraph(summary(answered, claim))]
        body.append(table(rows(answered, claim)))
    for section in sections:
        body.append(heading(section))
        for _, caption, content in (image for image in images if image[0] == section):
            source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
            image = f'<img loading="lazy" alt="{escape(caption)}" src="{source}">'
            body.append(f"<figure><figcaption>{escape(caption)}</figcaption>{image}</figure>")
    if study.failed:
        reasons = ((cell.name, escape(content["failed"])) for cell, content in study.failed.items())
        lines = (f"<li><code>{name}</code>: {reason}</li>" for name, reason in reasons)
        body += [heading("Failed cells"), "<ul>", *lines, "</ul>"]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = "<title>HaNoRec: what the study shows</title>"
    parts = ['<!doctype html>\n<html lang="en"><head>', head, title, f"<style>{CSS}</style></head>", "<body>", *body]
    return "\n".join([*parts, "</body></html>\n"])


def table(lines: Sequence[Sequence[str]]) -> str:
    """A claim's table in a box of its own, which scrolls where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEADER)
    place = HEADER.index("answer")
    body = []
    for line in lines:
        classes = [CLASSES.get(text, "") if number == place else "" for number, text in enumerate(line)]
        cells = (f'<td class="{name}">{escape(text)}</td>' if name else f"<td>{escape(text)}</td>"
                 for name, text in zip(classes, line))  # fmt: skip
        body.append(f"<tr>{''.join(cells)}</tr>")
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="table" tabindex="0">{inside}</div>'


def anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def heading(name: str) -> str:
    return f'<h2 id="{anchor(name)}">{escape(name)}</h2>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


if __name__ == "__main__":
    with exit_on_user_error():
        main()

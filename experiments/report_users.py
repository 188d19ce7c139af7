"""A few users of a toy world as pictures: their history, the candidates, and where each method ranks the next item.

In: the cells, and the catalogue that `toy.py` draws again for them; with a folder of runs, their models, too. Out: a
figure a user. The cells alone tell the place of the true next item; which candidates stand before it takes the models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from report_plots import SHOWN, STYLE, WIDTH
from study_cells import ROOT, Cell, view_commands
from study_run import numbers
from study_table import Contents, methods_of, seeds_of
from study_worlds import CATALOGUES, WORLDS
from transformers import HfArgumentParser

from hanorec.cache import content_fingerprint
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.data.toy import make_toy
from hanorec.errors import DataError
from hanorec.evaluation.ranking import answer_with_model
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.training.options import EvaluationOptions, example_options
from hanorec.training.runs import load_run

TOP = 5  # candidates shown of each method's ranking, and pictures in a row
Ranked = dict[str, np.ndarray]  # by method: the candidates' columns, best first


def users_of(done: Contents, world: str, folder: Path, runs: Path | None) -> list[tuple[str, Figure]]:
    """Up to three users with what distinguishes them: the first, and those whose next item HaNoRec moves up and down
    most. folder: where the catalogue may be drawn. runs: the study's folder of runs (None: only places are shown).

    Errors: DataError where the cells' users are others than those of the catalogue, and for runs that are not there.
    """
    view = next(name for name in ("cold", "test") if name in WORLDS[world].views)
    methods = [method for method in methods_of(done, world) if method in SHOWN]
    seed = min(seeds_of(done, world, methods[0]))
    methods = [method for method in methods if seed in seeds_of(done, world, method)]
    cells = {method: done[Cell(world, method, seed)] for method in methods}
    places = {method: numbers(content["views"][view]["ahead"]) + 1 for method, content in cells.items()}
    command = view_commands(Cell(world, methods[0], seed), folder)[view]
    catalogue = CATALOGUES[WORLDS[world].views[view][0]]
    assert catalogue is not None  # a real dataset's users are not shown
    data = open_dataset(make_toy(folder / world, catalogue))
    examples = examples_of(command, world, data, cells[methods[0]]["views"][view]["candidates"])
    checked = content_fingerprint(json.dumps([[e.user for e in examples], [len(e.history) for e in examples]]))[:12]
    if any(content["views"][view]["users"] != checked for content in cells.values()):
        raise DataError(f"world {world}, view {view}: its cells have other users than the catalogue; run them again")
    chosen = {0: f"the first user of the view {view}"}
    if len(methods) > 1:
        one, other = methods[-1], methods[0]
        moved = places[other] - places[one]
        for user, what in ((int(moved.argmax()), "up"), (int(moved.argmin()), "down")):
            chosen.setdefault(user, f"the user of the view {view} whose next item {one} moves {what} most from {other}")
    some = [examples[user] for user in chosen]
    rankings = {method: rank(runs / Cell(world, method, seed).name, data, some) for method in methods} if runs else {}
    figures = []
    for number, (user, what) in enumerate(chosen.items()):
        ranked = {method: order[number] for method, order in rankings.items()}
        own = {method: int(place[user]) for method, place in places.items()}
        figures.append((f"World {world}, seed {seed}: {what}.", draw_user(data, examples[user], own, ranked)))
    return figures


def examples_of(command: list[str], world: str, data: Dataset, candidates: int) -> list[Example]:
    """The examples that a view's command ranks, among as many candidates as the cell says."""
    (options,) = HfArgumentParser(EvaluationOptions).parse_args_into_dataclasses(args=command[1:])  # type: ignore
    settings = WORLDS[world].options
    if options.history is None and "--history" in settings:  # the run's own
        options.history = int(settings[settings.index("--history") + 1])
    drawn = example_options(options) | {"task": "next", "candidates": candidates}
    return split_examples(data, options.split, users=options.users, **drawn)


def rank(run: Path, data: Dataset, examples: list[Example]) -> list[np.ndarray]:
    """How a run's model ranks each example's candidates: columns, best first. Errors: DataError for no finished run."""
    before = Path.cwd()
    run = run.resolve()
    os.chdir(ROOT)  # the study's runs name their start from here
    try:
        backbone, config = load_run(run)
    finally:
        os.chdir(before)
    images = CatalogImages(backbone, data.catalog.images, frozen=True, pixels=config["image_pixels"], progress=False)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=config["list_candidates"])
    scores = answer_with_model(backbone, prompts, examples).scores
    assert scores is not None
    return list(np.argsort(-scores, axis=1, kind="stable"))


def draw_user(data: Dataset, example: Example, places: dict[str, int], ranked: Ranked) -> Figure:
    """The history; each method's best candidates, with the true next item last where it is none of these, or, without
    `ranked`, all candidates; and the place of the next item, which is framed, by method."""
    target = example.targets[0]
    blocks = [("The user chose, oldest first", list(example.history))]
    for method, order in ranked.items():
        best = [example.candidates[column] for column in order[:TOP]]
        if target not in best:
            best[-1] = target
        blocks.append((f"{method}: its first candidates; the next item is number {places[method]}", best))
    if not ranked:
        blocks.append((f"The {len(example.candidates)} candidates; the next item is framed", list(example.candidates)))
    heights = [0.35 + 1.15 * -(-len(items) // TOP) for _, items in blocks]
    heights.append(0.9 + 0.26 * len(places))
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    for part, (title, items) in zip(parts, blocks):
        part.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
        grid = part.subplots(-(-len(items) // TOP), TOP, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, item in zip(grid, items):
            _picture(axes, data, item, framed=item == target)
    axes = parts[-1].subplots()
    for row, (method, place) in enumerate(places.items()):
        colour, marker, _ = STYLE[method]
        axes.plot(place, row, marker, color=colour, markersize=6)
        axes.annotate(f"  {place}", (place, row), va="center")
    axes.set_yticks(range(len(places)), list(places))
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xticks([1, *range(5, len(example.candidates) + 1, 5)])
    axes.set_xlim(0.5, len(example.candidates) + 1)
    axes.grid(axis="x", color="0.9")
    axes.set_xlabel(f"place of the next item among {len(example.candidates)} candidates (1 is best)")
    return figure


def _picture(axes, data: Dataset, item: int, *, framed: bool) -> None:
    path = data.catalog.images[item]
    assert path is not None
    axes.axis("on")
    axes.imshow(Image.open(path))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(data.catalog.titles[item].replace(" ", "\n", 1), fontsize=7, fontweight="bold" if framed else None)
    for spine in axes.spines.values():
        spine.set(visible=framed, linewidth=3, edgecolor="black")
    if framed:
        axes.set_xlabel("▲ next item", fontsize=7, fontweight="bold", labelpad=2)

"""The report's plots, each readable without colour and at the width of a phone.

In: the cells of the study. Out: matplotlib figures. Methods differ by marker and line style as well as by colour; every
axis has its unit.
"""

from __future__ import annotations

import re

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_cells import Cell
from study_run import numbers
from study_table import Contents, measures_of, methods_of, paired, seeds_of, spread_of_lengths, values
from study_worlds import WORLDS

from hanorec.evaluation import metrics
from hanorec.evaluation.measures import rows_by_length
from hanorec.training.objective import default_beta

matplotlib.use("Agg")
matplotlib.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}

WIDTH = 5.2  # inches: on a phone the letters stay at 9 pixels
SHOWN = ("sft", "sft-continued", "dpo", "hanorec-paper", "hanorec-calibrated")  # where all methods would be too many
STYLE = {  # colour (of Okabe and Ito), marker, line
    "sft": ("0.5", "x", ":"),
    "sft-continued": ("0.2", "s", "-."),
    "dpo": ("#0072B2", "^", "--"),
    "hanorec-paper": ("#D55E00", "o", "-"),
    "hanorec-calibrated": ("#009E73", "D", (0, (5, 1))),
}
OF_MEASURE = {"HR@1": ("#D55E00", "o", "white"), "NDCG@10": ("#0072B2", "s", None), "pairs": ("#0072B2", "D", None)}
PANELS = {  # of `parts_of_beta`: what is drawn of each part
    "λ": "λ (no unit): mean ± standard deviation",
    "η": "η (no unit): median, 5 to 95 % of the steps",
    "β / β₀": "β / β₀ (no unit): mean, smallest to largest",
}


def ablation(done: Contents, world: str, view: str) -> Figure | None:
    """Every method's difference to SFT continued with its interval, in two measures; None where nothing is paired."""
    measures = measures_of(view)
    found = {
        method: [paired(done, world, view, measure, method, "sft-continued") for measure in measures]
        for method in methods_of(done, world)
        if method != "sft-continued"
    }
    found = {method: each for method, each in found.items() if all(each)}
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, 1.5 + 0.27 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.3", linewidth=0.8)
    for number, measure in enumerate(measures):
        colour, marker, face = OF_MEASURE[measure]
        for place, each in enumerate(found.values()):
            if (difference := each[number]) is not None:
                _bar(axes, place + 0.3 * number - 0.15, difference, colour, marker, face, "" if place else measure)
    _rows(axes, list(found))
    axes.set_xlabel("difference to SFT continued (of 0 to 1)")
    axes.locator_params(axis="x", nbins=4)  # so that the numbers do not meet
    _legend_above(axes)
    return figure


def course(done: Contents, world: str) -> Figure | None:
    """Loss, and log-probability of chosen and rejected responses, over training; means over seeds."""
    methods = [method for method in methods_of(done, world) if method in SHOWN and method != "sft"]
    if not methods:
        return None
    with_logps = any("chosen_logp" in done[Cell(world, m, seeds_of(done, world, m)[0])]["course"] for m in methods)
    figure = Figure(figsize=(WIDTH, 6.6 if with_logps else 3.3), layout="constrained")
    loss, *others = figure.subplots(1 + with_logps, 1, squeeze=False)[:, 0]
    for method in methods:
        cells = [done[Cell(world, method, seed)]["course"] for seed in seeds_of(done, world, method)]
        colour, marker, line = STYLE[method]
        how = dict(color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1)
        _curve(loss, cells, "loss", label=method, **how)
        for logps in others if "chosen_logp" in cells[0] else ():
            _curve(logps, cells, "chosen_logp", label=f"{method}, chosen", **how)
            _curve(logps, cells, "rejected_logp", label=f"{method}, rejected", **how | {"markerfacecolor": "white"})
    loss.set_ylabel("loss (nats; each method's own)")
    for axes in others:
        axes.set_ylabel("log π of a response (nats)")
    for axes in (loss, *others):
        axes.set_xlabel("optimizer step")
        _legend_above(axes)
    return figure


def _curve(axes: Axes, cells: list[dict], name: str, **how) -> None:
    """The mean over seeds of one line of their logs, averaged over 5 logged steps, as far as all seeds have come."""
    steps = min(len(cell[name]) for cell in cells)
    mean = np.mean([cell[name][:steps] for cell in cells], axis=0)
    width = min(5, steps)
    smooth = np.convolve(mean, np.full(width, 1 / width), mode="valid")
    at = np.convolve(cells[0]["step"][:steps], np.full(width, 1 / width), mode="valid")
    axes.plot(at, smooth, markevery=max(1, len(at) // 6), **how)


def parts_of_beta(done: Contents) -> Figure | None:
    """λ, η and β / β₀ of HaNoRec in every world, with the share of pairs whose β is more than 5 % from β₀; None where
    no cell has them."""
    cells = {
        f"{world}, {method.removeprefix('hanorec-')}": [done[Cell(world, method, s)] for s in seeds]
        for world in WORLDS
        for method in ("hanorec-paper", "hanorec-calibrated")
        if (seeds := [s for s in seeds_of(done, world, method) if "summary" in done[Cell(world, method, s)]])
    }
    if not cells:
        return None
    figure = Figure(figsize=(WIDTH, 2.4 + 0.75 * len(cells)), layout="constrained")
    for axes, (part, label) in zip(figure.subplots(3, 1, sharex=True), PANELS.items()):
        axes.tick_params(labelbottom=True)
        axes.axvline(1, color="0.3", linewidth=0.8)
        for place, (name, contents) in enumerate(cells.items()):
            each = np.array([spread(content)[part] for content in contents])
            low, middle, high = each.mean(axis=0)
            if part == "β / β₀":  # of all pairs of all seeds
                low, high = each.min(), each.max()
            paper = name.endswith("paper")
            colour, marker, _ = STYLE["hanorec-paper" if paper else "hanorec-calibrated"]
            axes.plot([low, high], [place, place], color=colour, linewidth=3 if paper else 1.5)
            axes.plot(middle, place, color=colour, marker=marker, markersize=6, markeredgecolor="white")
            steps = np.concatenate([of_steps(content, part) for content in contents])
            axes.plot(steps, np.full(len(steps), place + 0.3), "|", color="0.3", markersize=4, alpha=0.5)
            if part == "β / β₀":
                share = np.mean([content["summary"]["adapted"] for content in contents])
                axes.annotate(f" {share:.0%}", (1, place), xycoords=("axes fraction", "data"), va="center")
        _rows(axes, list(cells))
        axes.set_xlabel(label)
    axes.set_title("share of pairs more than 5 % from β₀", loc="right", fontsize=9)
    return figure


def spread(content: dict) -> dict[str, tuple[float, float, float]]:
    """Low, middle and high of λ, η and β / β₀ in a run, as `PANELS` says."""
    summary = content["summary"]
    beta = beta_of(content)
    mean, std = summary["hardness"]
    low, middle, high = summary["beta"]
    return {
        "λ": (mean - std, mean, mean + std),
        "η": tuple(summary["responsiveness"]),
        "β / β₀": (low / beta, middle / beta, high / beta),
    }


def beta_of(content: dict) -> float:
    """β₀ of a run of HaNoRec, by its command."""
    given = re.findall(r"--beta (\S+)", content["command"])
    return float(given[-1]) if given else default_beta("hanorec")


def of_steps(content: dict, part: str) -> np.ndarray:
    """η, or the mean of β / β₀, at every logged step of a run; λ does not change from step to step, and has none."""
    course = {name: np.array(content["course"].get(name, [])) for name in ("responsiveness", "beta_mean")}
    return {"η": course["responsiveness"], "β / β₀": course["beta_mean"] / beta_of(content)}.get(part, np.empty(0))


def modality(done: Contents, world: str) -> Figure | None:
    """NDCG@10 on the cold split with true and with grey images, by items in the history where these differ; None where
    they were not measured."""
    view, blank = "cold", "cold, blank"
    methods = [method for method in methods_of(done, world) if method in SHOWN]
    if not methods or any(blank not in content["views"] for cell, content in done.items() if cell.world == world):
        return None
    first = done[Cell(world, methods[0], seeds_of(done, world, methods[0])[0])]["views"][view]
    history = numbers(first["history"])
    groups = {f"{history.min()} to {history.max()}": np.arange(len(history))}
    if spread_of_lengths(done, world, view):
        groups = rows_by_length(history)
    figure = Figure(figsize=(WIDTH, 0.9 + len(groups) * (0.7 + 0.23 * len(methods))), layout="constrained")
    chance = float(np.mean([metrics.ndcg([n], [0], 10)[0] for n in range(first["candidates"])]))
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, (length, rows)) in enumerate(zip(panels, groups.items())):
        axes.axvline(chance, color="0.6", linestyle=":", label="chance" if not number else "")
        for place, method in enumerate(methods):
            cells = [done[Cell(world, method, seed)] for seed in seeds_of(done, world, method)]
            full, grey = (np.mean([values(c, v, "NDCG@10")[rows].mean() for c in cells]) for v in (view, blank))
            names = ("true images", "grey images") if not number + place else ("", "")
            axes.plot([grey, full], [place, place], color="0.6", linewidth=1, zorder=0)
            axes.plot(full, place, "o", color="#D55E00", label=names[0])
            axes.plot(grey, place, "s", color="#0072B2", markerfacecolor="white", label=names[1])
        _rows(axes, methods)
        axes.set_title(f"histories of {length} items ({len(rows)} users)", fontsize=9, loc="left")
    panels[-1].set_xlabel("NDCG@10 (0 to 1), cold split")
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def _bar(axes: Axes, place: float, difference, colour: str, marker: str, face: str | None, label: str) -> None:
    """A dot with its interval."""
    axes.plot([difference.low, difference.high], [place, place], color=colour, linewidth=1.2)
    face = face or colour
    axes.plot(difference.value, place, marker, color=colour, markerfacecolor=face, markersize=4.5, label=label or None)


def _rows(axes: Axes, names: list[str]) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)

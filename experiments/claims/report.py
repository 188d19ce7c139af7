"""The paper's claims answered by rule, and two plots, from the rows of the study.

    python -m experiments.claims.report      writes claims.md, beta.png and ablation-biased-cold.png beside the rows

What is missing is said, and what failed stands with its reason. Plots can be read without colour and at the width of a
phone: methods differ by marker and line as well, and every axis has its unit.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.answers import answers, claims_page
from experiments.claims.commands import Key
from experiments.claims.table import RESULTS, Contents, measures_of, methods_of, paired, read_study, seeds_of
from experiments.claims.worlds import GRID, WORLDS
from hanorec.errors import DataError, exit_on_user_error

matplotlib.use("Agg")
matplotlib.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}

WIDTH = 5.2  # inches: on a phone the letters stay at 9 pixels
STYLE = {
    "paper": ("#D55E00", "o", 3.0),
    "calibrated": ("#009E73", "D", 1.5),
}  # colour (of Okabe and Ito), marker, width
OF_MEASURE = {"HR@1": ("#D55E00", "o", "white"), "NDCG@10": ("#0072B2", "s", None), "pairs": ("#0072B2", "D", None)}
PANELS = {  # of `parts_of_beta`: what is drawn of each part
    "λ": "λ (no unit): mean ± standard deviation",
    "η": "η (no unit): median, 5 to 95 % of the steps",
    "β / β₀": "β / β₀ (no unit): mean, smallest to largest",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="rows of the study")
    parser.add_argument("--study", default="study", help="which of its studies (default study)")
    args = parser.parse_args()
    found, failed = read_study(args.results, args.study)
    done = {key: row for key, row in found.items() if not key.trial}
    if not done and not failed:
        raise DataError(f"{args.results}: the study {args.study} has trials alone; nothing can be answered by them")
    worlds = [world for world in dict.fromkeys((*GRID, *WORLDS)) if any(k.world == world for k in (*done, *failed))]
    notes = [f"`{key.name}`: {row['failed']}" for key, row in failed.items()]
    about = about_rows(done, len(failed), len(found) - len(done))
    folder = args.results.parent
    (folder / "claims.md").write_text(claims_page(answers(done, worlds), about, notes), encoding="utf-8")
    for name, figure in (("beta", parts_of_beta(done)), ("ablation-biased-cold", ablation(done, "biased", "cold"))):
        if figure is not None:
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    print(f"wrote claims.md and plots in {folder}: {about}")


def about_rows(done: Contents, failed: int, trials: int) -> str:
    """What was read, in a sentence."""
    seeds = sorted({key.seed for key in done})
    parts = [f"{len(done)} cells of seeds {', '.join(map(str, seeds)) or '–'}"]
    versions = len({content["version"] for content in done.values()})
    parts.append(f"made by {versions} version{'s' * (versions != 1)} of the code")
    parts += [f"{failed} failed"] * bool(failed) + [f"trials left out: {trials}"] * bool(trials)
    return "; ".join(parts) + "."


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


def parts_of_beta(done: Contents) -> Figure | None:
    """λ, η and β / β₀ of HaNoRec in every world, with the share of pairs whose β is more than 5 % from β₀; None where
    no cell has them."""
    cells = {
        f"{world}, {method.removeprefix('hanorec-')}": [done[Key(world, method, s)] for s in seeds]
        for world in WORLDS
        for method in ("hanorec-paper", "hanorec-calibrated")
        if (seeds := [s for s in seeds_of(done, world, method) if "summary" in done[Key(world, method, s)]])
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
            colour, marker, width = STYLE[name.split(", ")[1]]
            axes.plot([low, high], [place, place], color=colour, linewidth=width)
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
    return float(given[-1]) if given else 0.1  # the default of --beta for HaNoRec


def of_steps(content: dict, part: str) -> np.ndarray:
    """η, or the mean of β / β₀, at every logged step of a run; λ does not change from step to step, and has none."""
    course = {name: np.array(content["course"].get(name, [])) for name in ("responsiveness", "beta_mean")}
    return {"η": course["responsiveness"], "β / β₀": course["beta_mean"] / beta_of(content)}.get(part, np.empty(0))


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


if __name__ == "__main__":
    with exit_on_user_error():
        main()

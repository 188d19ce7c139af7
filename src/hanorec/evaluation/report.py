"""Results as text for a person.

In flow measures by method; out flow Markdown tables, and how far a method has come from popularity to what is possible.
Or a user and the scores of the candidates; then the lists of candidates flow out, side by side.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from hanorec.data.examples import Example
from hanorec.errors import shown
from hanorec.evaluation.metrics import positions

WIDEST_TITLE = 36  # columns of a terminal
Measures = Mapping[str, tuple[float, float, float]]  # value and its 95 % interval


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table. The first column is set to the left, the others to the right."""
    header, *rows = [[shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def results_table(results: Mapping[str, Measures], main: str) -> str:
    """A table with a row for each method and a column for each measure; the measure `main` has its interval."""
    names = list(dict.fromkeys(name for measures in results.values() for name in measures))
    header = ["method", *(f"{name} [95 %]" if name == main else name for name in names)]
    rows = []
    for method, measures in results.items():
        cells = [method]
        for name in names:
            if name not in measures:
                cells.append("–")
                continue
            value, low, high = measures[name]
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]" if name == main else f"{value:.3f}")
        rows.append(cells)
    return markdown(header, rows)


def share_of_possible(results: Mapping[str, Measures], method: str, measure: str) -> float | None:
    """How much of the way from popularity to the oracle that sees both modalities a method has gone, 0 to about 1.

    None where this means nothing: there is no oracle, or the oracle or the method is not above popularity.
    """
    try:
        low, high, value = (results[m][measure][0] for m in ("popularity", "oracle: words and images", method))
    except KeyError:
        return None
    return (value - low) / (high - low) if min(high, value) > low else None


def by_length_table(
    by_length: Mapping[str, Mapping[str, Mapping[str, float]]], counts: Mapping[str, int], measure: str
) -> str:
    """A table of one measure with a row for each method and a column for each length of history, or range of lengths.

    by_length: {length: {method: {measure: value}}}. counts: examples of each.
    """
    header = [measure, *(f"{length} item{'s' * (length != '1')} (n={counts[length]})" for length in by_length)]
    methods = next(iter(by_length.values()))
    rows = [[method, *(f"{by_length[length][method][measure]:.3f}" for length in by_length)] for method in methods]
    return markdown(header, rows)


def user_lists(example: Example, titles: Sequence[str], scores: Mapping[str, np.ndarray], top: int = 5) -> str:
    """A user's history, and each run's best candidates side by side, as aligned plain text; * marks the true next item.

    titles: of every item. scores: {run: [C]}, one for each of the example's candidates. Ties stand in the order of the
    candidates, and the rank of a tied target is given as a range.
    """
    (target,) = example.targets
    columns = []
    for run, values in scores.items():
        order = np.argsort(-values, kind="stable")[:top]
        items = [example.candidates[index] for index in order]
        ((ahead,), (tied,)) = positions(values[None], [example.candidates.index(target)])
        rank = f"{ahead + 1}" + (f"–{ahead + tied + 1}" if tied else "")
        marked = [("* " if item == target else "  ") + _cut(shown(titles[item])) for item in items]
        columns.append([f"  {shown(run)}", *marked, f"  rank {rank} of {len(values)}"])
    labels = ["", *(str(rank + 1) for rank in range(len(columns[0]) - 2)), "truth"]
    lines = [f"user {shown(example.user)}"]
    for item in example.history:
        lines.append(f"{'' if len(lines) > 1 else 'chose':>8}    {shown(titles[item])}")
    lines += [f"{'then':>8}  * {shown(titles[target])}", ""]
    widths = [max(map(_width, column)) for column in columns]
    for label, *cells in zip(labels, *columns):
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths))
        lines.append(f"{label:>8}  {'  '.join(padded)}".rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns that a text takes in a terminal, where East Asian letters are two wide and combining ones stand above."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _cut(title: str) -> str:
    """A title that takes at most WIDEST_TITLE columns."""
    if _width(title) <= WIDEST_TITLE:
        return title
    while _width(title) >= WIDEST_TITLE:
        title = title[:-1]
    return title + "…"

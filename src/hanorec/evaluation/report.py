"""Results as text: one table for a person, one dict for a file.

In: measures by method, (value, low, high) each. Out: Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Measures = Mapping[str, tuple[float, float, float]]  # value and its 95 % interval


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def results_table(results: Mapping[str, Measures], main: str) -> str:
    """Methods down, measures across; the main measure with its interval."""
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
    """How much of the way from popularity to the oracle that sees both modalities a method has gone; None where there
    is no such way: no oracle, an oracle that is not above popularity, or a method that is not."""
    try:
        low, high, value = (results[m][measure][0] for m in ("popularity", "oracle: words and images", method))
    except KeyError:
        return None
    return (value - low) / (high - low) if min(high, value) > low else None


def by_length_table(groups: Mapping[int, Mapping[str, float]], counts: Mapping[int, int], measure: str) -> str:
    """Methods down, history lengths across."""
    lengths = sorted(groups)
    header = [measure, *(f"{length} item{'s' * (length > 1)} (n={counts[length]})" for length in lengths)]
    methods = list(groups[lengths[0]])
    return markdown(header, [[m, *(f"{groups[length][m]:.3f}" for length in lengths)] for m in methods])

"""Is a difference more than chance? Every run less one of the methods, paired over users and seeds.

In: one number a user and measure of every method, and which runs differ by their seed alone. Out: a table of mean
differences with intervals and p-values, corrected over the whole table, and one of means over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hanorec.evaluation.paired import holm, paired_difference
from hanorec.evaluation.report import markdown

OfUsers = Mapping[str, np.ndarray]  # [U], by measure
Seeds = Mapping[int, str]  # the method, by seed, of runs that differ by it alone


def seed_groups(runs: Mapping[str, tuple[str, int]]) -> dict[str, Seeds]:
    """The groups of at least two runs that differ by their seed alone, by a name for the table.

    runs: by folder, what else a run was made with, and its seed. Of two runs with one seed the first counts.
    """
    groups: dict[str, dict[int, str]] = {}
    for run, (settings, seed) in runs.items():
        groups.setdefault(settings, {}).setdefault(seed, run)
    return {
        f"{next(iter(seeds.values()))}, {len(seeds)} seeds": dict(sorted(seeds.items()))
        for seeds in groups.values()
        if len(seeds) > 1
    }


def seeds_table(groups: Mapping[str, Seeds], of_users: Mapping[str, OfUsers], measures: Sequence[str]) -> str:
    """A row a group: the mean over its seeds, and their standard deviation."""
    rows = []
    for name, seeds in groups.items():
        means = {measure: [of_users[run][measure].mean() for run in seeds.values()] for measure in measures}
        rows.append([name, *(f"{np.mean(m):.3f} ± {np.std(m, ddof=1):.3f}" for m in means.values())])
    return markdown(["seeds", *measures], rows)


def differences_table(
    of_users: Mapping[str, OfUsers],
    methods: Sequence[str],
    against: str,
    measures: Sequence[str],
    groups: Mapping[str, Seeds],
) -> str:
    """A row for each of `methods`, and for each group of seeds: its measures less those of `against`, with the 95 %
    interval of the bootstrap over users (`paired.paired_difference`) and its p-value after Holm's correction over all
    of the table.

    Where `against` is a run of a group, another group is compared with that group, seed by seed.
    """
    compared: dict[str, list[tuple[str, str]]] = {
        method: [(method, against)] for method in methods if method != against
    }
    home = next((seeds for seeds in groups.values() if against in seeds.values()), None)
    for name, seeds in groups.items():
        if seeds is not home:
            pairs = [(run, home.get(seed) if home else against) for seed, run in seeds.items()]
            compared[name] = [(run, other) for run, other in pairs if other is not None]
    found = {
        (name, measure): paired_difference([of_users[a][measure] - of_users[b][measure] for a, b in pairs])
        for name, pairs in compared.items()
        for measure in measures
        if pairs
    }
    adjusted = dict(zip(found, holm([difference.p for difference in found.values()])))
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        cells = [name]
        for measure in measures:
            each = found[name, measure]
            cells += [f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]", f"{adjusted[name, measure]:.3f}"]
        rows.append(cells)
    header = [cell for measure in measures for cell in (f"{measure} [95 %]", "p (Holm)")]
    return markdown([f"less {against}", *header], rows)

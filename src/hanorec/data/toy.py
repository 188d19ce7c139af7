"""The embedded toy catalogue: a world small enough that the best possible recommender is known exactly.

An item has a theme, which shows only in its title's words, and a style, which shows only in its drawn image.
A user is of one of THEMES × STYLES types: a favourite theme and a favourite style. Each choice draws a cell
(theme, style) from the type's distribution, then an item of that cell that the user has not chosen yet, all
alike. Types are finite, so `oracles.py` can compute the Bayes-optimal ranking from words, images or both.

Some items are cold: they occur in no training history. `cold.tsv` has histories of cold items with a warm
target, so there a title says nothing about a style, and only the image does.

Two more things are made for studies of the method. `exchanged` gives a share of the items another item's image, so
that a model trained there learns to distrust images. `negatives.tsv` lists items to reject for a target, of which a
share `near` is of its theme or of its style, and the others are of neither.

In: a folder and a seed. Out: the dataset layout of `docs/data.md` plus `world.json`, which the oracles read.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

THEMES: dict[str, tuple[str, ...]] = {
    "space": ("Comet", "Orbit", "Nebula", "Rocket", "Eclipse", "Lunar", "Meteor", "Galaxy"),
    "sea": ("Harbour", "Tide", "Coral", "Anchor", "Lagoon", "Sailor", "Reef", "Island"),
    "crime": ("Detective", "Alibi", "Heist", "Verdict", "Suspect", "Ransom", "Witness", "Forgery"),
    "magic": ("Wizard", "Potion", "Spell", "Oracle", "Dragon", "Amulet", "Goblin", "Sorcery"),
    "music": ("Sonata", "Chorus", "Rhythm", "Fiddle", "Ballad", "Encore", "Melody", "Trumpet"),
    "winter": ("Frost", "Glacier", "Blizzard", "Sledge", "Icicle", "Arctic", "Snowfall", "Avalanche"),
}
STYLES = ("stripes", "rings", "dots", "checks", "waves", "triangles")
IMAGE_SIZE = 64

_ONSETS = "b d f g h j k l m n p r s t v z".split()
_RIMES = (
    "ara elin ilo oma una avek eris iko orn umi ade ola axi evo ith odin uzo ayo ent iva "
    "asko eth inu olf ulan arbo emi iden oss ury"
).split()
NAMES = tuple((onset + rime).capitalize() for rime in _RIMES for onset in _ONSETS)  # 480 invented names
MORE_NAMES = tuple(name + ending for ending in ("ld", "nt", "sk") for name in NAMES)  # for worlds of more items
LISTED = 100  # most items of a line of negatives.tsv


@dataclass(frozen=True)
class World:
    """What the toy world has. `warm_per_cell` and `cold_per_cell` count items of each theme and style; `affinity`
    is the log-odds that a user's favourite theme (or style) has over another one; `spread` is the standard deviation
    of the log-popularity of the tastes. Histories of `cold.tsv` have `shortest_cold` (at most `cold_per_cell`) to
    `cold_per_cell` items. `exchanged` is the probability that an item has another item's image; `near` is the share of
    items in a line of `negatives.tsv` that are of the item's theme or of its style. Neither changes any other file."""

    warm_per_cell: int = 8
    cold_per_cell: int = 5
    users: int = 4000
    cold_users: int = 1000
    longest_row: int = 8
    shortest_row: int = 4
    affinity: float = 3.0
    spread: float = 0.5
    shortest_cold: int = 5
    exchanged: float = 0.0
    near: float = 0.05
    seed: int = 2025


def choice_probabilities(affinity: float) -> np.ndarray:
    """p(cell | type), float [types, cells]: types and cells are both numbered theme * len(STYLES) + style."""
    theme = np.exp(affinity * np.eye(len(THEMES)))
    style = np.exp(affinity * np.eye(len(STYLES)))
    weights = np.kron(theme, style)
    return weights / weights.sum(axis=1, keepdims=True)


def draw(style: str, rng: np.random.Generator, size: int = IMAGE_SIZE) -> Image.Image:
    """One image of a style. Colours, scale, angle, place and grain are drawn alike for every style, so that
    only the shapes tell the style.

    Errors: ValueError for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style: {style!r} is not one of {', '.join(STYLES)}")
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    period = rng.uniform(0.16, 0.30)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 1)
    v = (y * np.cos(angle) - x * np.sin(angle)) / period + rng.uniform(0, 1)
    if style == "stripes":
        shape = np.cos(2 * np.pi * u)
    elif style == "waves":
        shape = np.cos(2 * np.pi * (u + 0.35 * np.sin(2 * np.pi * 0.7 * v)))
    elif style == "rings":
        shape = np.cos(2 * np.pi * np.hypot(x - rng.uniform(-0.2, 0.2), y - rng.uniform(-0.2, 0.2)) / period)
    elif style == "dots":
        shape = 0.33 - np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    elif style == "checks":
        shape = np.cos(np.pi * u) * np.cos(np.pi * v)
    else:  # triangles, alternating in rows
        shape = (v % 1) - 2 * np.abs(u % 1 - 0.5)
    mask = (1 / (1 + np.exp(-np.clip(shape * 12, -30, 30))))[..., None]
    ink, paper = _two_colours(rng)
    pixels = mask * ink + (1 - mask) * paper
    light = 1 + rng.uniform(-0.25, 0.25) * x[..., None] + rng.uniform(-0.25, 0.25) * y[..., None]
    pixels = pixels * light + rng.normal(0, 0.04, pixels.shape)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8), "RGB")


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours whose brightness differs visibly, in either order."""
    while True:
        ink, paper = rng.uniform(0, 1, (2, 3))
        if abs(ink.mean() - paper.mean()) > 0.25:
            return ink, paper


def exchange(items: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Whose image every item has, [items]: with a probability that of another item, else its own."""
    shown = np.arange(items)
    chosen = rng.permutation(np.flatnonzero(rng.random(items) < probability))
    shown[chosen] = np.roll(chosen, 1)
    return shown


def near_and_far(cell_of: np.ndarray, warm: np.ndarray, near: float, rng: np.random.Generator) -> dict[int, list[int]]:
    """Items to reject for every warm item: a share `near` of its theme or of its style but not both, the others of
    neither. At most LISTED an item, and fewer where there are not as many.

    cell_of, warm [items]: each item's cell, and whether it occurs in training.
    """
    theme, style, wanted = cell_of // len(STYLES), cell_of % len(STYLES), round(near * LISTED)
    lists = {}
    for item in np.flatnonzero(warm):
        alike = (theme == theme[item]).astype(int) + (style == style[item])
        close, far = (rng.permutation(np.flatnonzero(warm & (alike == number))) for number in (1, 0))
        lists[int(item)] = [*close[:wanted].tolist(), *far[: LISTED - wanted].tolist()]
    return lists


def make_toy(folder: str | Path, world: World = World()) -> Path:
    """Write the toy catalogue into `folder`, which appears only when it is complete; the same `world` gives
    the same files. Returns the folder.

    Errors: ValueError where a user could need more items of a cell than there are, and for shares outside 0 to 1.
    """
    per_cell = world.warm_per_cell + world.cold_per_cell
    cells = len(THEMES) * len(STYLES)
    enough = NAMES if cells * per_cell <= len(NAMES) else NAMES + MORE_NAMES
    if world.longest_row > world.warm_per_cell or len(enough) < cells * per_cell:
        raise ValueError(
            f"longest_row must be at most warm_per_cell, and there are {len(enough)} names for all items: {world}"
        )
    if not (0 <= world.exchanged <= 1 and 0 <= world.near <= 1):
        raise ValueError(f"exchanged and near are shares, from 0 to 1: {world}")
    folder = Path(folder)
    rng = np.random.default_rng(world.seed)
    cell_of = np.repeat(np.arange(cells), per_cell)
    cold = np.tile(np.arange(per_cell) >= world.warm_per_cell, cells)
    shuffle = rng.permutation(len(cell_of))  # so that an item's number says nothing about it
    cell_of, cold = cell_of[shuffle], cold[shuffle]
    themes, words = list(THEMES), list(THEMES.values())
    names = rng.permutation(enough)  # a title is a word of its theme and a name of its own
    titles = [f"{rng.choice(words[cell // len(STYLES)])} {name}" for cell, name in zip(cell_of, names)]
    images = [draw(STYLES[cell % len(STYLES)], rng) for cell in cell_of]

    choices = choice_probabilities(world.affinity)
    taste = np.exp(rng.normal(0, world.spread, len(THEMES)))[:, None] * np.exp(rng.normal(0, world.spread, len(STYLES)))
    prior = (taste / taste.sum()).ravel()
    warm_in = [np.flatnonzero((cell_of == cell) & ~cold) for cell in range(cells)]
    cold_in = [np.flatnonzero((cell_of == cell) & cold) for cell in range(cells)]

    def choose(pools: list[list[np.ndarray]]) -> list[int]:
        """One user's choices: at step t from pools[t][cell], never the same item twice."""
        kind, chosen = rng.choice(cells, p=prior), []
        for pool in pools:
            cell = rng.choice(cells, p=choices[kind])
            chosen.append(int(rng.choice([item for item in pool[cell] if item not in chosen])))
        return chosen

    lengths = rng.integers(world.shortest_row, world.longest_row + 1, world.users)
    warm_users = [choose([warm_in] * length) for length in lengths]
    shortest_cold = min(world.shortest_cold, world.cold_per_cell)
    cold_lengths = rng.integers(shortest_cold, world.cold_per_cell + 1, world.cold_users)
    cold_users = [choose([cold_in] * length + [warm_in]) for length in cold_lengths]
    shown = exchange(len(images), world.exchanged, np.random.default_rng([world.seed, 1]))
    negatives = near_and_far(cell_of, ~cold, world.near, np.random.default_rng([world.seed, 2]))

    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    try:
        for item, image in enumerate(shown):
            images[image].save(partial / "images" / f"{item}.png")
        with open(partial / "titles.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("item", "title"), *enumerate(titles)])
        for name, users, cut in [
            ("train", warm_users, -2),
            ("val", warm_users, -1),
            ("test", warm_users, None),
            ("cold", cold_users, None),
        ]:
            lines = (
                f"{name[0] if name == 'cold' else 'u'}{user}\t{' '.join(map(str, items[:cut]))}\n"
                for user, items in enumerate(users)
            )
            (partial / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        lists = (f"{item}\t{' '.join(map(str, items))}\n" for item, items in negatives.items())
        (partial / "negatives.tsv").write_text("".join(lists), encoding="utf-8")
        facts = {
            "world": asdict(world),
            "themes": themes,
            "styles": list(STYLES),
            "prior": prior.tolist(),
            "items": {
                str(item): [int(cell) // len(STYLES), int(cell) % len(STYLES)] for item, cell in enumerate(cell_of)
            },
        }
        (partial / "world.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder

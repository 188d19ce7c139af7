"""The numbers of `diagnose.py` as a page: a table for each question, and above it what it shows and in which unit."""

from __future__ import annotations

from hanorec.evaluation.report import markdown

NONE = "–"
WITHOUT = "A dash stands where an objective has no such thing."


def document(found: dict) -> str:
    """The whole page in Markdown."""
    sections = {
        "λ, η and β over training": over_training(found),
        "λ, η and β of the trained policy": of_trained_policy(found),
        "What hard pairs count, and whether they are learned": by_hardness(found),
        "Log-probabilities over training": log_probabilities(found),
        "Is an image near its title?": recalls(found),
        "What is lost without the images": lost(found),
        "Whose rank has moved?": moves(found),
    }
    for run, each in found["moved"].items():
        sections[f"Items that moved most from {found['options']['sft']} to {run}"] = items(each)
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def over_training(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        for part in about["course"] if about["adapts"] else [None]:
            rows.append([run, about["loss"], recipe(about), *beta_cells(part, about["beta"])])
    header = ["run", "objective", "recipe", "steps", "λ", "η", "β / β₀", "adapted pairs"]
    return (
        "By the run's own log, a fifth of its logged steps a line, without unit. λ: mean ± standard deviation over the "
        "pairs of a step, mean over the steps. η: median [least, most] of the steps. β / β₀: mean over the pairs "
        "[smallest, largest of all]. Adapted pairs: the share whose β differs from β₀ by more than 5 %. "
        f"{WITHOUT}\n\n{markdown(header, rows)}"
    )


def beta_cells(part: dict | None, beta: float) -> list[str]:
    if part is None:
        return [NONE] * 5
    low, high = part["beta_min:min"] / beta, part["beta_max:max"] / beta
    eta = [part[f"responsiveness:{which}"] for which in ("median", "min", "max")]
    return [
        steps(part),
        f"{part['hardness_mean']:.3f} ± {part['hardness_std']:.3f}",
        f"{eta[0]:.2f} [{eta[1]:.2f}, {eta[2]:.2f}]",
        f"{part['beta_mean'] / beta:.2f} [{low:.2f}, {high:.2f}]",
        f"{part['adapted']:.0%}",
    ]


def of_trained_policy(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        for name in ("λ", "η", "β / β₀"):
            values = about["pairs"].get(name)
            cells = [f"{value:.3f}" for value in values] if values else [NONE] * 5
            adapted = f"{about['pairs']['adapted']:.0%}" if values and name == "β / β₀" else NONE
            rows.append([run, recipe(about), name, *cells, adapted])
    return (
        f"The same of {found['pairs']} fixed training pairs, after training and without noise: Eqs. 5 to 11 between "
        "the trained policy and its reference, in batches of the run's size; without unit. λ and β are one a pair, η "
        "is one a batch; columns are the shares of pairs, or batches, that lie below the value.\n\n"
        + markdown(["run", "recipe", "", "5 %", "25 %", "50 %", "75 %", "95 %", "adapted pairs"], rows)
    )


def by_hardness(found: dict) -> str:
    rows = []
    for number, cell in enumerate(found["sft quintiles"]):
        first = next(iter(found["runs"].values()))["quintiles"][number]
        own = [found["options"]["sft"], quintile(number), f"{first['hardness']:.4f}", NONE, NONE, NONE]
        rows.append([*own, f"{cell['likelier']:.3f}"])
    for run, about in found["runs"].items():
        for number, cell in enumerate(about["quintiles"]):
            weight = NONE if cell["weight"] is None else f"{cell['weight']:.4f}"
            rows.append(
                [run, quintile(number), f"{cell['hardness']:.4f}", weight, f"{cell['margin']:+.3f}",
                 f"{cell['accuracy']:.3f}", f"{cell['likelier']:.3f}"]
            )  # fmt: skip
    header = ["run", "pairs", "λ", "gradient weight", "Δ", "Δ > 0", "chosen likelier"]
    return (
        f"The same pairs in fifths by λ, the hardest (smallest λ, as {found['hardness of']} computes it) first; means. "
        "Gradient weight: β σ(−βΔ), how strongly a pair pulls at its margin; without unit. Δ: by how many nats the "
        "policy prefers the chosen response more than the reference does. Δ > 0: the share of pairs where it does, the "
        "accuracy of training logs. Chosen likelier: the share of pairs where the model itself gives the chosen "
        f"response the higher probability.\n\n{markdown(header, rows)}"
    )


def log_probabilities(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        for part in about["course"]:
            names = ("chosen_logp", "rejected_logp", "chosen_logp_per_token", "rejected_logp_per_token")
            logps = [f"{part[name]:.3f}" if name in part else NONE for name in names]
            rows.append([run, steps(part), *logps, f"{part['accuracy']:.3f}"])
    header = ["run", "steps", "chosen", "rejected", "chosen, a token", "rejected, a token", "accuracy"]
    return (
        "log π of chosen and rejected responses in nats, of a whole response and of a token of it, by the run's own "
        "log (with its noise and dropout): means over a fifth of the logged steps. Where both fall, the policy pushes "
        "rejected responses down and takes the chosen ones along. Accuracy: the share of a step's pairs where the "
        f"chosen response has the larger reward.\n\n{markdown(header, rows)}"
    )


def recalls(found: dict) -> str:
    chance = next((each["chance"] for each in found["retrieval"].values() if each), None)
    if chance is None:
        return "The catalogue has no images."
    rows = []
    for model, each in found["retrieval"].items():
        cells = [each[space][name] for space in ("input", "output") for name in ("recall@1", "recall@10")]
        rows.append([model, *(f"{value:.3f}" for value in cells)])
    cells = [f"{chance[name]:.3f}" for name in ("recall@1", "recall@10")]
    rows.append(["chance", *cells, *cells])
    header = ["model", "input: recall@1", "recall@10", "output: recall@1", "recall@10"]
    return (
        f"For each of {chance['items']} items: is its image the nearest of all images to its title (recall@1), or "
        "among the ten nearest (recall@10)? Shares, 0 to 1. Input: a title's mean token embedding against an image's "
        "mean feature behind the connector. Output: the mean of the title tokens' rows of the output head against the "
        "last hidden state behind the image, so which title the model expects after it. Both by cosine similarity, "
        "after the mean of all titles and the mean of all images are taken away. The first row is the backbone before "
        "SFT. A title of the toy catalogue says nothing of its image, so that there only pairs that were learned (SFT "
        f"with `--name-history`) are above chance.\n\n{markdown(header, rows)}"
    )


def lost(found: dict) -> str:
    rows = []
    for model, groups in found["lost"].items():
        for number, cell in enumerate(groups):
            span = f"{cell['from']}" if cell["from"] == cell["to"] else f"{cell['from']} to {cell['to']}"
            span = "all" if not number and len(groups) > 1 else span
            differences = [interval(cell["lost"][modality]) for modality in ("blank", "shuffled")]
            rows.append([model, span, str(cell["users"]), f"{cell['HR@1']:.3f}", *differences])
    header = ["model", "items in the history", "users", "HR@1", "lost with grey images", "lost with exchanged images"]
    return (
        f"HR@1, 0 to 1, of {found['users']} {found['options']['split']} users among {found['candidates']} candidates "
        "with the true images, and how much of it is lost where every image is grey or another item's: mean "
        "difference, paired by user, with its 95 % interval. Above 0, the model looks at the images.\n\n"
        + markdown(header, rows)
    )


def moves(found: dict) -> str:
    rows = [
        [run, interval(each["mean"], "+.2f"), *(f"{each[way]:.0%}" for way in ("moved up", "moved down"))]
        for run, each in found["moved"].items()
    ]
    sft = found["options"]["sft"]
    return (
        f"By how many places the true next item has moved up among {found['candidates']} candidates from {sft} to "
        "the run: mean over the same users, its 95 % interval, and the shares of users whose item moved up or down.\n\n"
        + markdown(["run", "places up", "moved up", "moved down"], rows)
    )


def items(each: dict) -> str:
    rows = [[row["title"], str(row["users"]), f"{row['up']:+.2f}"] for row in [*each["up"], *each["down"][::-1]]]
    if not rows:
        return "No item that at least three of the users have as their next one has moved; give more --users."
    return (
        f"Of the {each['items']} items that at least three of the users have as their next one, those that moved up "
        "and down most: places, mean over these users. So few users make a mean noisy, and these are its extremes: a "
        f"pattern in them is worth a look, a single item is not.\n\n{markdown(['item', 'users', 'places up'], rows)}"
    )


def recipe(about: dict) -> str:
    return about["recipe"] if about["adapts"] else NONE


def steps(part: dict) -> str:
    return f"{part['first']} to {part['last']}"


def quintile(number: int) -> str:
    return {0: "1, hardest", 4: "5, easiest"}.get(number, str(number + 1))


def interval(difference: dict, how: str = "+.3f") -> str:
    return " ".join([f"{difference['value']:{how}}", f"[{difference['low']:{how}}, {difference['high']:{how}}]"])

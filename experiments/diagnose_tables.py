"""The numbers of `diagnose.py` as a page: a table for each question, and above it what it shows and in which unit."""

from __future__ import annotations

from hanorec.evaluation.report import markdown

NONE = "–"


def document(found: dict) -> str:
    """The whole page in Markdown."""
    sft, runs = found["options"]["sft"], found["runs"]
    sections = {
        "λ, η and β over training": over_training(found),
        "λ, η and β after training": after_training(found),
        "What hard pairs count, and whether they are learned": by_hardness(found),
        "Log-probabilities over training": log_probabilities(found),
        "Is an image near its title?": recalls(found),
        "What is lost without the images": lost(found),
        "Whose rank has moved?": moves(found),
    } | {f"Items that moved most from {sft} to {run}": items(about["moved"]) for run, about in runs.items()}
    head = f"# {', '.join(runs)}: what happened in training\n\n{sft} is the start and the frozen reference. "
    head += f"{NONE} stands where an objective has no such number."
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())])


def over_training(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        if about["recipe"]:
            for part in about["course"]:
                rows.append([run, about["recipe"], steps(part), *cells_of_beta(part, about["beta"])])
        else:
            rows.append([run, *[NONE] * 6])
    return (
        "How hard pairs are (λ, Eq. 6), how strongly the policy responds (η, Eq. 8) and what β comes of both (Eq. "
        "11), each without unit, by the run's log; a line is a fifth of the logged steps. λ: mean ± standard "
        "deviation over the pairs of a step. η: median over the steps, and in brackets the least and the greatest. β "
        "/ β₀: mean over the pairs, and in brackets the smallest and the largest of all. Adapted: the share of pairs "
        "whose β differs "
        "from β₀ by more than 5 %.\n\n" + markdown(["run", "recipe", "steps", "λ", "η", "β / β₀", "adapted"], rows)
    )


def cells_of_beta(part: dict, beta: float) -> list[str]:
    """λ, η, β / β₀ and the share of adapted pairs in a part of a log."""
    low, high = part["beta_min:min"] / beta, part["beta_max:max"] / beta
    middle, least, greatest = (part[f"responsiveness:{which}"] for which in ("median", "min", "max"))
    return [
        f"{part['hardness_mean']:.3f} ± {part['hardness_std']:.3f}",
        f"{middle:.3f} [{least:.3f}, {greatest:.3f}]",
        f"{part['beta_mean'] / beta:.3f} [{low:.3f}, {high:.3f}]",
        f"{part['adapted']:.0%}",
    ]


def after_training(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        if not about["recipe"]:
            rows.append([run, *[NONE] * 8])
            continue
        for name in ("λ", "η", "β / β₀"):
            values = [f"{value:.3f}" for value in about["pairs"][name]]
            adapted = f"{about['pairs']['adapted']:.0%}" if name == "β / β₀" else ""
            rows.append([run, about["recipe"], name, *values, adapted])
    return (
        f"The same for {found['pairs']} training pairs, by the trained policy and its reference without noise, in "
        "batches of the run's size. λ and β are one a pair, η is one a batch. Columns are quantiles: 5 % of the "
        "pairs, or batches, lie below the first number.\n\n"
        + markdown(["run", "recipe", "", "5 %", "25 %", "50 %", "75 %", "95 %", "adapted"], rows)
    )


def by_hardness(found: dict) -> str:
    rows = []
    models = {found["options"]["sft"]: found["sft"]}
    models |= {run: about["quintiles"] for run, about in found["runs"].items()}
    formats = {"weight": ".4f", "margin": "+.3f", "accuracy": ".3f", "likelier": ".3f"}
    for model, groups in models.items():
        for number, (hardness, group) in enumerate(zip(found["hardness"], groups), 1):
            name = {1: "1, hardest", 5: "5, easiest"}.get(number, str(number))
            numbers = {key: group.get(key) for key in formats}
            cells = [NONE if numbers[key] is None else f"{numbers[key]:{how}}" for key, how in formats.items()]
            rows.append([model, name, f"{hardness:.4f}", *cells])
    return (
        f"The same pairs in fifths by λ, which {found['hardness of']} computes; the hardest, with the smallest λ, come "
        "first. All numbers are means over a fifth. Gradient weight: β σ(−βΔ), the size of the gradient that a pair "
        "gives to its margin Δ. Δ: by how many nats the policy prefers the chosen response more than the reference "
        "does. Δ > 0: the share of pairs where it does. Chosen likelier: the share of pairs where the model gives the "
        "chosen response the higher probability.\n\n"
        + markdown(["model", "fifth", "λ", "gradient weight", "Δ", "Δ > 0", "chosen likelier"], rows)
    )


def log_probabilities(found: dict) -> str:
    names = ("chosen_logp", "rejected_logp", "chosen_logp_per_token", "rejected_logp_per_token", "accuracy")
    rows = []
    for run, about in found["runs"].items():
        parts = {steps(part): part for part in about["course"]}
        before, after = found["logps"][found["options"]["sft"]], found["logps"][run]
        for when, part in (parts | {"same pairs, before": before, "same pairs, after": after}).items():
            rows.append([run, when, *(f"{part[name]:.3f}" if name in part else NONE for name in names)])
    header = ["run", "steps", "chosen", "rejected", "chosen, a token", "rejected, a token", "accuracy"]
    return (
        "log π of chosen and rejected responses, in nats a response and in nats a token, by the run's log (with noise "
        "and dropout); a line is a fifth of the logged steps, and its numbers are means. Every step has other pairs, "
        f"so the last two lines of a run compare the {found['pairs']} pairs of above, by the reference and by the "
        "trained policy without noise. Where both fall, training takes chosen responses down together with the "
        "rejected ones. Accuracy: the share of a step's pairs where the chosen response has the larger reward; in DPO "
        f"and HaNoRec that is Δ > 0.\n\n{markdown(header, rows)}"
    )


def recalls(found: dict) -> str:
    chance = next((each["chance"] for each in found["retrieval"].values() if each), None)
    if chance is None:
        return "The catalogue has no images."
    rows = []
    for model, each in (found["retrieval"] | {"chance": {"input": chance, "output": chance}}).items():
        cells = [each[space][name] for space in ("input", "output") for name in ("recall@1", "recall@10")]
        rows.append([model, *(f"{value:.3f}" for value in cells)])
    header = ["model", "input: recall@1", "recall@10", "output: recall@1", "recall@10"]
    return (
        f"For each of {chance['items']} items: is its image the nearest of all images to its title (recall@1), or "
        "among the ten nearest (recall@10)? Shares, 0 to 1. Input: a title's mean token embedding against an image's "
        "mean feature behind the connector. Output: the mean of the title tokens' rows of the output head against the "
        "last hidden state behind the image, so which title the model expects after it. Both by cosine similarity, "
        "after the mean of all titles and the mean of all images are taken away. The first row is the backbone before "
        "SFT. A title of the toy catalogue says nothing of its image, so that there only pairs that were learned by "
        f"heart (SFT with `--name-history`) are above chance.\n\n{markdown(header, rows)}"
    )


def lost(found: dict) -> str:
    rows = []
    for model, groups in found["lost"].items():
        for number, cell in enumerate(groups):
            span = f"{cell['from']}" if cell["from"] == cell["to"] else f"{cell['from']} to {cell['to']}"
            span = "all" if not number and len(groups) > 1 else span
            differences = [interval(cell["lost"][modality], "+.3f") for modality in ("blank", "shuffled")]
            rows.append([model, span, str(cell["users"]), f"{cell['HR@1']:.3f}", *differences])
    header = ["model", "items in the history", "users", "HR@1", "lost with grey images", "lost with exchanged images"]
    return (
        f"HR@1 (0 to 1) of {found['users']} users of the split {found['options']['split']}, among "
        f"{found['candidates']} candidates, with the true images; and how much of it is lost where every image is "
        "grey, or is another item's: the mean difference, paired by user, with its 95 % interval. A loss above 0 "
        f"means that the model uses the images.\n\n{markdown(header, rows)}"
    )


def moves(found: dict) -> str:
    rows = []
    for run, about in found["runs"].items():
        each = about["moved"]
        rows.append([run, interval(each["mean"], "+.2f"), f"{each['moved up']:.1%}", f"{each['moved down']:.1%}"])
    return (
        f"By how many places the true next item has moved up among the candidates from {found['options']['sft']} to "
        "the run: the mean over the same users with its 95 % interval, and the shares of users for whom it moved up "
        f"or down.\n\n{markdown(['run', 'places up', 'moved up', 'moved down'], rows)}"
    )


def items(moved: dict) -> str:
    rows = [[row["title"], str(row["users"]), f"{row['up']:+.2f}"] for row in [*moved["up"], *moved["down"][::-1]]]
    if not rows:
        return "No item that is the next one of at least three users has moved; --users ranks more of them."
    return (
        f"Of the {moved['items']} items that are the next one of at least three users, those that moved up and down "
        "most: places, mean over these users. These are the extremes of many means over few users: a pattern in them "
        f"is worth a look, a single item is not.\n\n{markdown(['item', 'users', 'places up'], rows)}"
    )


def steps(part: dict) -> str:
    return f"{part['first']} to {part['last']}" if part["first"] < part["last"] else str(part["first"])


def interval(difference: dict, how: str) -> str:
    return f"{difference['value']:{how}} [{difference['low']:{how}}, {difference['high']:{how}}]"

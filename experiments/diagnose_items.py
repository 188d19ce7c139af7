"""What `diagnose.py` says of items: is an image near its title, what do images add, and whose rank has moved?

In: a model, the catalogue, and the places that models give to users' targets. Out: recall of images by titles, and
differences that are paired by user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hanorec.data.batching import batches
from hanorec.data.examples import Example
from hanorec.evaluation import metrics
from hanorec.evaluation.measures import rows_by_length, target_positions
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.ranking import answer_with_model
from hanorec.hardness import embed_modalities
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.randomness import rng

RETRIEVAL_ITEMS = 1000  # most items among which an image is looked for
MODALITIES = ("full", "blank", "shuffled")


def retrieval(backbone: Backbone, prompts: Prompts, titles: Sequence[str], seed: int) -> dict[str, dict]:
    """How often an item's image is the nearest, or among the ten nearest, to its title in the model's own spaces.

    input: the space that the language model reads, as hardness does (`hardness.embed_modalities`): the mean of a
        title's token embeddings against the mean of an image's features behind the connector.
    output: the space in which the language model names things, where a product of two points is a logit: the mean of
        the title tokens' rows of the output head against the last layer's hidden state at the image's last token, when
        the image stands alone behind the opening of a prompt. It tells which title the model expects after an image.
    In each, the mean over all titles is taken from every title and the mean over all images from every image, since the
    two kinds lie apart as wholes; then cosine similarity. Over the items with an image, at most 1,000, drawn by seed.
    Returns: for each space recall@1 and recall@10, 0 to 1; and under "chance" what guessing would give, and the items.
    """
    images = prompts.images
    shown = [item for item in range(len(titles)) if images.placeholders(item)]
    shown = sorted(rng(seed, "retrieval").permutation(shown)[:RETRIEVAL_ITEMS].tolist())
    if not shown:
        return {}
    table, opening = backbone.model.get_output_embeddings().weight.detach(), prompts.opening + prompts.newline
    named = [table[backbone.title_tokens(titles[item])].float().mean(dim=0).cpu() for item in shown]
    seen = [Prompt(opening + images.placeholders(item), [item]) for item in shown]
    spaces = {
        "input": [space[shown] for space in embed_modalities(backbone, images, titles)],
        "output": [torch.stack(named), last_states(backbone, images, seen)],
    }
    made = {"chance": {"recall@1": 1 / len(shown), "recall@10": min(1, 10 / len(shown)), "items": len(shown)}}
    for space, (text, image) in spaces.items():
        text, image = (normalize(each - each.mean(dim=0), dim=1) for each in (text, image))
        places = metrics.positions((text @ image.T).numpy(), np.arange(len(shown)))
        made[space] = {f"recall@{k}": float(metrics.hit_rate(*places, k).mean()) for k in (1, 10)}
    return made


@torch.no_grad()
def last_states(backbone: Backbone, images: CatalogImages, prompts: Sequence[Prompt]) -> Tensor:
    """The last layer's hidden state at each prompt's last token, as the output head reads it, [prompts, width]."""
    states, read = torch.empty(len(prompts), backbone.width), []
    head = backbone.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, __: read.append(inputs[0][0]))
    try:
        for batch in batches([len(prompt.ids) for prompt in prompts], 8192):
            any_token = [[[backbone.pad]]] * len(batch)  # a response of one token, so that the head reads one state
            score(backbone, images, [prompts[i] for i in batch], any_token)
            states[batch] = read.pop().float().cpu()
    finally:
        handle.remove()
    return states


# places of targets


def places_of(
    backbone: Backbone, prompts: Prompts, examples: Sequence[Example], seed: int, name: str
) -> dict[str, list]:
    """(ahead, tied) of every user's target, [users] each, by what stands for the images (`MODALITIES`). name: the
    model's in the progress bar."""
    made = {}
    for modality in MODALITIES:
        prompts.images.set_modality(backbone, modality, rng(seed, "shuffled"))
        answers = answer_with_model(backbone, prompts, examples, progress=f"{name}, {modality}")
        made[modality] = [*target_positions(answers, examples)]
    prompts.images.set_modality(backbone, "full")
    return made


def lost_by_length(places: dict[str, list], history: np.ndarray) -> list[dict]:
    """HR@1 with the true images, and what is lost of it with grey and with exchanged ones, paired by user, over all
    users and by the number of items in the history."""
    groups = list(rows_by_length(history).values())
    hits = {modality: metrics.hit_rate(*each, 1) for modality, each in places.items()}
    made = []
    for rows in [np.arange(len(history)), *(groups if len(groups) > 1 else ())]:
        lost = {m: paired_difference((hits["full"] - hits[m])[None, rows]) for m in MODALITIES[1:]}
        own = history[rows]
        made.append({"from": int(own.min()), "to": int(own.max()), "users": len(rows)})
        made[-1] |= {"HR@1": float(hits["full"][rows].mean()), "lost": {m: d._asdict() for m, d in lost.items()}}
    return made


def moved(before: list, after: list, targets: Sequence[int], *, users: int = 3, items: int = 5) -> dict:
    """By how many places the targets have moved up from one model to the other, over all users; and the items that
    moved most as targets, of those that at least so many users have as their target.

    before, after: (ahead, tied), [users] each; a target that is tied has the mean of its possible places.
    """
    up = before[0] + before[1] / 2 - after[0] - after[1] / 2
    by_item = {item: up[np.array(targets) == item] for item in set(targets)}
    ranked = sorted((-float(own.mean()), item, len(own)) for item, own in by_item.items() if len(own) >= users)
    rows = [{"item": item, "users": number, "up": -down} for down, item, number in ranked]
    return {
        "mean": paired_difference(up[None])._asdict(),
        "moved up": float((up > 0).mean()),
        "moved down": float((up < 0).mean()),
        "items": len(rows),
        "up": [row for row in rows[:items] if row["up"] > 0],
        "down": [row for row in rows[::-1][:items] if row["up"] < 0],
    }

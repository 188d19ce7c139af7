"""What both stages and an evaluation read: examples and prompts, as an SFT run's options describe them.

In: a dataset, a model, and the options of the SFT run that the model comes from. Out: the `Example`s of a split, and
the `Prompts` that put images, titles and task together. It is the one place that knows the two protocols.
"""

from __future__ import annotations

from pathlib import Path

from hanorec.data.dataset import Dataset, check_test_rows, split_examples
from hanorec.data.examples import Example
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.related.release import check_release_rows, release_split
from hanorec.training.options import SFTOptions


def open_examples(
    data: Dataset, split: str, sft: SFTOptions, *, seed: int, users: int | None = None, **drawn
) -> list[Example]:
    """The examples of a split, for the task, protocol, history and candidates of an SFT run.

    seed: draws users, candidates and negatives. users: so many windows (None: all). drawn: how they are drawn
    otherwise than `split_examples` does by default, as its arguments; the protocol of the release fixes all of it.
    Errors: DataError as `split_examples` and `release_split` raise it.
    """
    if sft.protocol == "release":
        return release_split(data, split, sft.task, users=users, seed=seed)
    asked = {"history": sft.history, "candidates": sft.candidates, "users": users, "seed": seed}
    return split_examples(data, split, sft.task, **asked | drawn)


def validation_examples(data: Dataset, sft: SFTOptions, *, seed: int, users: int) -> list[Example]:
    """The examples of val.tsv that choose the best state. Errors: as `open_examples`.

    What an evaluation on test.tsv would stop at is a warning, now that nothing is trained yet.
    """
    if sft.protocol == "standard":
        check_test_rows(data, sft.task, history=sft.history, candidates=sft.candidates)
    else:
        check_release_rows(data, sft.task, seed=seed)
    return open_examples(data, "val", sft, seed=seed, users=users, rejected=0)


def open_prompts(
    backbone: Backbone,
    data: Dataset,
    sft: SFTOptions,
    *,
    cache: Path | None = None,
    frozen: bool = True,
    images: CatalogImages | None = None,
    mask_titles: bool = False,
) -> Prompts:
    """How a model of an SFT run reads a dataset: its images, titles and descriptions, as prompts of the run's task.

    sft: the options of the SFT run; task, protocol, list_candidates, item_view and image_pixels are used. cache: the
    folder that keeps image features. frozen: whether the vision tower is, so that every image is encoded once.
    images: those of another call, so that none is encoded again. mask_titles: as in `Prompts`.
    Errors: DataError where descriptions are needed and cannot be read.
    """
    if images is None:
        files, pixels = data.catalog.images, sft.image_pixels
        images = CatalogImages(backbone, files, frozen=frozen, cache=cache, pixels=pixels)
    return Prompts(
        backbone,
        images,
        data.catalog.titles,
        sft.task,
        list_candidates=sft.list_candidates,
        protocol=sft.protocol,
        item_view=sft.item_view,
        descriptions=data.descriptions(sft.item_view),
        mask_titles=mask_titles,
        items=data.catalog.items,
    )

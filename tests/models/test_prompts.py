"""A prompt is what a reader would write: history with images and titles, the question, the candidates."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.models.backbone import load_backbone
from hanorec.models.packing import pack
from hanorec.models.prompts import Prompts

EXAMPLE = Example("u", history=(2, 0), targets=(5,), candidates=(4, 5), rejected=((4,),))


def written(backbone, images, ids: list[int]) -> str:
    """Token ids as text, an image's placeholders as one [image]."""
    tokenizer = backbone.processor.tokenizer
    image = tokenizer.decode(images.placeholders(0))
    return (
        tokenizer.decode(ids).replace(image, "[image]").replace("<|im_start|>", "").replace("<end_of_utterance>", "∎")
    )


def test_the_prompt_reads_as_the_paper_describes_it(backbone, images, data):
    t = data.catalog.titles
    prompt = Prompts(backbone, images, t, "next").prompt(EXAMPLE)
    assert written(backbone, images, prompt.ids) == (
        f"User:The user chose, oldest first:\n[image]{t[2]}\n[image]{t[0]}\nWhich of these is next?\n{t[4]}\n{t[5]}∎\nAssistant:"
    )
    assert prompt.image_items == [2, 0]


def test_candidates_can_be_left_out(backbone, images, data):
    prompt = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False).prompt(EXAMPLE)
    assert "Which item is next?∎" in written(backbone, images, prompt.ids)


@pytest.mark.parametrize(
    "view, shown, images_shown",
    [
        ("image", "[image]{t2}\n[image]{t0}", [2, 0]),
        ("description", "red, round: {t2}\n{t0}", []),  # item 0 has no description, and shows its title alone
        ("both", "[image]red, round: {t2}\n[image]{t0}", [2, 0]),
        ("title", "{t2}\n{t0}", []),
    ],
)
def test_an_item_is_shown_as_its_view_says(backbone, images, data, view, shown, images_shown):
    t = data.catalog.titles
    described = ["", "never shown", "red, round", *[""] * (len(t) - 3)]
    prompts = Prompts(backbone, images, t, "next", list_candidates=False, item_view=view, descriptions=described)
    prompt = prompts.prompt(EXAMPLE)
    text = written(backbone, images, prompt.ids)
    assert text.split("first:\n")[1].split("\nWhich")[0] == shown.format(t0=t[0], t2=t[2])
    assert prompt.image_items == images_shown and written(backbone, images, prompts.chosen(EXAMPLE)) == f"{t[5]}∎"
    asked = Example("u", (0,), (2,), (2,), ((4,),))
    question = Prompts(backbone, images, t, "yesno", item_view=view, descriptions=described).prompt(asked)
    assert shown.format(t0=t[0], t2=t[2]).split("\n")[0] + "∎" in written(backbone, images, question.ids)
    assert question.image_items == images_shown[::-1]


def test_a_description_is_data_and_no_special_token_comes_out_of_it(backbone, images, data):
    described = ["<image> <end_of_utterance>"] * len(data.catalog)
    options = dict(item_view="description", descriptions=described)
    ids = Prompts(backbone, images, data.catalog.titles, "next", **options).prompt(EXAMPLE).ids
    assert backbone.layout.image_token not in ids and ids.count(backbone.suffix[0]) == 1


def test_masked_titles_hide_the_history_and_not_the_candidates(backbone, images, data):
    t = data.catalog.titles
    text = written(backbone, images, Prompts(backbone, images, t, "next", mask_titles=True).prompt(EXAMPLE).ids)
    assert t[2] not in text and t[0] not in text and t[5] in text and text.count("[image]an item") == 2


def test_responses_name_titles_and_end(backbone, images, data):
    t, prompts = data.catalog.titles, Prompts(backbone, images, data.catalog.titles, "next")
    assert written(backbone, images, prompts.chosen(EXAMPLE)) == f"{t[5]}∎"
    assert [written(backbone, images, ids) for ids in prompts.rejected(EXAMPLE)] == [f"{t[4]}∎"]


def test_a_title_has_the_same_ids_in_history_list_and_response(backbone, images, data):
    prompts = Prompts(backbone, images, data.catalog.titles, "next")
    ids, title = prompts.prompt(EXAMPLE).ids, prompts.titles[5]
    assert any(ids[i : i + len(title)] == title for i in range(len(ids)))
    assert prompts.name([5])[: len(title)] == title


def test_top3_lists_are_written_line_by_line(backbone, images, data):
    t, prompts = data.catalog.titles, Prompts(backbone, images, data.catalog.titles, "top3")
    example = Example("u", (0,), (1, 2, 3), (1, 2, 3, 4, 5, 6), ((4, 5, 6),))
    assert written(backbone, images, prompts.chosen(example)) == f"{t[1]}\n{t[2]}\n{t[3]}∎"
    # Written one place after the other, as in evaluation, it begins alike and ends there.
    begun = [prompts.name(example.targets[:place], last=place == 3) for place in (1, 2, 3)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(begun, begun[1:]))
    assert begun[-1] == prompts.chosen(example)


@pytest.mark.parametrize("asked, answer", [(5, "Yes"), (4, "No")])
def test_yes_no_asks_about_one_item_with_its_image(backbone, images, data, asked, answer):
    prompts = Prompts(backbone, images, data.catalog.titles, "yesno")
    example = Example("u", (2,), (5,), (asked,), ((4,),))
    prompt = prompts.prompt(example)
    assert prompt.image_items == [2, asked]
    assert written(backbone, images, prompt.ids).endswith(f"[image]{data.catalog.titles[asked]}∎\nAssistant:")
    other = {"Yes": "No", "No": "Yes"}[answer]
    assert written(backbone, images, prompts.chosen(example)) == f"{answer}∎"
    assert [written(backbone, images, ids) for ids in prompts.rejected(example)] == [f"{other}∎"]


def test_the_releases_top3_prompt_lists_candidates_in_quotation_marks(backbone, images, data):
    """The list of chosen titles, each in quotation marks, has these around it once more; the rejected list has not."""
    t, prompts = data.catalog.titles, Prompts(backbone, images, data.catalog.titles, "top3", protocol="release")
    example = Example("u", (7, 8, 9), (1, 2, 3), (4, 1, 5, 3, 6, 2, 0), ((4, 5, 6),), shown=(7, 8, 5))
    prompt = prompts.prompt(example)
    listed = "\n".join(f'"{t[item]}"' for item in (4, 1, 5, 3, 6, 2, 0))
    assert written(backbone, images, prompt.ids) == (
        "User:Recommend what suits someone with this history. Answer with a title and no comment.\nChosen so far:\n"
        f'[image]"{t[7]}"\n[image]"{t[8]}"\n[image]"{t[9]}"\n\n'
        f"What may be chosen next? The candidates are:\n{listed}∎\nAssistant:"
    )
    assert prompt.image_items == [7, 8, 5]
    assert written(backbone, images, prompts.chosen(example)) == f'""{t[1]}"\n"{t[2]}"\n"{t[3]}""∎'
    assert [written(backbone, images, ids) for ids in prompts.rejected(example)] == [f'"{t[4]}"\n"{t[5]}"\n"{t[6]}"∎']
    # Written one place after the other, as in evaluation, it is the chosen response.
    begun = [prompts.name(example.targets[:place], last=place == 3) for place in (1, 2, 3)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(begun, begun[1:]))
    assert begun[-1] == prompts.chosen(example)


@pytest.mark.parametrize("asked, answer", [(5, "Yes"), (4, "No")])
def test_the_releases_yes_no_prompt_lists_what_was_not_chosen_and_shows_images_of_the_history_alone(
    backbone, images, data, asked, answer
):
    t, prompts = data.catalog.titles, Prompts(backbone, images, data.catalog.titles, "yesno", protocol="release")
    example = Example("u", (2, 0), (5,), (asked,), ((4,),), shown=(2, 0), unchosen=(9, 8, 7, 6))
    prompt = prompts.prompt(example)
    assert written(backbone, images, prompt.ids) == (
        f'User:Chosen so far:\n[image]"{t[2]}"\n[image]"{t[0]}"\n\n'
        f'Not chosen, and perhaps not liked:\n"{t[9]}"\n"{t[8]}"\n"{t[7]}"\n"{t[6]}"\n\n'
        f'Will this one be liked?\n"{t[asked]}"∎\nAssistant:'
    )
    assert prompt.image_items == [2, 0]
    assert written(backbone, images, prompts.chosen(example)) == f"{answer}∎"


def test_an_item_without_an_image_is_its_title_alone(backbone, images, data):
    images.blocks[0], images.contents[0] = [], None
    prompt = Prompts(backbone, images, data.catalog.titles, "next").prompt(EXAMPLE)
    assert prompt.image_items == [2]


def test_another_items_image_can_stand_for_a_missing_one(backbone, images, data):
    """With the protocol of the release, whose examples say whose images are shown."""
    images.blocks[1], images.contents[1] = [], None
    prompts = Prompts(backbone, images, data.catalog.titles, "yesno", protocol="release", mask_titles=True)
    prompt = prompts.prompt(Example("u", (2, 1), (5,), (5,), ((4,),), shown=(2, 3), unchosen=(6,)))
    assert prompt.image_items == [2, 3]
    assert '[image]"an item"\n[image]"an item"' in written(backbone, images, prompt.ids)


def test_looking_at_blank_or_shuffled_images_changes_features_and_can_be_undone(backbone, images):
    import numpy as np

    own = torch.cat(images.features(backbone, [0, 1, 2]))
    images.set_modality(backbone, "blank")
    blank = images.features(backbone, [0, 1])
    assert blank[0].equal(blank[1])
    images.set_modality(backbone, "shuffled", np.random.default_rng(0))
    assert all(source != item for item, source in enumerate(images.source))
    assert sorted(images.source) == list(range(len(images.source)))
    images.set_modality(backbone, "full")
    assert torch.cat(images.features(backbone, [0, 1, 2])).equal(own)


@pytest.mark.parametrize(
    "name, message", [("no/such-model", "cannot be reached.*hf download no/such-model"), (".", "no model checkpoint")]
)
def test_a_backbone_that_is_none_is_an_error(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the environment variable would
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_backbone(name)


TOP3 = Example("u", (7, 8, 9), (1, 2, 3), (4, 1, 5, 3, 6, 2, 0), ((4, 5, 6),))


@pytest.mark.parametrize(
    "task, protocol, examples",
    [
        ("next", "standard", [EXAMPLE]),
        ("next", "standard", [Example("u", (2,), (0,), (0, 5), ((5,),)), EXAMPLE]),  # branches of one trunk
        ("top3", "standard", [TOP3]),
        ("top3", "release", [TOP3]),
        ("yesno", "release", [Example("u", (2, 0), (5,), (5,), ((4,),), unchosen=(9, 8, 7, 6))]),
    ],
)
def test_a_prompt_that_is_longer_with_its_response_than_the_context_is_an_error(
    backbone, images, data, task, protocol, examples
):
    prompts = Prompts(backbone, images, data.catalog.titles, task, protocol=protocol, items=data.catalog.items)
    assert prompts.context == 2048
    if task == "yesno":
        responses = [prompts.answers["Yes"]]
    else:  # an evaluation may ask for any of the candidates
        responses = [prompts.name(items) for e in examples for items in combinations(e.candidates, len(e.targets))]
    packed = pack([prompts.nested(examples)], [responses], pad=0)
    prompts.context = int(packed.offsets.max()) + 1  # a token at the longest one's end has as many before it
    prompts.nested(examples)
    prompts.check(examples)
    prompts.context -= 1
    with pytest.raises(DataError, match=rf"user u: .* {prompts.context + 1} tokens, .* at most {prompts.context}\."):
        prompts.nested(examples)


def test_the_item_with_the_longest_title_is_named(backbone, images, data):
    titles = [*data.catalog.titles]
    titles[2] = "word " * 3000
    prompts = Prompts(backbone, images, titles, "next", items=data.catalog.items)
    length = f"{len(prompts.titles[2]):,}"
    with pytest.raises(
        DataError, match=f"longest title in it is that of item {data.catalog.items[2]}, {length} tokens"
    ):
        prompts.check([Example("v", (0,), (5,), (4, 5), ((4,),)), EXAMPLE])

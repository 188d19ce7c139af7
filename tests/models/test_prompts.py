"""A prompt is what a reader would write: history with images and titles, the question, the candidates."""

from __future__ import annotations

import pytest
import torch

from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.models.backbone import load_backbone
from hanorec.models.prompts import Prompts

EXAMPLE = Example("u", history=(2, 0), targets=(5,), candidates=(4, 5), rejected=((4,),))


def written(encoder, ids: list[int]) -> str:
    """Token ids as text, an image's placeholders as one [image]."""
    tokenizer = encoder.backbone.processor.tokenizer
    image = tokenizer.decode(encoder.block(0))
    return (
        tokenizer.decode(ids).replace(image, "[image]").replace("<|im_start|>", "").replace("<end_of_utterance>", "∎")
    )


def test_the_prompt_reads_as_the_paper_describes_it(encoder, data):
    t = data.catalog.titles
    prompt = Prompts(encoder, t, "next").prompt(EXAMPLE)
    assert written(encoder, prompt.ids) == (
        f"User:The user chose, oldest first:\n[image]{t[2]}\n[image]{t[0]}\nWhich of these is next?\n{t[4]}\n{t[5]}∎\nAssistant:"
    )
    assert prompt.images == [2, 0]


def test_candidates_can_be_left_out(encoder, data):
    prompt = Prompts(encoder, data.catalog.titles, "next", list_candidates=False).prompt(EXAMPLE)
    assert "Which item is next?∎" in written(encoder, prompt.ids)


def test_masked_titles_hide_the_history_and_not_the_candidates(encoder, data):
    t = data.catalog.titles
    text = written(encoder, Prompts(encoder, t, "next", mask_titles=True).prompt(EXAMPLE).ids)
    assert t[2] not in text and t[0] not in text and t[5] in text and text.count("[image]an item") == 2


def test_responses_name_titles_and_end(encoder, data):
    t, prompts = data.catalog.titles, Prompts(encoder, data.catalog.titles, "next")
    assert written(encoder, prompts.chosen(EXAMPLE)) == f"{t[5]}∎"
    assert [written(encoder, ids) for ids in prompts.rejected(EXAMPLE)] == [f"{t[4]}∎"]


def test_a_title_has_the_same_ids_in_history_list_and_response(encoder, data):
    prompts = Prompts(encoder, data.catalog.titles, "next")
    ids, title = prompts.prompt(EXAMPLE).ids, prompts.titles[5]
    assert any(ids[i : i + len(title)] == title for i in range(len(ids)))
    assert prompts.name([5])[: len(title)] == title


def test_top3_lists_are_written_line_by_line(encoder, data):
    t, prompts = data.catalog.titles, Prompts(encoder, data.catalog.titles, "top3")
    example = Example("u", (0,), (1, 2, 3), (1, 2, 3, 4, 5, 6), ((4, 5, 6),))
    assert written(encoder, prompts.chosen(example)) == f"{t[1]}\n{t[2]}\n{t[3]}∎"
    # Writing it one place after the other ends at the same ids.
    first, rest = prompts.prompt(example, (1,)).ids, prompts.name([2], last=False)
    assert first + rest == prompts.prompt(example, (1, 2)).ids


@pytest.mark.parametrize("asked, answer", [(5, "Yes"), (4, "No")])
def test_yes_no_asks_about_one_item_with_its_image(encoder, data, asked, answer):
    prompts = Prompts(encoder, data.catalog.titles, "yesno")
    example = Example("u", (2,), (5,), (asked,), ((4,),))
    prompt = prompts.prompt(example)
    assert prompt.images == [2, asked]
    assert written(encoder, prompt.ids).endswith(f"[image]{data.catalog.titles[asked]}∎\nAssistant:")
    other = {"Yes": "No", "No": "Yes"}[answer]
    assert written(encoder, prompts.chosen(example)) == f"{answer}∎"
    assert [written(encoder, ids) for ids in prompts.rejected(example)] == [f"{other}∎"]


def test_an_item_without_an_image_is_its_title_alone(encoder, data):
    encoder.blocks[0], encoder.held[0] = [], None
    prompt = Prompts(encoder, data.catalog.titles, "next").prompt(EXAMPLE)
    assert prompt.images == [2]


def test_looking_at_blank_or_shuffled_images_changes_features_and_can_be_undone(encoder):
    import numpy as np

    own = torch.cat(encoder.each([0, 1, 2]))
    encoder.look("blank")
    blank = encoder.each([0, 1])
    assert blank[0].equal(blank[1])
    encoder.look("shuffled", np.random.default_rng(0))
    assert all(source != item for item, source in enumerate(encoder.source))
    assert sorted(encoder.source) == list(range(len(encoder.source)))
    encoder.look("full")
    assert torch.cat(encoder.each([0, 1, 2])).equal(own)


@pytest.mark.parametrize(
    "name, message", [("no/such-model", "cannot be reached.*hf download no/such-model"), (".", "no model checkpoint")]
)
def test_a_backbone_that_is_none_is_an_error(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as the environment variable would
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_backbone(name)

"""Nested windows: the prompts of a row as branches of one trunk equal each prompt alone."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoProcessor

from hanorec.data.dataset import split_examples
from hanorec.data.examples import groups
from hanorec.errors import DataError
from hanorec.losses import hanorec_loss
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.inputs import unpacked
from hanorec.models.layout import Layout
from hanorec.models.lora import add_lora
from hanorec.models.packing import Branch, Prompt, pack
from hanorec.models.prompts import Prompts, check_name_history, windows_for
from hanorec.models.scoring import score, score_all

TASKS = [("next", False), ("next", True), ("top3", False), ("yesno", False)]


def rows_of(data, task: str):
    """The two longest rows of nested examples, and one example alone."""
    examples = split_examples(data, "test", task, windows="nested", candidates=6, rejected=1 if task == "yesno" else 2)
    longest, second, *_, shortest = sorted(groups(examples, nested=True), key=len, reverse=True)
    return [longest, shortest[:1], second]


@pytest.mark.parametrize("task, listed", TASKS)
def test_trunk_and_branch_are_the_prompt_of_each_example(backbone, images, data, task, listed):
    prompts = Prompts(backbone, images, data.catalog.titles, task, list_candidates=listed)
    row, alone, _ = rows_of(data, task)
    nested = prompts.nested(row)
    assert len(nested.branches) == len(row) > 1
    for example, branch in zip(row, nested.branches):
        whole = prompts.prompt(example)
        assert nested.ids[: branch.end] + branch.ids == whole.ids
        assert nested.image_items[: len(example.history)] + branch.image_items == whole.image_items
    assert prompts.nested(alone) == prompts.prompt(alone[0])  # one prompt is no trunk


def log_probabilities(backbone, prompts, rows, responses) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all responses, nested and from prompts of their own."""
    x = [prompts.nested(row) for row in rows]
    y = [[response for example in row for response in responses(example)] for row in rows]
    alone = [prompts.prompt(example) for row in rows for example in row]
    answers = [responses(example) for row in rows for example in row]
    return score(backbone, prompts.images, x, y), score(backbone, prompts.images, alone, answers)


@pytest.mark.parametrize("task, listed", TASKS)
def test_nested_log_probabilities_equal_those_of_each_prompt_alone(backbone, images, data, task, listed):
    prompts = Prompts(backbone, images, data.catalog.titles, task, list_candidates=listed)
    with torch.no_grad():
        nested, alone = log_probabilities(
            backbone, prompts, rows_of(data, task), lambda e: [prompts.chosen(e), *prompts.rejected(e)]
        )
    torch.testing.assert_close(nested, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ends", [True, False])
def test_without_a_chat_format_lines_separate_and_the_end_token_ends_if_there_is_one(
    random_backbone, data, tmp_path, ends
):
    folder = shutil.copytree(random_backbone, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    processor = AutoProcessor.from_pretrained(folder)
    end = processor.tokenizer.eos_token_id
    if not ends:
        processor.tokenizer.eos_token = None
    processor.save_pretrained(folder)
    bare = load_backbone(str(folder), dtype="float32", device=torch.device("cpu"))
    assert (bare.separator, bare.suffix) == (bare.tokens("\n"), [end] if ends else [])
    images = CatalogImages(bare, data.catalog.images)
    prompts = Prompts(bare, images, data.catalog.titles, "next", list_candidates=False)
    rows = rows_of(data, "next")
    assert prompts.chosen(rows[0][0]) == prompts.titles[rows[0][0].targets[0]] + bare.suffix
    with torch.no_grad():
        nested, alone = log_probabilities(bare, prompts, rows, lambda e: [prompts.chosen(e)])
    torch.testing.assert_close(nested, alone, atol=1e-4, rtol=0)


def test_a_hanorec_step_over_nested_windows_has_the_gradient_of_prompts_alone(backbone, images, data):
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    torch.manual_seed(1)
    policy = add_lora(backbone, dropout=0.0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    rows = rows_of(data, "next")
    both = log_probabilities(policy, prompts, rows, lambda e: [prompts.chosen(e), prompts.rejected(e)[0]])
    hardness = torch.linspace(0.5, 1.5, sum(map(len, rows)))

    def gradient(logps):
        policy.model.zero_grad()
        chosen, rejected = logps.view(-1, 2).T
        hanorec_loss(chosen, rejected, chosen.detach() + 0.3, rejected.detach(), hardness).loss.backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])

    nested, alone = map(gradient, both)
    assert alone.norm() > 0 and (nested - alone).norm() / alone.norm() < 1e-3


def test_naming_a_history_is_the_plain_forward_of_each_image_and_title(backbone, images, data):
    """A row, and one example alone; behind an image the plain prompt ends, and the item's title is the response."""
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    rows = rows_of(data, "next")[:2]
    x = [prompts.nested(row, name_history=True) for row in rows]
    y = [prompts.answers_of(row, name_history=True) for row in rows]
    alone, answers = [], []
    for row in rows:
        history = max((example.history for example in row), key=len)
        alone += [prompts.prompt(example) for example in row]
        answers += [[prompts.chosen(example)] for example in row]
        ids = prompts.opening
        for number, item in enumerate(history, 1):
            ids = ids + prompts.newline + images.placeholders(item)
            alone.append(Prompt(ids, list(history[:number])))
            answers.append([prompts.titles[item] + prompts.suffix])
            ids = ids + prompts.titles[item]
    assert sum(map(len, y)) == len(alone) > sum(map(len, rows))
    with torch.no_grad():
        torch.testing.assert_close(
            score(backbone, images, x, y), score(backbone, images, alone, answers), atol=1e-4, rtol=0
        )


def test_items_without_an_image_are_not_named(backbone, images, data, monkeypatch):
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    row = rows_of(data, "next")[0]
    monkeypatch.setattr(images, "placeholders", lambda item: [])
    assert len(prompts.nested(row, name_history=True).leaves) == len(row)
    assert prompts.answers_of(row, name_history=True) == prompts.answers_of(row)


def test_items_whose_images_a_prompt_does_not_show_are_not_named(backbone, images, data):
    words = ["a drawing"] * len(data.catalog)
    for view, named in [("title", False), ("description", False), ("both", True)]:
        prompts = Prompts(backbone, images, data.catalog.titles, "next", item_view=view, descriptions=words)
        row = rows_of(data, "next")[0]
        whole, branches = prompts.prompt(row[-1]), prompts.nested(row, name_history=True).branches
        assert len(branches) == len(prompts.answers_of(row, name_history=True)) == len(row) * (1 + named)
        for branch in branches[len(row) :]:
            assert whole.ids[branch.end - 1] == images.placeholders(0)[-1]  # where an image has just ended


def test_a_history_is_not_named_where_it_cannot_be():
    check_name_history(Layout(), "standard", "both")
    for layout, protocol, view, reason in [
        (Layout(), "release", "image", "have images of other items"),
        (Layout(visibility="prefix"), "standard", "image", "sees all of itself"),
        (Layout(why_unpacked="its layers"), "standard", "image", "since its layers"),
        (Layout(), "standard", "description", "prompts of the view description show none"),
    ]:
        with pytest.raises(DataError, match=reason):
            check_name_history(layout, protocol, view)


def test_reference_log_probabilities_come_in_the_order_of_the_responses(backbone, images, data):
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    rows = rows_of(data, "next")
    x, y = [prompts.nested(row) for row in rows], [[prompts.chosen(example) for example in row] for row in rows]
    with torch.no_grad():
        together = score(backbone, images, x, y)
    kept = score_all(backbone, images, x, y, weights="", forward_tokens=1)  # a forward for each, the longest first
    torch.testing.assert_close(kept, together, atol=1e-4, rtol=0)


def test_a_branch_sees_the_trunk_up_to_where_it_leaves_and_itself():
    """Trunk 1 2 3 4; a branch 5 leaves it behind the 2, a branch 6 behind the 4. The responses are 7 8 and 9 8, of which
    7 and 9 are read. Columns: 0-3 trunk, 4 and 5 the first branch, 6 and 7 the second."""
    prompt = Prompt([1, 2, 3, 4], [], (Branch(2, [5]), Branch(4, [6])))
    packed = pack([prompt], [[[7, 8], [9, 8]]], pad=0)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 6, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5]]
    assert packed.attention_mask[0, 0, 5].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert packed.attention_mask[0, 0, 7].nonzero().flatten().tolist() == [0, 1, 2, 3, 6, 7]
    assert packed.column.tolist() == [4, 5, 6, 7] and packed.labels.tolist() == [7, 8, 9, 8]
    assert packed.response.tolist() == [0, 0, 1, 1]


def test_branches_that_cannot_be_laid_out_are_refused(capsys):
    prompt = Prompt([1, 2], [], (Branch(1, [3]), Branch(2, [4])))
    with pytest.raises(ValueError, match="3 of them for 2 branches"):
        pack([prompt], [[[1], [2], [3]]], pad=0)
    with pytest.raises(ValueError, match="sees all of itself"):
        pack([prompt], [[[1], [2]]], pad=0, layout=Layout(visibility="prefix"))
    with pytest.raises(ValueError, match="packed alone"):
        unpacked([prompt], [[[1], [2]]], pad=0)


def test_families_that_cannot_nest_read_every_window_alone_and_say_so(capsys):
    assert (
        windows_for(Layout(), "nested") == "nested" and windows_for(Layout(why_unpacked="its layers"), "last") == "last"
    )
    assert capsys.readouterr().out == ""
    assert windows_for(Layout(why_unpacked="its layers read token after token"), "nested") == "every"
    assert "its layers read token after token; every window is read alone" in capsys.readouterr().out
    assert windows_for(Layout(visibility="prefix"), "nested") == "every"

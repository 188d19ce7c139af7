"""Preference pairs: what each prompt has, some of them, and every epoch's own with fresh negatives."""

from __future__ import annotations

import torch

from hanorec.models.packing import Prompt
from hanorec.training.pairs import PreferencePairs, chosen_and_rejected

PAIRS = PreferencePairs(
    prompts=[Prompt([1], []), Prompt([2], [])],
    responses=[["y0", "a", "b", "c", "d"], ["y1", "e", "f", "g", "h"]],
    reference_logps=torch.arange(10.0).view(2, 5),
    hardness=torch.arange(8.0).view(2, 4),
)


def test_with_fresh_negatives_every_epoch_has_rejected_responses_of_its_own():
    first, second, third = (PAIRS.of_epoch(epoch, rejected=2) for epoch in range(3))
    assert first.responses == [["y0", "a", "b"], ["y1", "e", "f"]]
    assert second.responses == [["y0", "c", "d"], ["y1", "g", "h"]]
    assert first.reference_logps.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert second.reference_logps.tolist() == [[0, 3, 4], [5, 8, 9]]
    assert first.hardness.tolist() == [[0, 1], [4, 5]] and second.hardness.tolist() == [[2, 3], [6, 7]]
    assert third.responses == first.responses  # in turns
    assert PAIRS.of_epoch(7, rejected=4).responses == PAIRS.responses


def test_some_of_the_prompts_keep_what_is_theirs():
    last = PAIRS[[1]]
    assert last.prompts == [Prompt([2], [])] and last.responses == [["y1", "e", "f", "g", "h"]]
    assert last.reference_logps.tolist() == [[5, 6, 7, 8, 9]] and last.hardness.tolist() == [[4, 5, 6, 7]]


def test_a_chosen_response_stands_beside_each_of_its_rejected_ones():
    chosen, rejected = chosen_and_rejected(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert chosen.tolist() == [1, 1, 4, 4] and rejected.tolist() == [2, 3, 5, 6]

"""Preference pairs: what is known of a step's examples, and what a run makes them from."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hanorec.data.examples import groups
from hanorec.losses import chosen_and_rejected, hardness_weight
from hanorec.models.packing import Prompt
from hanorec.models.scoring import score
from hanorec.training.dpo_options import DPOOptions, complete_dpo
from hanorec.training.inputs import open_examples, open_prompts
from hanorec.training.options import SFTOptions, complete_sft
from hanorec.training.pairs import PreferencePairs, make_pairs
from hanorec.training.schedule import MicroBatch

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are too short")
CPU = torch.device("cpu")
PAIRS = PreferencePairs(  # the second prompt is nested: it asks for two examples
    users=["u", "v", "w"],
    prompts=[Prompt([1], []), Prompt([2], []), Prompt([3], [])],
    responses=[[[4, 5], [6]], [[4], [5, 6, 7], [8], [9, 9]], [[4, 4], [5]]],
    reference_logps=torch.arange(8.0).view(4, 2),
    hardness=torch.arange(4.0).view(4, 1),
)


def test_a_batch_has_the_examples_of_its_prompts_rank_by_rank():
    batch = PAIRS.batch([[MicroBatch([2])], [MicroBatch([1])]], CPU)
    assert batch.reference_logps.tolist() == [[6, 7], [2, 3], [4, 5]]
    assert batch.hardness.tolist() == [[3], [1], [2]]
    assert batch.lengths.tolist() == [[2, 1], [1, 3], [1, 2]]


def test_a_prompt_that_only_keeps_others_company_adds_no_row():
    batch = PAIRS.batch([[MicroBatch([0])], [MicroBatch([0], counts=False)]], CPU)
    assert batch.reference_logps.tolist() == [[0, 1]] and batch.hardness.shape == (1, 1)
    nothing = PAIRS.batch([[MicroBatch([0], counts=False)]], CPU)
    assert [tuple(table.shape) for table in nothing] == [(0, 2), (0, 2), (0, 1)]


def test_a_chosen_response_stands_beside_each_of_its_rejected_ones():
    chosen, rejected = chosen_and_rejected(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert chosen.tolist() == [1, 1, 4, 4] and rejected.tolist() == [2, 3, 5, 6]
    with pytest.raises(ValueError, match="^logps must be"):
        chosen_and_rejected(torch.ones(3))


@pytest.fixture
def made(backbone, data, tmp_path):
    """Makes the pairs of a run on the small toy catalogue; returns them with the prompts and options they come from."""

    def make(*, task="next", **changes):
        sft = SFTOptions(data=str(data.folder), task=task, candidates=8)
        complete_sft(sft)
        options = DPOOptions(output=str(tmp_path / "run"), train_users=12, **changes)
        complete_dpo(options, sft)
        prompts = open_prompts(backbone, data, sft)
        return make_pairs(backbone, prompts, data, options, sft), prompts, options, sft

    return make


@pytest.mark.parametrize("windows", ["last", "nested"])
def test_pairs_hold_prompts_responses_hardness_and_the_references_log_probabilities(made, data, backbone, windows):
    pairs, prompts, options, sft = made(rejected=2, windows=windows)
    examples = open_examples(data, "train", sft, seed=options.seed, users=12, windows=windows, rejected=2)
    per_prompt = groups(examples, nested=windows == "nested")
    assert pairs.users == [group[0].user for group in per_prompt]
    assert [len(numbers) for numbers in pairs.examples] == [len(group) for group in per_prompt]
    assert pairs.prompts == [prompts.nested(group) for group in per_prompt]
    first = per_prompt[0][0]
    assert pairs.responses[0][:3] == [prompts.chosen(first), *prompts.rejected(first)]
    with torch.no_grad():
        expected = score(backbone, prompts.images, pairs.prompts, pairs.responses).view(-1, 3)
    torch.testing.assert_close(pairs.reference_logps, expected, atol=1e-4, rtol=1e-4)
    assert pairs.hardness.shape == (len(examples), 2) and pairs.hardness.std() > 0
    torch.testing.assert_close(pairs.hardness.mean(), hardness_weight(torch.zeros(1))[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("changes", [{"hardness": "off"}, {"loss": "dpo"}, {"loss": "s-dpo", "rejected": 3}])
def test_without_hardness_all_pairs_weigh_the_same(made, changes):
    pairs, *_ = made(**changes)
    assert pairs.hardness.equal(torch.ones_like(pairs.hardness))


def test_negatives_of_the_policy_are_those_that_the_reference_finds_likely(made):
    """On average over examples, the reference gives them more than random ones."""
    likely, random = (
        made(negatives=negatives, rejected=4)[0].reference_logps[:, 1:] for negatives in ("policy", "random")
    )
    assert likely.mean() > random.mean()


def test_what_is_made_once_is_kept_for_later_runs(made, monkeypatch):
    first, *_ = made()
    monkeypatch.setattr("hanorec.models.scoring.score", None)
    again, *_ = made()
    assert again.reference_logps.equal(first.reference_logps) and again.hardness.equal(first.hardness)


def test_a_refined_neighbourhood_gives_another_hardness(made, capsys):
    plain, *_ = made()
    refined, *_ = made(neighbourhood="refined")
    assert not refined.hardness.equal(plain.hardness) and "edges dropped" in capsys.readouterr().out


def test_dataclass_of_pairs_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIRS.hardness = None

"""What stage 2 trains on: prompts with a chosen and some rejected responses, their hardness λ, and log π_ref of each.

In: the reference (the SFT model), how it reads prompts, a dataset. Out: `PreferencePairs`, computed once a run, and of
these the `PairBatch` of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hanorec import distributed
from hanorec.cache import weights_fingerprint
from hanorec.data.dataset import Dataset
from hanorec.data.examples import Example, groups, listed_negatives
from hanorec.hardness import embed_modalities, item_neighbours, pair_hardness
from hanorec.memory import no_collection
from hanorec.models.backbone import Backbone
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts, windows_for
from hanorec.models.scoring import score_all
from hanorec.related.neighbourhoods import refine
from hanorec.related.objectives import WITH_HARDNESS
from hanorec.related.policy_negatives import policy_negatives, pool_size
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.inputs import open_examples
from hanorec.training.options import SFTOptions, cache_folder
from hanorec.training.schedule import MicroBatch


class PairBatch(NamedTuple):
    """What is known of a step's B examples before the policy reads them; on the policy's device, float32."""

    reference_logps: Tensor  # [B, 1+R] log π_ref, the chosen response first
    lengths: Tensor  # [B, 1+R] tokens of each response
    hardness: Tensor  # [B, R] λ


@dataclass(frozen=True)
class PreferencePairs:
    """N examples with one chosen and R rejected responses each: R pairs an example. A prompt asks for one example, or,
    with nested windows, in its branches for those of a whole user history."""

    users: list[str]  # whose each prompt is
    prompts: list[Prompt]  # x
    responses: list[list[list[int]]]  # of every prompt, example by example: y_w, then every y_l, as token ids
    reference_logps: Tensor  # [N, 1+R] log π_ref of these
    hardness: Tensor  # [N, R] λ

    @cached_property
    def examples(self) -> list[range]:
        """The numbers of every prompt's examples."""
        width = self.reference_logps.shape[1]
        ends = list(accumulate((len(responses) // width for responses in self.responses), initial=0))
        return [range(start, end) for start, end in pairwise(ends)]

    def batch(self, ranks: Sequence[Sequence[MicroBatch]], device: torch.device) -> PairBatch:
        """What is known of a batch's examples: first those that rank 0 reads, then those of rank 1, …

        ranks: every rank's micro-batches, as `Schedule.micro_batches` gives them.
        """
        prompts = [i for own in ranks for micro in own if micro.counts for i in micro.indices]
        numbers = [number for i in prompts for number in self.examples[i]]
        reference_logps, hardness = self.reference_logps[numbers], self.hardness[numbers]
        lengths = torch.tensor([len(response) for i in prompts for response in self.responses[i]])
        tables = (reference_logps, lengths.reshape(reference_logps.shape), hardness)
        return PairBatch(*(table.to(device, torch.float32) for table in tables))


def make_pairs(
    reference: Backbone, prompts: Prompts, data: Dataset, options: DPOOptions, sft: SFTOptions
) -> PreferencePairs:
    """The pairs of a run: x, y_w and every y_l; λ of Eqs. 5 and 6; log π_ref. What takes long is kept for later runs.

    Errors: DataError where examples, neighbours or negatives cannot be made.
    """
    cache, weights = cache_folder(options.cache, options.output), weights_fingerprint(reference.model.state_dict())
    similarities, neighbours = item_neighbours(
        reference, prompts.images, data.catalog, options.neighbours, weights=weights, cache=cache
    )
    if options.neighbourhood == "refined":
        histories = [history.items for history in data.train]
        similarities, neighbours, changes = refine(similarities, neighbours, histories)
        if distributed.is_main_process():
            print(changes)
    windows = windows_for(reference.layout, options.windows)
    if options.negatives.startswith("policy"):
        examples = examples_from_policy(reference, prompts, data, options, sft, windows, weights=weights)
    else:
        listed = options.negatives == "listed"
        candidates = listed_negatives(data.folder, data.catalog) if listed else neighbours.numpy()
        drawn = dict(rejected=options.rejected, negatives=options.negatives, neighbours=candidates)
        examples = training_examples(data, options, sft, windows, **drawn)

    per_prompt = groups(examples, nested=windows == "nested")  # the examples that one prompt asks for
    with no_collection():
        x = [prompts.nested(group) for group in per_prompt]
        y = [[title for e in group for title in (prompts.chosen(e), *prompts.rejected(e))] for group in per_prompt]
    reference_logps = score_all(
        reference, prompts.images, x, y, weights=weights, forward_tokens=options.forward_tokens, cache=cache
    )
    hardness = pair_hardness(similarities, examples, temperature=options.temperature)  # λ, Eqs. 5, 6
    if options.hardness == "off" or options.loss not in WITH_HARDNESS:
        hardness = torch.ones_like(hardness)
    users = [group[0].user for group in per_prompt]
    return PreferencePairs(users, x, y, reference_logps.view(len(examples), -1), hardness)


def training_examples(data: Dataset, options: DPOOptions, sft: SFTOptions, windows: str, **drawn) -> list[Example]:
    """The examples that stage 2 trains on. drawn: how their negatives are drawn, as in `open_examples`."""
    users, seed = options.train_users, options.seed
    return open_examples(data, "train", sft, seed=seed, users=users, windows=windows, **drawn)


def examples_from_policy(
    reference: Backbone,
    prompts: Prompts,
    data: Dataset,
    options: DPOOptions,
    sft: SFTOptions,
    windows: str,
    *,
    weights: str,
) -> list[Example]:
    """Examples whose rejected items are drawn from a random pool by the reference's own probabilities."""
    pool = pool_size(data, options.rejected)
    modalities = None
    if options.negatives == "policy-modality":
        modalities = embed_modalities(reference, prompts.images, data.catalog.titles)
    return policy_negatives(
        reference,
        prompts,
        training_examples(data, options, sft, windows, rejected=pool),
        options.rejected,
        weights=weights,
        candidates=sft.candidates,
        modalities=modalities,
        forward_tokens=options.forward_tokens,
        cache=cache_folder(options.cache, options.output),
        seed=options.seed,
    )

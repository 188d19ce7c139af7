"""What DPO trains on: prompts with a chosen and some rejected responses, log π_ref of each, and every pair's hardness.

In: what the scripts have computed once. Out: the same for any of its prompts, and for an epoch with fresh negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from torch import Tensor

from hanorec.models.packing import Prompt


@dataclass(frozen=True)
class PreferencePairs:
    """N examples with one chosen and R rejected responses each: R pairs an example. A prompt asks for one example, or,
    with nested windows, in its branches for those of a whole row."""

    prompts: list[Prompt]  # x
    responses: list[list[list[int]]]  # of every prompt, example by example: y_w, then every y_l, as token ids
    reference_logps: Tensor  # [N, 1 + R] log π_ref of these
    hardness: Tensor  # [N, R] λ

    @cached_property
    def examples(self) -> list[range]:
        """The numbers of every prompt's examples."""
        width = self.reference_logps.shape[1]
        ends = list(accumulate((len(responses) // width for responses in self.responses), initial=0))
        return [range(start, end) for start, end in pairwise(ends)]

    def __getitem__(self, indices: Sequence[int]) -> PreferencePairs:
        """Some of the prompts, in the order of `indices`."""
        rows = [number for i in indices for number in self.examples[i]]
        prompts, responses = [self.prompts[i] for i in indices], [self.responses[i] for i in indices]
        return PreferencePairs(prompts, responses, self.reference_logps[rows], self.hardness[rows])

    def of_epoch(self, epoch: int, rejected: int) -> PreferencePairs:
        """All prompts with the `rejected` of their R rejected responses that are an epoch's own, in turns. With
        `rejected` = R these are always all of them."""
        width = self.reference_logps.shape[1]
        first = 1 + epoch % ((width - 1) // rejected) * rejected
        own = [0, *range(first, first + rejected)]  # places among an example's responses
        responses = [[each[at + k] for at in range(0, len(each), width) for k in own] for each in self.responses]
        hardness = self.hardness[:, first - 1 : first - 1 + rejected]
        return replace(self, responses=responses, reference_logps=self.reference_logps[:, own], hardness=hardness)


def chosen_and_rejected(logps: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 1 + R] log-probabilities, the chosen response's first → those of the chosen and of the rejected response of
    each pair, [n · R] each: the chosen one stands beside each of its rejected ones."""
    rejected = logps[:, 1:]
    return logps[:, :1].expand_as(rejected).flatten(), rejected.flatten()

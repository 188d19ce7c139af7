"""What DPO trains on: prompts with a chosen and some rejected responses, log π_ref of each, and every pair's hardness.

In: what the scripts have computed once. Out: the same for any of its examples, and for an epoch with fresh negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hanorec.models.packing import Prompt


@dataclass(frozen=True)
class PreferencePairs:
    """N prompts with one chosen and R rejected responses each: R pairs a prompt."""

    prompts: list[Prompt]  # [N] x
    responses: list[list[list[int]]]  # [N][1 + R] y_w, then every y_l, as token ids
    reference_logps: Tensor  # [N, 1 + R] log π_ref of these
    hardness: Tensor  # [N, R] λ

    def __getitem__(self, indices: Sequence[int]) -> PreferencePairs:
        """Some of the prompts, in the order of `indices`."""
        prompts, responses = [self.prompts[i] for i in indices], [self.responses[i] for i in indices]
        return PreferencePairs(prompts, responses, self.reference_logps[indices], self.hardness[indices])

    def of_epoch(self, epoch: int, rejected: int) -> PreferencePairs:
        """All prompts with the `rejected` of their R rejected responses that are an epoch's own, in turns. With
        `rejected` = R these are always all of them."""
        first = epoch % (self.hardness.shape[1] // rejected) * rejected
        own = slice(first, first + rejected)
        responses = [[chosen, *others[own]] for chosen, *others in self.responses]
        logps = torch.cat([self.reference_logps[:, :1], self.reference_logps[:, 1:][:, own]], dim=1)
        return replace(self, responses=responses, reference_logps=logps, hardness=self.hardness[:, own])


def chosen_and_rejected(logps: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 1 + R] log-probabilities, the chosen response's first → those of the chosen and of the rejected response of
    each pair, [n · R] each: the chosen one stands beside each of its rejected ones."""
    rejected = logps[:, 1:]
    return logps[:, :1].expand_as(rejected).flatten(), rejected.flatten()

"""Which prompts are read in which optimizer step, by which rank, and in how many forwards.

In: the number of tokens of every prompt, and the options. Out: batches in an order that seed and epoch decide, and
each rank's share of a batch as micro-batches. All of it is a function of the step. So a run that is resumed reads on
where it was, and every rank knows what the others read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hanorec import distributed
from hanorec.data.batching import batches, epoch_order
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.options import SFTOptions


class MicroBatch(NamedTuple):
    """Prompts of a batch that share a forward. counts: false where this rank only keeps the others company."""

    indices: list[int]
    counts: bool = True


@dataclass(frozen=True)
class Schedule:
    """N prompts in batches.

    users: [N] whose each prompt is. lengths: [N] tokens of each with its responses. size: prompts in a batch. steps:
    optimizer steps in all. seed: decides the order. forward_tokens: most tokens in a forward.
    """

    users: Sequence[str]
    lengths: Sequence[int]
    size: int
    steps: int
    seed: int
    forward_tokens: int

    def batches(self, first: int = 0) -> Iterator[list[int]]:
        """The prompts of every step from the step `first` on."""
        steps_per_epoch = math.ceil(len(self.users) / self.size)
        epoch, order = -1, []
        for step in range(first, self.steps):
            if epoch != step // steps_per_epoch:
                epoch = step // steps_per_epoch
                order = epoch_order(self.lengths, self.size, self.seed, epoch)
            yield order[step % steps_per_epoch]

    def micro_batches(self, batch: Sequence[int]) -> list[list[MicroBatch]]:
        """Every rank's prompts of a batch, [ranks], in as many forwards as `forward_tokens` asks for.

        Prompts of similar lengths stand together. A rank without prompts gets one that does not count. Where weights
        are sharded a forward takes all ranks, so all get equally many micro-batches.
        """
        ranks = []
        for rank in range(distributed.world_size()):
            share = batch[rank :: distributed.world_size()]
            forwards = batches([self.lengths[i] for i in share], self.forward_tokens)
            ranks.append([MicroBatch([share[k] for k in forward]) for forward in forwards])
        wanted = max(map(len, ranks)) if distributed.is_sharded() else 1
        company = MicroBatch(list(batch[:1]), counts=False)
        return [forwards + [company] * (wanted - len(forwards)) for forwards in ranks]


def make_schedule(
    users: Sequence[str], lengths: Sequence[int], examples: int, options: SFTOptions | DPOOptions
) -> Schedule:
    """The batches of a run.

    users, lengths: of each prompt, as in `Schedule`. examples: how many the prompts ask for in all; a nested prompt
    asks for several, so a batch has the number of prompts that comes nearest to `batch_size` examples.
    """
    size = max(1, round(options.batch_size * len(users) / examples))
    steps = max(1, math.ceil(options.epochs * math.ceil(len(users) / size)))
    steps = min(steps, options.max_steps or steps)
    return Schedule(users, lengths, size, steps, options.seed, options.forward_tokens)

"""Samples that several processes draw together, a device each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.data.kinds import DataKind
from ddpm.diffusion.plans import SamplingPlan
from ddpm.errors import Interrupted
from ddpm.model import Model
from ddpm.parallel import Ranks


class ShardedModel:
    """A model of which every process draws its share of the batches, and the first has them all.

    An image of a seed is the same whoever draws it, so these are the batches that one process would draw.
    """

    def __init__(self, model: Model, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks

    @property
    def kind(self) -> DataKind:
        return self._model.kind

    def plan(self) -> SamplingPlan:
        """The model's own."""
        return self._model.plan()

    def batches(self, count: int, *, seed: int, batch_size: int) -> Iterator[NDArray[Any]]:
        """In the first process [≤ batch_size, *shape] at a time, `count` in all; in the others nothing.

        All processes are to ask for the same, and to take all there is: they draw a batch each, and then meet.
        """
        plan = self.plan()
        for begin in range(0, count, batch_size * self._ranks.count):
            sizes = [max(0, min(batch_size, count - begin - rank * batch_size)) for rank in range(self._ranks.count)]
            own = np.zeros((max(sizes), *self._model.shape), self.kind.dtype)
            if self._ranks.orphaned():
                raise Interrupted("the process that started this one is gone")
            if size := sizes[self._ranks.rank]:
                own[:size] = self._model.draw(size, plan, seed=seed, first=begin + self._ranks.rank * batch_size)
            for size, batch in zip(sizes, self._ranks.gather(torch.from_numpy(own)), strict=False):
                if size:
                    yield batch[:size].numpy()
        if self._ranks.first and self._ranks.count > 1:
            torch.set_num_threads(os.cpu_count() or 1)  # the others have nothing more to do

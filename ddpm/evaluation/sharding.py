"""Samples that several processes draw together, a device each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.compute.parallel import Ranks
from ddpm.drawer import Drawer
from ddpm.errors import Interrupted


def sharded_batches(
    model: Drawer, ranks: Ranks, count: int, *, seed: int, batch_size: int, **asked: Any
) -> Iterator[NDArray[Any]]:
    """`Drawer.batches`, of which every process draws its share: in the first process all of them, in the others none.

    An image of a seed is the same whoever draws it, so these are the batches that one process would draw. All
    processes are to ask for the same, and to take all there is: they draw a batch each, and then meet.

    Args:
        asked: of the model's columns, as `Drawer.given` takes it.

    Raises:
        Interrupted: the process that started this one is gone.
    """
    plan = model.plan()
    for begin in range(0, count, batch_size * ranks.count):
        if ranks.orphaned():
            raise Interrupted("the process that started this one is gone")
        sizes = [max(0, min(batch_size, count - begin - rank * batch_size)) for rank in range(ranks.count)]
        own = np.zeros((max(sizes), *model.codec.shape), model.codec.dtype)
        if size := sizes[ranks.rank]:
            first = begin + ranks.rank * batch_size
            given = model.given(size, seed=seed, first=first, **asked)
            own[:size] = model.draw(size, plan, seed=seed, first=first, given=given)
        for size, batch in zip(sizes, ranks.gather(torch.from_numpy(own)), strict=False):
            if size:
                yield batch[:size].numpy()
    if ranks.first and ranks.count > 1:
        # The others have nothing more to do.
        torch.set_num_threads(torch.get_num_threads() * int(os.environ["LOCAL_WORLD_SIZE"]))

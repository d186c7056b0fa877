"""Work in several processes, a device each: start them, share out a batch, bring together what came of it.

In training every process holds the whole state and takes the same step; of each batch it computes its own part. The
gradients are added by hand, in one collective a step, since DistributedDataParallel sees a network's `forward` alone,
and a VAE is trained through its `encode` and `decode`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ddpm.errors import Interrupted, UpstreamError, UserError

if TYPE_CHECKING:
    from ddpm.config.params import Params

T = TypeVar("T")

RESTARTS = 3  # of all processes, after one of them died

# What a process has after SIGTERM to save its state: one step, and less than a cluster's usual 30 s before SIGKILL.
_GRACE_SECONDS = 10

# Exit codes by which `ddpm` itself says why it ended. Starting it again would not help, or is not ours to decide.
_DELIBERATE = {UserError.exit_code, UpstreamError.exit_code, Interrupted.exit_code}


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together: number `rank` of `count`."""

    rank: int = 0
    count: int = 1
    _parent: int = field(default_factory=os.getppid)

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def part_of(self, batch_size: int) -> slice:
        """The rows of a batch that are this process's; the parts make up the batch, and differ by a row at most."""
        return slice(batch_size * self.rank // self.count, batch_size * (self.rank + 1) // self.count)

    def own_seed(self, seed: int) -> int:
        """A seed of this process's own, of a common one."""
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, the same bits in each."""
        if self.count == 1:
            return
        # One collective of many bytes is far cheaper than many of few.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _meeting():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def all_rows(self, rows: Tensor, batch_size: int) -> Tensor:
        """All rows [batch_size, ...] of a batch of which each process has those of `part_of`. The gradient of a row
        comes from all processes to the one that has it."""
        return rows if self.count == 1 else cast(Tensor, _AllRows.apply(rows, batch_size, self))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """In the first process the tensor of each, all of one shape and on the CPU; in the others nothing."""
        if self.count == 1:
            return [tensor]
        received = [torch.empty_like(tensor) for _ in range(self.count)] if self.first else None
        with _meeting():
            dist.gather(tensor, received)
        return received or []

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process, reduced on the CPU, so that no GPU is waited for."""
        if self.count == 1:
            return flag
        raised = torch.tensor(int(flag))
        with _meeting():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with the first process's."""
        if self.count == 1:
            return
        for tensor in tensors:
            buffer = tensor.contiguous()
            with _meeting():
                dist.broadcast(buffer, 0)
            tensor.copy_(buffer)

    def of_first(self, value: T) -> T:
        """The first process's value."""
        if self.count == 1:
            return value
        values = [value]
        with _meeting():
            dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def orphaned(self) -> bool:
        """Whether the process that started this one is gone: nobody would stop it, and nobody waits for it."""
        return self.count > 1 and os.getppid() != self._parent


ALONE = Ranks()


class _AllRows(torch.autograd.Function):
    """`Ranks.all_rows`: the sum of batches that are 0 but for a process's rows, since processes may have different
    numbers of rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, batch_size: int, ranks: Ranks) -> Tensor:
        ctx.own, ctx.ranks = ranks.part_of(batch_size), ranks
        batch = rows.new_zeros(batch_size, *rows.shape[1:])
        batch[ctx.own] = rows
        ranks.add_up([batch])
        return batch

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous()
        ctx.ranks.add_up([total])
        return total[ctx.own], None, None


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """Around a collective: where another process does not come to it, this one ends, in one line."""
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        sys.exit(f"process {dist.get_rank()} has lost the others ({first_line})")


def launched() -> bool:
    """Whether torchrun, or `launch`, started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def check_devices(asked: int, key: str) -> None:
    """Refuse more processes than there are GPUs, where there are any.

    Args:
        key: of params.yaml, that asked for them.

    Raises:
        UserError: there are too few.
    """
    if 0 < torch.cuda.device_count() < asked:
        raise UserError(f"{key} is {asked}, but this machine has {torch.cuda.device_count()} CUDA devices")


@contextlib.contextmanager
def joined(patience: timedelta | None = None) -> Iterator[Ranks]:
    """Meet the processes that were launched together with this one; `ALONE` where none were.

    Within the block `cuda` is the GPU of this process.

    Args:
        patience: how long a process is waited for that is there and does not come; None: torch's own.
    """
    if not launched():
        yield ALONE
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, count = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it starts its processes again, and with it the addresses of those that are gone,
    # which would be waited for. On one machine its count tells the starts apart; of several each counts for itself.
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        store = dist.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=patience)
    ranks = Ranks(rank, count)
    yield ranks
    if os.environ["GROUP_WORLD_SIZE"] != "1":
        ranks.any(False)  # torchrun ends a machine's work five minutes after another's
    # After an error the others may be gone, and taking leave of them would take for ever.
    dist.destroy_process_group()


def launch(processes: int, stage: str, variant: str, params: Params) -> None:
    """Run a stage in several processes on this machine, as torchrun would; returns when all have ended well.

    Where one dies, all are started again, a training from its last checkpoint. SIGTERM and Ctrl-C are passed on.

    Args:
        params: what they all work by, whatever params.yaml says by the time that they start.

    Raises:
        SystemExit: they ended otherwise, and have said why.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for restart in range(RESTARTS + 1):
        with tempfile.TemporaryDirectory(prefix="ddpm-launch-") as folder, _surroundings(processes):
            given = Path(folder, "params.json")
            given.write_text(params.model_dump_json(), encoding="utf-8")
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                # Its own restarts would also repeat what failed for a good reason.
                max_restarts=0,
                shutdown_timeout=_GRACE_SECONDS,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            try:
                elastic_launch(config, sys.executable)("-m", "ddpm", stage, variant, "--params", str(given))
                return
            except SignalException:
                sys.exit(Interrupted.exit_code)
            except ChildFailedError as error:
                code = _reason([failure.exitcode for failure in error.failures.values()])
        if code in _DELIBERATE:
            sys.exit(code)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        going_on = f"; restart {restart + 1} of {RESTARTS}" if restart < RESTARTS else ""
        print(f"one of {processes} processes ended by {how}{going_on}", file=sys.stderr, flush=True)
    sys.exit(128 - code if code < 0 else code)


@contextlib.contextmanager
def _surroundings(processes: int) -> Iterator[None]:
    """Within the block torchrun's log is silent and its processes share the cores; then both are as before."""
    silenced, threads = logging.root.manager.disable, os.environ.get("OMP_NUM_THREADS")
    logging.disable(logging.ERROR)  # its report of a failure is a page
    # Together they have the cores that one would have had.
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, torch.get_num_threads() // processes))
    try:
        yield
    finally:
        logging.disable(silenced)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]


def _reason(codes: list[int]) -> int:
    """Of the exit codes of those that failed the one that began it: the others lost a process, or were ended for it."""
    return min(codes, key=lambda code: (code not in _DELIBERATE, code == -signal.SIGTERM, code))

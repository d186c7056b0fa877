"""A batch in parts, and the memory that asks for them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import train_with

from ddpm.compute.parallel import Ranks
from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.objectives import Objective
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import Interrupted
from ddpm.nets import build
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.loop import DivergedError
from ddpm.training.memory import OutOfMemoryError, micro_batches

OPTIONS = {"kind": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4}
IMAGES = InMemoryImages(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
SIZE = 10


def network(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build({**OPTIONS, **options}, image_size=8, channels=1)


def run(net: torch.nn.Module, process: GaussianProcess | None = None, **options):
    defaults = {"seed": 1, "steps": 6, "batch_size": SIZE, "warmup_steps": 0, "log_every": 2}
    return train_with(net, process or GaussianProcess(Schedule.named("linear", 50)), IMAGES, **{**defaults, **options})


def values(curve) -> list[float]:
    return [number for point in curve for number in (point.loss, point.grad_norm)]


@given(st.integers(1, 300), st.integers(1, 300))
def test_parts_are_the_whole_in_order(count, at_once):
    rows = [row for part in micro_batches(count, at_once) for row in range(count)[part]]
    assert rows == list(range(count))


@given(st.integers(1, 300), st.integers(1, 16))
def test_processes_share_a_batch_evenly(size, count):
    parts = [range(size)[Ranks(rank, count).part_of(size)] for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("timestep_sampler", ["uniform", "importance"])
def test_a_batch_in_parts_is_the_batch(at_once, timestep_sampler):
    """The first step but for the rounding of float32 sums. Adam divides each gradient by its size, and so makes much of
    the rounding of those that are next to nothing: the later steps agree to a thousandth.
    """
    options = {"timestep_sampler": timestep_sampler, "objective": Objective("simple", weighting="min_snr")}
    options |= {"steps": 12, "log_every": 1}
    # Three timesteps have their ten losses after a few batches: then they weigh differently.
    process = GaussianProcess(Schedule.named("linear", 3))
    whole = run(network(), process, **options)
    parts = run(network(), process, micro_batch_size=at_once, **options)
    assert values(parts)[:2] == pytest.approx(values(whole)[:2], rel=1e-5)
    assert values(parts) == pytest.approx(values(whole), rel=2e-3)


class Small(torch.nn.Module):
    """A network on a device with room for few data; it says what torch says on a GPU."""

    def __init__(self, room: int, net: torch.nn.Module) -> None:
        super().__init__()
        self.room, self.net = room, net

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.net(x, t)


def test_where_memory_runs_out_the_step_begins_again_in_smaller_parts(tmp_path):
    tried: list[int] = []
    small = run(Small(3, network()), micro_batch_size="auto", on_less_memory=tried.append)
    assert tried == [5, 3]
    assert values(small) == pytest.approx(values(run(network())), rel=2e-3)


def test_a_run_that_goes_on_remembers_how_much_fits(tmp_path):
    """Else its dropout would be another."""
    options = {"micro_batch_size": "auto", "checkpoints": Checkpoints(tmp_path)}
    whole = Small(3, network(dropout=0.3))
    curve = run(whole, micro_batch_size="auto")
    with pytest.raises(Interrupted):
        run(Small(3, network(dropout=0.3)), **options, should_stop=iter([False, True]).__next__)
    tried: list[int] = []
    assert run(Small(3, network(dropout=0.3)), **options, on_less_memory=tried.append) == curve
    assert tried == []


@pytest.mark.parametrize(("asked", "at_once"), [(None, SIZE), (4, 4), ("auto", 1)])
def test_what_does_not_fit_and_may_not_be_divided_is_said(asked, at_once):
    with pytest.raises(OutOfMemoryError, match=f"out of memory with {at_once} of a batch at once"):
        run(Small(0, network()), micro_batch_size=asked)


class Touchy(torch.nn.Module):
    """A network that overflows where the noise of a batch has a rare value."""

    def __init__(self, limit: float, net: torch.nn.Module) -> None:
        super().__init__()
        self.limit, self.net, self.largest = limit, net, 0.0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, x.abs().max().item())
        return self.net(x, t) * (float("inf") if x.abs().max() > self.limit else 1.0)


def just_too_touchy() -> float:
    """A limit that the run of seed 1 passes once, in one of its last two steps."""
    early, whole = Touchy(float("inf"), network()), Touchy(float("inf"), network())
    run(early, steps=4)
    run(whole)
    assert early.largest < 0.999 * whole.largest
    return 0.999 * whole.largest


def test_a_loss_that_is_no_number_goes_back_and_takes_other_noise(tmp_path):
    limit, back = just_too_touchy(), []
    options = {"checkpoints": Checkpoints(tmp_path), "checkpoint_every": 2}
    with pytest.raises(DivergedError):
        run(Touchy(limit, network()), **options)
    curve = run(
        Touchy(limit, network()),
        **options,
        rewind=6,
        on_rewind=lambda why, step: back.append((why, step)),
    )
    assert 1 <= len(back) <= 6
    assert all(step == 4 and why.startswith("the loss is") for why, step in back)
    assert [point.step for point in curve] == [2, 4, 6]
    undisturbed = run(network())
    assert curve[:2] == undisturbed[:2], "what was good stays"
    assert curve[2].loss != undisturbed[2].loss


def test_a_run_that_never_ends_well_gives_up(tmp_path):
    back: list[int] = []
    with pytest.raises(DivergedError):
        run(
            Touchy(0.0, network()),
            checkpoints=Checkpoints(tmp_path),
            rewind=2,
            on_rewind=lambda why, step: back.append(step),
        )
    assert back == [0, 0], "before the first checkpoint there is the start"

"""The loop's parts, without a process of their own; how it survives is in tests/stages/test_survival.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import train_with

from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import Interrupted
from ddpm.nets import build
from ddpm.training.adam import Adam
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.ema import EMA
from ddpm.training.loop import DivergedError, rate_at, step_seed

OPTIONS = {"kind": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4}
IMAGES = InMemoryImages(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
PROCESS = GaussianProcess(Schedule.named("linear", 50))


def network(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build({**OPTIONS, **options}, image_size=8, channels=1)


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def run(net: torch.nn.Module, **options):
    return train_with(
        net, PROCESS, IMAGES, **{"seed": 1, "steps": 6, "batch_size": 4, "warmup_steps": 0, "log_every": 2, **options}
    )


@given(st.integers(1, 1000), st.integers(0, 500), st.sampled_from(["constant", "cosine"]))
def test_the_rate_rises_then_keeps_or_falls(steps, warmup, decay):
    rates = [rate_at(step, steps, 1.0, warmup, decay) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    rise, rest = rates[:warmup], rates[warmup:]
    assert rise == sorted(rise)
    assert rest == sorted(rest, reverse=True)
    if rest:
        assert rest[0] == 1.0


@given(st.integers(0, 2**32 - 1))
def test_no_two_steps_share_their_seed(seed):
    assert len({step_seed(seed, step) for step in range(1000)}) == 1000


def test_ema_is_the_weighted_mean_of_the_weights():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, decay=0.5)
    expected = 1.0
    for step, value in enumerate([3.0, -1.0, 5.0, 5.0]):
        torch.nn.init.constant_(net.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.averages[0].item() == pytest.approx(expected)
    ema.copy_to(net)
    assert net.weight.item() == pytest.approx(expected)


def test_without_warm_up_the_decay_is_the_same_from_the_first_step():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, decay=0.9, warmup=False)
    torch.nn.init.constant_(net.weight, 2.0)
    ema.update(0)
    assert ema.averages[0].item() == pytest.approx(1.1)
    warm, cold = network(), network()
    run(warm, steps=3, ema_decay=0.9)
    run(cold, steps=3, ema_decay=0.9, ema_warmup=False)
    assert (weights(cold) - weights(network())).norm() < 0.5 * (weights(warm) - weights(network())).norm()


def test_training_ends_with_the_average_in_place_and_evaluates():
    averaged, last = network(), network()
    run(averaged, ema_decay=0.99)
    run(last, ema_decay=0.0)
    assert not averaged.training
    assert not torch.allclose(weights(averaged), weights(last))


def test_the_curve_has_the_means_and_their_steps():
    points = []
    curve = run(network(), steps=5, on_point=points.append)
    assert [point.step for point in curve] == [2, 4, 5]
    assert points == curve
    fine = run(network(), steps=5, log_every=1)
    assert curve[1].loss == pytest.approx((fine[2].loss + fine[3].loss) / 2, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_trains(precision):
    """The same start and the same noise: the curves agree within the format's precision, and fall."""
    options = {"steps": 60, "learning_rate": 5e-3, "log_every": 20}
    full, half = run(network(), **options), run(network(), **options, precision=precision)
    assert [point.loss for point in half] == pytest.approx([point.loss for point in full], rel=0.02)
    assert half[-1].loss < half[0].loss


def test_gradients_are_clipped():
    loose, tight = network(), network()
    before = weights(loose)
    run(loose, steps=1, grad_clip=1e9, ema_decay=0.0)
    curve = run(tight, steps=1, grad_clip=1e-12, ema_decay=0.0)
    # Adam's first step has the size of the rate whatever the gradient, unless it is as small as its epsilon.
    assert (weights(tight) - before).abs().max() < 1e-3 * (weights(loose) - before).abs().max()
    assert curve[0].grad_norm > 1e-6, "what is logged is the norm before clipping"
    free = network()
    run(free, steps=1, grad_clip=None, ema_decay=0.0)
    assert torch.equal(weights(free), weights(loose)), "without a limit, as with one that is never reached"


def test_dropout_and_flips_follow_the_seed():
    first, again, other = (network(dropout=0.3) for _ in range(3))
    for net, seed in ((first, 1), (again, 1), (other, 2)):
        run(net, seed=seed, horizontal_flip=True)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_step_is_a_place_to_continue_from(tmp_path, precision):
    whole = network(dropout=0.1)
    curve = run(whole, steps=7, precision=precision)
    for stop in range(1, 7):
        checkpoints = Checkpoints(tmp_path / str(stop))
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of 7"):
            run(
                network(dropout=0.1),
                steps=7,
                precision=precision,
                checkpoints=checkpoints,
                should_stop=iter([False] * (stop - 1) + [True]).__next__,
            )
        resumed = network(dropout=0.1)
        resumed_curve = run(resumed, steps=7, precision=precision, checkpoints=checkpoints)
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed_curve == curve


def test_only_the_newest_states_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "states")
    for step in range(1, 6):
        checkpoints.save(step, {"x": torch.full((2,), float(step))}, {"note": step})
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["step-000000004", "step-000000005"]
    tensors, facts = checkpoints.latest()
    assert tensors["x"].tolist() == [5.0, 5.0]
    assert facts == {"note": 5, "step": 5}


def test_no_state_is_left_that_is_damaged_through_and_through(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path / "states", say=said.append)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.zeros(1)}, {})
    for path in (tmp_path / "states").glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.latest() is None
    assert len(said) == 2


def test_a_gradient_that_overflows_is_found_before_it_is_saved(tmp_path):
    """A finite loss whose gradient is infinite: the state after that step would be no state to go back to."""
    net = network()
    net.out_conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    checkpoints = Checkpoints(tmp_path / "states")
    with pytest.raises(DivergedError, match=r"the gradient norm is (nan|inf) at step 1"):
        run(net, checkpoints=checkpoints, checkpoint_every=1)
    assert checkpoints.latest() is None


def test_under_loss_scaling_an_overflow_is_a_skipped_step(tmp_path):
    """The scaler starts at 2¹⁶; a large loss makes the first steps overflow, which must be no reason to stop."""
    net = network()
    net.out_conv.weight.register_hook(lambda gradient: gradient * 1e4)
    checkpoints = Checkpoints(tmp_path / "states")
    curve = run(net, precision="fp16", log_every=1, checkpoint_every=1, checkpoints=checkpoints)
    assert len(curve) == 6
    tensors, _ = checkpoints.latest()
    assert all(torch.isfinite(value).all() for name, value in tensors.items() if name.startswith("network."))


def test_our_adam_takes_the_steps_of_torchs():
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    adam, reference = Adam(ours.parameters()), torch.optim.Adam(theirs.parameters(), fused=True)
    for step in range(20):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        for net, optimizer in ((ours, adam), (theirs, reference)):
            optimizer.zero_grad()
            # Every third step the bias has no gradient and stays.
            (net(x) if step % 3 else x @ net.weight.T).square().mean().backward()
        reference.param_groups[0]["lr"] = rate = 0.01 / (1 + step)
        adam.step(rate)
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))

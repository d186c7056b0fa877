"""What makes training fast changes nothing but the time, and says so where it cannot be had."""

import numpy as np
import pytest
import torch
from loops import train_with

from ddpm.data.loader import InMemoryImages, TrainingData, batch_indices
from ddpm.data.prefetch import Prefetch
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.nets import build
from ddpm.nets.blocks import GroupNorm, attend
from ddpm.training.cost import training_bytes, training_flops
from ddpm.training.speed import REGIONS, accelerate, batches, evaluating

OPTIONS = {"kind": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "groups": 4}
IMAGES = InMemoryImages(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
CPU = torch.device("cpu")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(OPTIONS, image_size=8, channels=1)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_what_is_made_ahead_is_what_is_asked_for(ahead):
    made = Prefetch(lambda number: number * number, ahead, 10)
    assert [made(number) for number in range(10)] == [number * number for number in range(10)]
    assert [made(number) for number in (4, 4, 2, 3, 9)] == [16, 16, 4, 9, 81], "a step again, and steps back"


def test_what_goes_wrong_ahead_is_told_whoever_asks_for_it():
    def make(number: int) -> int:
        if number == 2:
            raise OSError("the disk is gone")
        return number

    made = Prefetch(make, 3, 10)
    assert [made(0), made(1)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        made(2)


def test_prefetching_changes_no_batch_and_no_weight():
    gather = batches(TrainingData(IMAGES), lambda step: batch_indices(20, 6, step, 1), CPU)
    ahead = Prefetch(gather, 2, 8)
    for step in range(8):
        assert np.array_equal(ahead(step)[0].numpy(), IMAGES.rows(batch_indices(20, 6, step, 1)))
    trained = []
    for prefetch in (0, 2):
        net = network()
        process = GaussianProcess(Schedule.named("linear", 50))
        train_with(net, process, IMAGES, seed=1, steps=5, batch_size=6, log_every=2, prefetch=prefetch)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    assert torch.equal(*trained)


def test_a_compiler_that_fails_is_named_and_done_without(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler here\nand a page of reasons")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    said, net, x = [], network(), torch.randn(2, 1, 8, 8)
    t = torch.tensor([1, 40])
    expected = net(x, t)
    accelerate(net, x, "fp32", compiled=True, say=said.append)
    assert len(said) == 1
    assert "\n" not in said[0]
    assert said[0].startswith("training uncompiled: ")
    assert "no compiler here" in said[0]
    torch.testing.assert_close(net(x, t), expected)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_compiled_regions_compute_the_same_under_the_same_names():
    """By the backend that captures and runs as it is; the compiler proper takes minutes on a CPU."""
    net, x, t = network(), torch.randn(2, 1, 8, 8), torch.tensor([1, 40])
    names, expected = list(net.state_dict()), net(x, t)
    for module in net.modules():
        if isinstance(module, REGIONS):
            module.compile(backend="eager", dynamic=False)
    torch.testing.assert_close(net(x, t), expected)
    assert list(net.state_dict()) == names
    with evaluating(net):
        assert not net.training
        torch.testing.assert_close(net(x, t), expected)
    assert net.training


def test_graphs_without_cuda_are_refused_in_a_line():
    said = []
    accelerate(network(), torch.zeros(2, 1, 8, 8), "fp32", compiled=False, graphs=True, say=said.append)
    assert said == ["training without CUDA graphs: they need CUDA"]


@pytest.mark.parametrize("positions", [16, 1025])
def test_attention_in_bf16_is_attention(positions):
    q, k, v = torch.randn(3, 2, 2, positions, 8, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    half = attend(*(each.bfloat16() for each in (q, k, v)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.03)


def test_the_norm_in_bf16_is_computed_in_float32():
    norm, x = GroupNorm(4, 8), torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(norm(x), norm(x.float()))


def test_what_training_costs():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            return self.layer(x)

    products = 8 * 8 * 3 * 5 * 9
    # Forward, and the gradient of the weights; nobody asks for that of the images.
    assert training_flops(Network(), (3, 8, 8)) == 2 * 2 * products
    weights, kept = training_bytes(Network(), (3, 8, 8), 7, "fp32")
    assert weights == 5 * 4 * (3 * 5 * 9 + 5)
    assert kept == 7 * 4 * 3 * 8 * 8, "the images are kept, the weights are counted already"

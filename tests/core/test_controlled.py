"""ControlNet: a frozen network, a copy of its way down, and convolutions that start at zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from recorded import assert_parameters
from tiny import UNET
from torch import Tensor, nn
from weights import awake

from ddpm.nets import build
from ddpm.nets.condition import Condition, HintPort, Ports, Shapes
from ddpm.nets.controlled import Control, Controlled, HintEncoder
from ddpm.training.adam import Adam
from ddpm.training.ema import trainable

X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 600])
HINT = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.3).float()
PORT = HintPort(channels=1, widths=(4, 8))


def controlled(count: int = 1, **options) -> Controlled:
    """A base with random weights, and controls that have not been trained."""
    torch.manual_seed(0)
    network = build({**UNET, **options}, image_size=8, channels=1, ports=Ports(hints=(PORT,) * count))
    assert isinstance(network, Controlled)
    awake(network.base)
    network.copy_base()
    return network.eval()


def told(*hints: Tensor, weight: float | None = None, factor: float = 1.0) -> Condition:
    control = None if weight is None else torch.tensor([[weight, factor]]).expand(2, 2)
    return Condition(hints=hints, control=control)


def test_before_any_training_it_is_its_base_bit_for_bit():
    network = controlled()
    with torch.no_grad():
        assert torch.equal(network(X, T, told(HINT)), network.base(X, T))
        assert torch.equal(network(X, T, told(HINT, weight=3.0)), network.base(X, T))
        assert network.base(X, T).abs().max() > 1e-3


def test_the_first_gradients_are_of_the_zero_convolutions_alone():
    network = controlled().train()
    F.mse_loss(network(X, T, told(HINT)), X).backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    zero = {name for name, _ in network.named_parameters() if ".zero." in name}
    assert moved == zero
    assert all(p.grad is None for p in network.base.parameters())


def test_the_others_have_gradients_after_them_and_the_base_has_none():
    """First the zero convolutions, then the control and the end of the hint's encoder, then the encoder's beginning."""
    network = controlled().train()
    optimizer = Adam(trainable(network))
    before = {name: p.detach().clone() for name, p in network.base.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(network(X, T, told(HINT)), X).backward()
        optimizer.step(0.1)
    assert all(p.grad is not None and p.grad.any() for p in network.controls.parameters())
    assert all(torch.equal(before[name], p) for name, p in network.base.state_dict().items())


def test_the_control_is_a_copy_of_the_way_down_and_the_bottom():
    network = controlled()
    (control,) = network.controls
    base, own = network.base.state_dict(), control.state_dict()
    common = base.keys() & own.keys()
    assert all(torch.equal(base[name], own[name]) for name in common)
    assert base.keys() - common == {name for name in base if name.startswith(("up.", "out_"))}
    assert own.keys() - common == {name for name in own if name.startswith(("zero.", "hint."))}


def test_the_base_has_no_dropout_while_the_control_is_trained():
    network = controlled(dropout=0.9).train()
    assert network.training
    assert not any(module.training for module in network.base.modules())
    assert all(module.training for module in network.controls.modules())


def test_a_weight_scales_each_residual_and_guess_mode_lets_it_fall_from_the_bottom_up():
    network = awake(controlled())
    (control,) = network.controls
    with torch.no_grad():
        residuals = control(X, T, told(HINT))
        expected = [each * 0.5 * 0.8 ** (len(residuals) - 1 - number) for number, each in enumerate(residuals)]
        found = network(X, T, told(HINT, weight=0.5, factor=0.8))
        assert torch.allclose(found, network.base(X, T, Condition(residuals=tuple(expected))), atol=1e-6)
        assert torch.equal(network(X, T, told(HINT, weight=0.0)), network.base(X, T))
        assert torch.equal(network(X, T), network.base(X, T))
        assert not torch.allclose(network(X, T, told(HINT)), network.base(X, T), atol=1e-3)


def test_several_controls_add_what_each_adds_alone():
    network = awake(controlled(2))
    other = HINT.flip(-1)
    with torch.no_grad():
        parts = [control(X, T, told(hint)) for control, hint in zip(network.controls, (HINT, other), strict=True)]
        together = tuple(a + b for a, b in zip(*parts, strict=True))
        assert torch.equal(network(X, T, told(HINT, other)), network.base(X, T, Condition(residuals=together)))


def test_a_control_is_told_what_its_base_is_told():
    ports = Ports(maps=2, hints=(PORT,))
    network = awake(build(UNET, image_size=8, channels=1, ports=ports))
    maps, vector = torch.ones(2, 2, 8, 8), torch.ones(2, network.vector_width)
    with torch.no_grad():
        (control,) = network.controls
        plain = control(X, T, Condition(hints=(HINT,), maps=0 * maps))
        for more in ({"maps": maps}, {"maps": 0 * maps, "vector": vector}):
            other = control(X, T, Condition(hints=(HINT,), **more))
            assert not torch.allclose(plain[-1], other[-1])


@pytest.mark.parametrize(("shrink", "side"), [(1, 64), (2, 32), (8, 8)])
def test_a_hint_is_shrunk_as_far_as_asked(shrink, side):
    """With Stable Diffusion's widths: 3→16→16→32↓→32→96↓→96→256↓→zero."""
    encoder = HintEncoder(HintPort(3, (16, 32, 96, 256), shrink), 320)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 320, side, side)
    widths = [(layer.in_channels, layer.out_channels) for layer in [*encoder.layers, encoder.out]]
    assert widths == [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 320)]
    assert not encoder.out.weight.any()


@pytest.mark.parametrize(
    ("shrink", "words"),
    [
        (3, "shrink is 3, expected a power of 2"),
        (0, "shrink is 0, expected a power of 2"),
        (4, "widths are 2, expected at least 3: the hint is 4 times as large"),
    ],
)
def test_a_hint_that_cannot_be_shrunk_so_far_is_refused(shrink, words):
    with pytest.raises(ValueError, match=words):
        HintEncoder(HintPort(1, (4, 8), shrink), 8)


def test_stable_diffusions_control_has_as_many_parameters_as_the_papers():
    options = {"width": 320, "multipliers": (1, 2, 4, 4), "attention_resolutions": (64, 32, 16)}
    options |= {"attention": "transformer", "heads": 8}
    with torch.device("meta"):
        shapes = Shapes((4, 64, 64), ports=Ports(tokens=768))
        control = Control(shapes, HintPort(3, (16, 32, 96, 256), 8), **options)
    assert_parameters(control, 361_279_120, "control")


def test_only_networks_that_take_residuals_are_controlled():
    hints = Ports(hints=(PORT,))
    mlp = build({"kind": "mlp", "width": 8, "layers": 1}, image_size=1, channels=2, dims=0, ports=hints)
    assert not isinstance(mlp, Controlled)
    assert isinstance(build({**UNET}, image_size=8, channels=1), nn.Module)

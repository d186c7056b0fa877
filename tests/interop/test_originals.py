"""Against the original code, where there is a copy: PYTHONPATH=guided-diffusion:improved-diffusion pytest FILE."""

import pytest
import torch
from networks import answer, ours

from ddpm.conditioning.guidance import ClassifierGradient
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.interop import openai_classifier
from ddpm.interop.openai import convert
from ddpm.interop.published import Flags

GUIDED = {
    "image_size": 64,
    "num_channels": 32,
    "num_res_blocks": 2,
    "channel_mult": "1,2,2",
    "learn_sigma": True,
    "attention_resolutions": "32,16",
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
IMPROVED = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "learn_sigma": True,
    "attention_resolutions": "16,8",
    "num_heads": 2,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": True,
    "dropout": 0.0,
}
SAID = {"noise_schedule": "cosine", "diffusion_steps": 1000}
PEERS = {
    "guided, classes": (GUIDED | {"class_cond": True}, {"num_head_channels": 16}),
    "guided, classes, new order": (
        GUIDED | {"class_cond": True, "use_new_attention_order": True},
        {"num_head_channels": 16, "use_new_attention_order": True},
    ),
    "guided, unconditional, heads": (
        GUIDED | {"num_head_channels": -1, "num_heads": 4, "resblock_updown": False},
        {"num_heads": 4},
    ),
    "improved, classes": (IMPROVED | {"class_cond": True, "use_checkpoint": False}, {"num_heads": 2}),
    "improved, unconditional": (IMPROVED | {"class_cond": False, "use_checkpoint": False}, {"num_heads": 2}),
}


def woken(peer: torch.nn.Module) -> tuple[torch.nn.Module, torch.Generator]:
    """The peer with other weights, for a fresh one says 0; and the generator of random numbers to go on with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return peer.eval(), generator


@pytest.mark.parametrize("name", PEERS)
def test_the_imported_network_is_the_original(name):
    theirs = pytest.importorskip(f"{name.split(',')[0]}_diffusion.script_util")
    options, said = PEERS[name]
    peer, generator = woken(theirs.create_model(**options))
    side = options["image_size"]
    found = convert(peer.state_dict(), Flags(image_size=side, **SAID, **said))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    x, t = torch.randn(2, 3, side, side, generator=generator), torch.tensor([3, 977])
    y = torch.tensor([417, 0]) if options.get("class_cond") else None
    with torch.no_grad():
        expected = peer(x, t, y)
    assert (answer(network, x, t, y) - expected).norm() <= 1e-5 * expected.norm()


CLASSIFIER = {
    "image_size": 64,
    "classifier_use_fp16": False,
    "classifier_width": 64,
    "classifier_depth": 1,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
# The released ones have width 128; at 64 depth 4. Their parameters are tested without this code.
CLASSIFIERS = {
    "64": CLASSIFIER | {"classifier_depth": 2},
    "128": CLASSIFIER | {"image_size": 128},
    "512": CLASSIFIER | {"image_size": 512},
    "added time, convolutions": CLASSIFIER
    | {"classifier_use_scale_shift_norm": False, "classifier_resblock_updown": False},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_imported_classifier_and_its_gradient_are_the_originals(name, monkeypatch):
    """In double precision, for the gradient of single precision is rounded by 1e-4 at 512 pixels."""
    theirs, options = pytest.importorskip("guided_diffusion.script_util"), CLASSIFIERS[name]
    peer, generator = woken(theirs.create_classifier(**options))
    side = options["image_size"]
    network = ours(openai_classifier.convert(peer.state_dict(), Flags(image_size=side, **SAID))).double()
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # their norms and softmax are of `x.float()`
    peer.double().dtype = torch.float64
    x, t, y = torch.randn(2, 3, side, side, generator=generator), torch.tensor([3, 977]), torch.tensor([417, 0])
    x = x.double().requires_grad_()
    logits = peer(x, t)
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[[0, 1], y].sum(), x)
    assert (network(x, t) - logits).norm() <= 1e-10 * logits.norm()
    guide = ClassifierGradient(network, network, y, GaussianProcess(Schedule.named("cosine", 1000)))
    assert (guide.gradient(x, t) - gradient).norm() <= 1e-10 * gradient.norm()

"""Against the original code, where there is a copy: PYTHONPATH=guided-diffusion:improved-diffusion pytest FILE."""

import pytest
import torch
from networks import answer, ours

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


@pytest.mark.parametrize("name", PEERS)
def test_the_imported_network_is_the_original(name):
    theirs = pytest.importorskip(f"{name.split(',')[0]}_diffusion.script_util")
    options, said = PEERS[name]
    torch.manual_seed(0)
    peer = theirs.create_model(**options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():  # a fresh network says 0
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    side = options["image_size"]
    found = convert(peer.state_dict(), Flags(image_size=side, **SAID, **said))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in peer.parameters())
    x, t = torch.randn(2, 3, side, side, generator=generator), torch.tensor([3, 977])
    y = torch.tensor([417, 0]) if options.get("class_cond") else None
    with torch.no_grad():
        expected = peer(x, t, y)
    assert (answer(network, x, t, y) - expected).norm() <= 1e-5 * expected.norm()

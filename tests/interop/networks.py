"""What was imported, as a network that answers."""

import torch

from ddpm.interop.published import Published, network_of


def ours(found: Published) -> torch.nn.Module:
    network = network_of(found.network, found.codec, len(found.weights["out_conv.bias"]), "test")
    network.load_state_dict(found.weights, assign=True)
    return network.eval()

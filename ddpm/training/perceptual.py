"""How different two images look: the distance of their features in a network's layers (Zhang et al. 2018, LPIPS)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm.errors import UserError
from ddpm.files import sha256_of

# Of VGG16's `features`: the ends of the five parts that LPIPS compares, and their channels.
_ENDS, _CHANNELS = (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)
# What LPIPS does to images in [−1, 1] first, a channel each.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Perceptual(nn.Module):
    """(images, images) [N, C, H, W] in [−1, 1] → distances [N]; differentiable, and never trained.

    Attributes:
        sha256: of the weights.
    """

    def __init__(self, sha256: str) -> None:
        super().__init__()
        self.sha256 = sha256

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """Of each layer that is compared, [N, C, h, w]."""
        raise NotImplementedError

    def weigh(self, layer: int, squares: Tensor) -> Tensor:
        """Squared differences [N, C, h, w] of a layer → [N, 1, h, w]."""
        return squares.sum(1, keepdim=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.features(x), self.features(y), strict=True)
        distances = [self.weigh(layer, (_unit(a) - _unit(b)) ** 2) for layer, (a, b) in enumerate(pairs)]
        return torch.stack([distance.mean((1, 2, 3)) for distance in distances]).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Each position's features with norm 1."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


class OfLayers(Perceptual):
    """In the layers of a convolutional network: after each of its activations."""

    def __init__(self, layers: nn.Sequential, sha256: str) -> None:
        super().__init__(sha256)
        self.layers = layers.eval().requires_grad_(False)

    def features(self, x: Tensor) -> Iterator[Tensor]:
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                yield x


class Lpips(Perceptual):
    """LPIPS itself: VGG16's layers, each channel with a weight that was learned from people's judgements."""

    shift: Tensor
    scale: Tensor

    def __init__(self, sha256: str = "") -> None:
        super().__init__(sha256)
        from torchvision.models import vgg16

        self.vgg = vgg16(weights=None).features[: _ENDS[-1] + 1]
        for layer in self.vgg:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.lins = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in _CHANNELS)
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """Grey images count as coloured ones."""
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        for first, end in pairwise((-1, *_ENDS)):
            x = self.vgg[first + 1 : end + 1](x)
            yield x

    def weigh(self, layer: int, squares: Tensor) -> Tensor:
        return self.lins[layer](squares)


def read_lpips(path: Path) -> Lpips:
    """LPIPS from a file of `lpips.LPIPS(net="vgg").state_dict()`, .safetensors or .pth. No pickled code is loaded.

    Raises:
        UserError: the file is missing or damaged, or has other tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tensor.float() for name, tensor in saved.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # of pickle, of zipfile, torch's or safetensors' own
        raise UserError(f"{path}: not a file of tensors ({str(error).partition(chr(10))[0][:100]})") from None
    network = Lpips(sha256_of(path))
    weights = {}
    for name, tensor in network.state_dict().items():
        their_name = _their_name(name)
        if their_name not in found or found[their_name].shape != tensor.shape:
            shape = list(found[their_name].shape) if their_name in found else "nothing"
            raise UserError(
                f"{path}: expected lpips.LPIPS(net='vgg').state_dict(), with {their_name} {list(tensor.shape)}; "
                f"found {shape}"
            )
        weights[name] = found[their_name]
    network.load_state_dict(weights)
    return network


def _their_name(name: str) -> str:
    """`vgg.5.weight` is in the second of their parts, `net.slice2.5.weight`."""
    kind, number, parameter = name.split(".")
    if kind == "lins":
        return f"lin{number}.model.1.{parameter}"
    part = next(part for part, end in enumerate(_ENDS, 1) if int(number) <= end)
    return f"net.slice{part}.{number}.{parameter}"

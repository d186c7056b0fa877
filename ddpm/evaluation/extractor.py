"""The networks whose features FID and IS are computed in.

An extractor is a directory: `extractor.json` says which kind it is and what identifies it; a small CNN has its weights
beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.codecs.scale import Codec, encode_pixels
from ddpm.data.loader import Images, batch_indices
from ddpm.errors import UserError
from ddpm.evaluation.distances import MAX_COUNT
from ddpm.files import read_json, sha256_of, write_json

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPATIAL_CHANNELS = 7


@dataclass(frozen=True)
class Features:
    """What an extractor says of N images, float32 on the CPU."""

    features: Tensor
    """[N, F]."""
    logits: Tensor
    """[N, K], class scores."""
    spatial: Tensor | None = None
    """[N, S], for sFID; None where the extractor has none."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, positions: Tensor | slice) -> Features:
        """Those of some of the images."""
        spatial = None if self.spatial is None else self.spatial[positions]
        return Features(self.features[positions], self.logits[positions], spatial)

    def room_for(self, count: int) -> Features:
        """Uninitialised features of `count` images, as wide as these."""
        spatial = None if self.spatial is None else self.spatial.new_empty(count, self.spatial.shape[1])
        wide = self.features.new_empty(count, self.features.shape[1])
        return Features(wide, self.logits.new_empty(count, self.logits.shape[1]), spatial)

    def put(self, first: int, part: Features) -> None:
        """Overwrite those of the images from `first` on."""
        rows = slice(first, first + len(part))
        self.features[rows] = part.features
        self.logits[rows] = part.logits
        if self.spatial is not None and part.spatial is not None:
            self.spatial[rows] = part.spatial


class Extractor(Protocol):
    """Images to features and class scores."""

    identity: dict[str, Any]  # what enters the evaluation protocol: kind and hash of the weights

    def __call__(self, pixels: NDArray[np.uint8]) -> Features:
        """Images [N, H, W, C] uint8, few enough to go through the network together."""
        ...


class SmallCNN(nn.Module):
    """A classifier small enough to be fitted within a pipeline stage; its last hidden layer is the feature space."""

    def __init__(self, channels: int, side: int, classes: int, *, features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c, width = channels, 32
        while True:
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            c = width
            if side <= 4:
                break
            layers += [nn.Conv2d(c, c, 3, stride=2, padding=1), nn.SiLU()]
            side, width = (side + 1) // 2, min(2 * width, 128)
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(c * side * side, features)
        self.scores = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] in [−1, 1] → (features [N, F], logits [N, K])."""
        features = F.silu(self.hidden(self.convolutions(x).flatten(1)))
        return features, self.scores(F.dropout(features, 0.3, self.training))


class CNNExtractor:
    """A fitted `SmallCNN` as an `Extractor`."""

    def __init__(self, network: SmallCNN, identity: dict[str, Any]) -> None:
        self.network = network.eval()
        self.identity = identity

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> Features:
        device = next(self.network.parameters()).device
        features, logits = self.network(encode_pixels(torch.from_numpy(pixels).to(device)))
        return Features(features.cpu(), logits.cpu())


class InceptionExtractor:
    """InceptionV3 with the TensorFlow weights of the papers, through torch-fidelity."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """
        Raises:
            UserError: the file is not weights alone, or not of this network.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            # torch-fidelity unpickles the file without restriction; read it restricted first, which refuses any code.
            torch.load(weights, weights_only=True, map_location="cpu")
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(f"{weights}: not InceptionV3 weights in torch-fidelity's format: {first_line}") from None
        self.network = network.eval().to(device)
        self._spatial: Tensor | None = None
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self.identity = {"kind": "inception", "sha256": sha256_of(weights)}
        self._device = device

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> Features:
        features, logits = self.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device))
        spatial, self._spatial = self._spatial, None
        return Features(features.cpu(), logits.cpu(), spatial)

    def _keep_spatial(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """sFID's features: seven channels of the 17×17 map `mixed_6/conv`, as ADM's evaluator has them."""
        self._spatial = output[:, :SPATIAL_CHANNELS].flatten(1).cpu()


def cached_inception() -> Path:
    """Where torch-fidelity looks for its InceptionV3 weights; the file need not be there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def find_inception(weights: str | None) -> Path | None:
    """The weights file that is at hand: the one given, else torch-fidelity's cache.

    Raises:
        UserError: the file given does not exist.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"extractor.weights: no such file: {weights}")
        return Path(weights)
    return cached_inception() if cached_inception().is_file() else None


def where_inception_goes() -> str:
    """What to do to have InceptionV3."""
    return (
        f"put torch-fidelity's {INCEPTION_FILE} (SHA-256 {INCEPTION_SHA256}) at "
        f"{cached_inception()}, or name it in extractor.weights"
    )


def missing_inception() -> UserError:
    """What to say where InceptionV3 is asked for and not at hand."""
    return UserError(f"extractor.kind is `inception`, but its weights are not at hand: {where_inception_goes()}")


def fit_cnn(
    images: Images,
    labels: NDArray[np.int64],
    classes: int,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    batch_size: int = 128,
    on_step: Callable[[int], object] = lambda step: None,
) -> SmallCNN:
    """Fit a small CNN to labelled images.

    Args:
        labels: [N] in 0..classes−1.
    """
    torch.manual_seed(seed)
    side, channels = images.rows(np.array([0])).shape[2:]
    network = SmallCNN(channels, side, classes).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        batch = batch_indices(len(images), batch_size, step, seed)
        _, logits = network(encode_pixels(torch.from_numpy(images.rows(batch)).to(device)))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[batch]).to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step + 1)
    return network.eval()


class Rotations:
    """Every image in its four rotations, labelled by them: a task for data without labels (Gidaris et al. 2018)."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.labels = np.arange(len(self)) % 4

    def __len__(self) -> int:
        return 4 * len(self._images)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[n, H, W, C] uint8."""
        upright = self._images.rows(indices // 4)
        return np.stack([np.rot90(image, turns) for image, turns in zip(upright, indices % 4, strict=True)])


def save_cnn(network: SmallCNN, directory: Path, facts: dict[str, Any]) -> None:
    """Write a fitted CNN into an existing directory; `facts` go into extractor.json."""
    from safetensors.torch import save_file

    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    write_json(directory / "extractor.json", {**facts, "sha256": sha256_of(directory / "model.safetensors")})


def save_inception(weights: Path, directory: Path) -> None:
    """Write down which InceptionV3 weights stand for this pipeline's figures."""
    write_json(directory / "extractor.json", {"kind": "inception", "sha256": sha256_of(weights)})


def coordinates(codec: Codec, stored: NDArray[Any]) -> NDArray[np.float64]:
    """Stored points or sequences [N, ...] → [N, D], in the network's units."""
    return codec.encode(torch.from_numpy(stored)).flatten(1).double().numpy()


def save_coordinates(bandwidth: float, directory: Path) -> None:
    """Write down that data are compared in their own coordinates, and under which kernel."""
    identity = hashlib.sha256(f"coordinates {MAX_COUNT} {bandwidth!r}".encode()).hexdigest()
    write_json(directory / "extractor.json", {"kind": "coordinates", "bandwidth": bandwidth, "sha256": identity})


def _read_facts(directory: Path) -> dict[str, Any]:
    try:
        return read_json(directory / "extractor.json")
    except (FileNotFoundError, ValueError):
        raise UserError(f"{directory / 'extractor.json'} is missing or damaged: run `ddpm fit-extractor`") from None


def load_coordinates(directory: Path) -> dict[str, Any]:
    """What `save_coordinates` wrote: kind, bandwidth and sha256.

    Raises:
        UserError: it is missing or damaged, or was made for images.
    """
    facts = _read_facts(directory)
    if facts["kind"] != "coordinates":
        raise UserError(f"{directory} was made for images: run `ddpm fit-extractor`")
    return facts


def load_extractor(directory: Path, *, weights: str | None, device: torch.device) -> Extractor:
    """The extractor of a directory.

    Args:
        weights: the InceptionV3 file, where the directory says `inception`; None for torch-fidelity's cache.

    Raises:
        UserError: a file is missing or damaged, or is not the one recorded.
    """
    from safetensors.torch import load_file

    facts = _read_facts(directory)
    if facts["kind"] == "coordinates":
        raise UserError(f"{directory} was not made for images: run `ddpm fit-extractor`")
    if facts["kind"] == "inception":
        found = find_inception(weights)
        if found is None:
            raise missing_inception()
        if sha256_of(found) != facts["sha256"]:
            raise UserError(f"{found}: SHA-256 {sha256_of(found)}, but {directory} was made with {facts['sha256']}")
        return InceptionExtractor(found, device)
    path = directory / "model.safetensors"
    if not path.is_file() or sha256_of(path) != facts["sha256"]:
        raise UserError(f"{path} is missing or damaged: run `ddpm fit-extractor`")
    height, _, channels = facts["shape"]
    network = SmallCNN(channels, height, facts["classes"])
    network.load_state_dict(load_file(path))
    return CNNExtractor(network.to(device), {"kind": facts["kind"], "sha256": facts["sha256"]})


def accuracy(extractor: Extractor, images: Images, labels: NDArray[np.int64], batch_size: int = 500) -> float:
    """Share of images given their label."""
    right = 0
    for first in range(0, len(images), batch_size):
        batch = np.arange(first, min(first + batch_size, len(images)))
        logits = extractor(images.rows(batch)).logits
        right += int((logits.argmax(1).numpy() == labels[batch]).sum())
    return right / len(images)

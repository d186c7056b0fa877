"""What an import comes down to: the configuration of a network and its process, and the weights under our names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.labels import Labels
from ddpm.config.base import validate
from ddpm.config.network import AnyNetworkConfig, AutoencoderConfig
from ddpm.config.process import MOST_TIMESTEPS, ProcessConfig, ScheduleName
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError
from ddpm.interop.saved import shown
from ddpm.nets import NO_PORTS, build
from ddpm.nets.condition import Network, Ports

# Our layers that are several of others', a letter each.
FUSED = ("qkv", "kv")


@dataclass(frozen=True)
class Flags:
    """What a checkpoint may not tell, by the names it had where the network was trained; None where it was not given.

    The first two are of any images, the next two are GaussianDiffusion1D's, `parameterization` and `tokenizer` are of
    latent diffusion's files, the others OpenAI's.
    """

    image_size: int | None = None
    null_class: bool = False
    seq_length: int | None = None
    auto_normalize: bool = True
    num_heads: int | None = None
    num_heads_upsample: int | None = None
    num_head_channels: int | None = None
    noise_schedule: Literal["linear", "cosine"] | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    use_new_attention_order: bool = False
    predict_xstart: bool = False
    sigma_small: bool = False
    parameterization: Literal["eps", "x0", "v"] | None = None
    tokenizer: Path | None = None
    dropout: float = 0.0

    def refuse_but(self, used: Iterable[str], what: str) -> None:
        """
        Args:
            used: the flags that say something about such a checkpoint.
            what: the checkpoint, for the error.

        Raises:
            UserError: another one was given.
        """
        for field in fields(self):
            if field.name not in used and getattr(self, field.name) != field.default:
                raise UserError(f"{what}: --{field.name.replace('_', '-')} does not apply to it; leave it out")


@dataclass(frozen=True)
class Classes:
    """What embeds the classes of a network that is conditioned on one.

    Attributes:
        weights: those of `conditioning.labels.Labels`.
        null: whether the last row of the embedding stands for no class.
    """

    weights: dict[str, Tensor]
    null: bool = False

    @property
    def rows(self) -> int:
        """Of the embedding, that of the null class included."""
        return len(self.weights["embedding.weight"])

    @property
    def count(self) -> int:
        return self.rows - self.null

    @property
    def perceptron(self) -> bool:
        return len(self.weights) > 1


@dataclass(frozen=True)
class Text:
    """What tells a network its caption.

    Attributes:
        options: of `condition.prompt`.
        tokenizer: as a model keeps it.
        weights: those of `conditioning.text.Text`.
    """

    options: dict[str, Any]
    tokenizer: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Autoencoder:
    """What makes latents of pictures, and pictures of them.

    Attributes:
        weights: those of `nets.autoencoder.AutoencoderKL`.
        scale: what latents are multiplied by.
    """

    network: AutoencoderConfig
    weights: dict[str, Tensor]
    scale: float


@dataclass(frozen=True)
class Published:
    """A published network in our terms.

    `notes` are what a user should know of the import: what was ignored or replaced, a clause each. `labels` and `text`
    are None of a network without them. `answers` is the number of classes that a classifier tells apart, 0 of any
    other network. `autoencoder` is None of a network of pixels.
    """

    network: AnyNetworkConfig
    process: ProcessConfig
    sampling: SamplingConfig
    codec: Codec
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    labels: Classes | None = None
    answers: int = 0
    text: Text | None = None
    autoencoder: Autoencoder | None = None

    @property
    def classes(self) -> int:
        """How many classes it is conditioned on, or tells apart."""
        return self.labels.count if self.labels else self.answers


def process_of(
    betas: NDArray[np.float64], names: Iterable[ScheduleName], where: str, *, rtol: float, atol: float
) -> dict[str, Any]:
    """The `timesteps`, `schedule` and `betas` of a process with these betas: by name where one of the schedules has
    them within a tolerance, else explicit.

    Raises:
        UserError: they are too many, or no betas.
    """
    if betas.ndim != 1 or not 1 <= len(betas) <= MOST_TIMESTEPS:
        raise UserError(f"{where}: betas of shape {list(betas.shape)}; expected 1 to {MOST_TIMESTEPS:,} of them")
    for name in names:
        if np.allclose(betas, Schedule.named(name, len(betas)).betas, rtol=rtol, atol=atol):
            return {"timesteps": len(betas), "schedule": name}
    explicit = {"timesteps": len(betas), "schedule": "explicit", "betas": betas.tolist()}
    # Its prediction is not looked at here.
    validate(ProcessConfig, {**explicit, "prediction": "v"}, where)
    return explicit


def network_of(
    network: AnyNetworkConfig, shape: Sequence[int], out_channels: int, where: str, ports: Ports = NO_PORTS
) -> Network:
    """Our network of that configuration, without memory for its weights.

    Args:
        shape: of a datum as the network sees it, [C, ...].
        ports: that its condition needs.

    Raises:
        UserError: the options do not fit together, or do not fit the data.
    """
    channels, *sides = shape
    side = sides[0] if sides else 1
    sizes = {"image_size": side, "channels": channels, "out_channels": out_channels, "dims": len(sides)}
    try:
        with torch.device("meta"):
            return build(network.model_dump(), **sizes, ports=ports)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def classes_of(
    weights: Mapping[str, Tensor] | None, network: Network, where: str, *, name: str, null: bool
) -> Classes | None:
    """The embedding of the classes; None where there are no weights of one.

    Args:
        weights: those of our `Labels`.
        network: ours, which the embedding is for.
        name: theirs of the embedding, for errors.
        null: whether its last row is said to stand for no class.

    Raises:
        UserError: a shape differs from what the network takes, or there is no class.
    """
    if weights is None:
        if null:
            raise UserError(f"{where}: --null-class: the network has no classes; leave it out")
        return None
    table, perceptron = weights["embedding.weight"], len(weights) > 1
    width = network.vector_width // (4 if perceptron else 1)
    if table.ndim != 2 or table.shape[1] != width or len(table) <= null:
        rows = "a row a class and, last, one of the null class" if null else "a row a class"
        raise UserError(f"{where}: {name} is {list(table.shape)}; expected [K, {width}], {rows}")
    column = LabelColumn(tuple(map(str, range(len(table) - null))), droppable=null)
    with torch.device("meta"):
        conditioner = Labels([column], network.vector_width, {"perceptron": perceptron})
    return Classes(shaped_like(weights, conditioner, where), null)


def refuse_other_keys(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Name what is missing and what is too much.

    Raises:
        UserError: the two differ.
    """
    there, wanted = set(found), set(expected)
    missing, unexpected = sorted(wanted - there), sorted(there - wanted)
    if missing or unexpected:
        raise UserError(f"{where}: another network: missing {_some(missing)}; unexpected {_some(unexpected)}")


def parts_of(ours: str, theirs: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every part of a module."""
    return ((f"{ours}.{part}", f"{theirs}.{their_part}") for part, their_part in parts.items())


def fused_names(ours: Iterable[str], modules: Mapping[str, str]) -> dict[str, list[str]]:
    """Our names, each with theirs, whose tensors one after the other are ours.

    Args:
        modules: our name and theirs of every module; of those of `FUSED` the parts, such as `q`, each by itself.
    """
    names = {}
    for name in ours:
        module, _, parameter = name.rpartition(".")
        outer, _, layer = module.rpartition(".")
        parts = [f"{outer}.{letter}" for letter in layer] if layer in FUSED else [module]
        names[name] = [f"{modules[part]}.{parameter}" for part in parts]
    return names


def transformer_parts(depth: int) -> dict[str, str]:
    """The parts of our `SpatialTransformer` by their names in latent diffusion's code, which diffusers kept; q, k and v
    each by itself."""
    parts = {"norm": "norm", "into": "proj_in", "out": "proj_out"}
    block = {"norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}
    block |= {"feed_forward.into": "ff.net.0.proj", "feed_forward.out": "ff.net.2"}
    for number in (1, 2):
        layers = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
        block |= {f"attention{number}.{ours}": f"attn{number}.{theirs}" for ours, theirs in layers.items()}
    for number in range(depth):
        parts |= dict(parts_of(f"blocks.{number}", f"transformer_blocks.{number}", block))
    return parts


def shaped_like(weights: Mapping[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """The weights in float32 and in the shapes of the network; kernels of size 1 may lack or have axes of 1.

    Raises:
        UserError: a shape differs.
    """
    shaped = {}
    for name, expected in network.state_dict().items():
        tensor = weights[name]
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {shown(name)} is {tensor.dtype}; expected floating-point numbers")
        if _without_ones(tensor.shape) != _without_ones(expected.shape):
            raise UserError(f"{where}: another network: {name} is {list(tensor.shape)}, not {list(expected.shape)}")
        shaped[name] = tensor.to(torch.float32).reshape(expected.shape).contiguous()
    return shaped


def swap_halves(weight: Tensor) -> Tensor:
    """The first layer of the time embedding, [width × 4, width], for sines and cosines in the other order."""
    first, second = weight.chunk(2, dim=1)
    return torch.cat([second, first], dim=1)


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

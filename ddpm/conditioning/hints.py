"""Columns of a ControlNet: the hint, a picture that says what to draw, and its weight (numpy only).

Nothing of the prepared data holds a hint: in training it is derived from the image itself, after a mirroring, so that
the two fit, and of what the network sees, whatever its size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.control_weights import ControlWeightsColumn
from ddpm.conditioning.pictures import from_levels, image_shape, levels_of, repeated, size_of
from ddpm.conditioning.values import Values
from ddpm.errors import UserError, brief
from ddpm.pixels import shrunk, smaller_side

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as `data.channels: 1` makes grey of colour
THRESHOLDS = 0.1, 0.2  # of Canny's edges, of a gradient of levels in [0, 1]: scikit-image's own
APART = 16  # levels by which a pixel of the silhouette differs from the background in some channel
BLACK, WHITE = 63, 192  # the most and the least level that count as them: lossy files have neither exactly
SIDE = 8  # of a hint of colour


@dataclass(frozen=True)
class HintColumn(ABC):
    """A picture that a control is shown.

    Attributes:
        image: H, W and C of the image.
        name: one of `NAMES`, by the place of the control among those of a model.
    """

    image: tuple[int, int, int]
    name: str = "control"
    key: ClassVar[str] = "control"
    null: ClassVar[None] = None
    needed: ClassVar[bool] = True
    kind: ClassVar[str]
    dtype: ClassVar[np.dtype[Any]]

    def __str__(self) -> str:
        """What decides it, as protocols name it."""
        return self.kind

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one hint."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """K of what the control is shown."""

    @abstractmethod
    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[Any]:
        """As of `Column`."""

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[Any]:
        """
        Raises:
            ValueError: always: there is no hint to follow.
        """
        raise ValueError(f"{self.name}: the model needs {self.kind}, a picture of {size_of(self.shape)}; found none")

    @abstractmethod
    def as_maps(self, hints: Tensor) -> Tensor:
        """What the control is shown of hints [N, *shape]: float32 [N, K, H, W]."""

    @abstractmethod
    def as_picture(self, hints: NDArray[Any], channels: int) -> NDArray[np.uint8]:
        """What people see of hints [N, *shape]: [N, h, w, channels]."""


class DerivedHint(HintColumn):
    """A hint that training derives from the image."""

    draws: ClassVar[int] = 0

    @abstractmethod
    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""


@dataclass(frozen=True)
class BlackAndWhite(DerivedHint):
    """A hint of pixels that are set or not, bool [H, W]; as a picture white on black."""

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.bool_)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image[:2]

    @property
    def channels(self) -> int:
        return 1

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.bool_]:
        """As of `Column`; `asked` is [H, W] or [n, H, W], of truth values, 0 and 1, or 0 and 255."""
        return repeated(levels_of(self.name, asked, self.shape, (0, 1, 255)).astype(np.bool_), count, first)

    def of_levels(self, levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The hint of a picture's grey levels, [H, W].

        Raises:
            ValueError: it is no picture of black and white.
        """
        if others := int(((levels > BLACK) & (levels < WHITE)).sum()):
            raise ValueError(
                f"expected {self.kind}, white on black, found {others} of {levels.size} pixels that are neither"
            )
        return levels >= WHITE

    def as_maps(self, hints: Tensor) -> Tensor:
        """As of `HintColumn`: 1 and 0."""
        return hints.unsqueeze(1).float()

    def as_picture(self, hints: NDArray[Any], channels: int) -> NDArray[np.uint8]:
        """As of `HintColumn`: white on black."""
        return np.repeat(255 * hints[..., None].astype(np.uint8), channels, axis=-1)


@dataclass(frozen=True)
class EdgesColumn(BlackAndWhite):
    """Where Canny's detector finds an edge in the image's grey levels (Canny 1986), by scikit-image.

    Attributes:
        sigma: standard deviation of the blur before, in pixels.
    """

    sigma: float = 1.0
    kind: ClassVar[str] = "edges"

    def __str__(self) -> str:
        return f"{self.kind} at sigma {self.sigma:g}"

    def of_levels(self, levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """As of `BlackAndWhite`; edges are at most half of the pixels."""
        found = super().of_levels(levels)
        if found.mean() > 0.5:
            raise ValueError(f"expected edges, white on black, found {found.mean():.0%} of the pixels white: invert it")
        return found

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`. It is computed on the CPU: 0.5 ms for an image of 32×32."""
        import torch

        grey = (x0.detach().cpu().double() + 1) / 2
        if grey.shape[1] == len(LUMA):
            grey = (grey * torch.tensor(LUMA).double().view(1, -1, 1, 1)).sum(1, keepdim=True)
        detect = _canny()
        return torch.from_numpy(np.stack([detect(each, self.sigma, *THRESHOLDS) for each in grey[:, 0].numpy()])).to(
            x0.device
        )


def _canny() -> Callable[..., NDArray[np.bool_]]:
    """
    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage.feature import canny
    except ModuleNotFoundError:
        raise UserError(
            "condition.control.hint: edges come by scikit-image, which is not installed: pip install 'ddpm[control]'"
        ) from None
    return canny


@dataclass(frozen=True)
class SilhouetteColumn(BlackAndWhite):
    """The pixels that differ from the background, which is the median colour of the image's outermost pixels, by more
    than `APART` levels in some channel."""

    kind: ClassVar[str] = "silhouette"

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        import torch

        rim = torch.cat([x0[..., 0, :], x0[..., -1, :], x0[..., 1:-1, 0], x0[..., 1:-1, -1]], dim=-1)
        background = rim.median(dim=-1).values[..., None, None]
        return ((x0 - background).abs() > APART / 127.5).any(1)


@dataclass(frozen=True)
class ColourColumn(DerivedHint):
    """The image in few pixels, uint8 [side, side, C], as of `pictures.LowColumn`.

    Attributes:
        side: in pixels.
    """

    side: int = SIDE
    kind: ClassVar[str] = "colour"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    def __str__(self) -> str:
        return f"{self.kind} at {self.side}×{self.side}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.side, self.side, self.channels)

    @property
    def channels(self) -> int:
        return self.image[2]

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.uint8]:
        """As of `Column`; `asked` is a picture [h, w, C] or several [n, h, w, C], of whole numbers 0..255."""
        return repeated(levels_of(self.name, asked, self.shape), count, first)

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """As of `Derived`."""
        return shrunk(x0, self.shape[:2])

    def as_maps(self, hints: Tensor) -> Tensor:
        """As of `HintColumn`: in [−1, 1], bilinear."""
        import torch.nn.functional as F

        return F.interpolate(from_levels(hints), self.image[:2], mode="bilinear", align_corners=False)

    def as_picture(self, hints: NDArray[Any], channels: int) -> NDArray[np.uint8]:
        """As of `HintColumn`: itself."""
        return hints


@dataclass(frozen=True)
class GivenColumn(HintColumn):
    """A picture that lies beside each image of the data, uint8 [H, W, C].

    Attributes:
        shape: [H, W, C].
    """

    shape: tuple[int, ...] = ()
    kind: ClassVar[str] = "given"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.uint8)

    @property
    def channels(self) -> int:
        return self.shape[2]

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.uint8]:
        """As of `Column`; `asked` is a picture [H, W, C] or several [n, H, W, C], of whole numbers 0..255."""
        return repeated(levels_of(self.name, asked, self.shape), count, first)

    def of_data(self, data: Any) -> Values:
        """As of `Stored`."""
        return Values(data.hints)

    def as_maps(self, hints: Tensor) -> Tensor:
        """As of `HintColumn`: in [0, 1]."""
        return hints.permute(0, 3, 1, 2).float() / 255

    def as_picture(self, hints: NDArray[Any], channels: int) -> NDArray[np.uint8]:
        """As of `HintColumn`: itself, or of colours the mean."""
        if hints.shape[-1] == channels:
            return hints
        return np.repeat(hints.mean(-1, keepdims=True).astype(np.uint8), channels, axis=-1)


NAMES = ("control", "control_2", "control_3")  # of hints, of a model with several controls

# By `hint`: (height, width and channels; the column's name; the section with `hint`; the facts of the data) → the
# column.
HINTS: dict[str, Callable[[tuple[int, int, int], str, Mapping[str, Any], Mapping[str, Any]], HintColumn]] = {
    "edges": lambda image, name, options, data: EdgesColumn(image, name, options.get("sigma", 1.0)),
    "silhouette": lambda image, name, options, data: SilhouetteColumn(image, name),
    "colour": lambda image, name, options, data: ColourColumn(image, name, _side(options.get("side"), image)),
    "given": lambda image, name, options, data: GivenColumn(image, name, _given_shape(image, data)),
}


def _given_shape(image: tuple[int, int, int], data: Mapping[str, Any]) -> tuple[int, ...]:
    """
    Raises:
        ValueError: the data have no hints.
    """
    shape = data.get("hint_shape")
    if shape is None:
        raise ValueError("condition.control.hint is given, which needs data with `control_file_name` in metadata.jsonl")
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"condition.control: expected the shape of hints, found {brief(shape)}")
    return tuple(shape)


def _side(side: Any, image: tuple[int, int, int]) -> int:
    return smaller_side("condition.control.side", SIDE if side is None else side, *image[:2])


def control_columns(
    options: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[HintColumn | ControlWeightsColumn, ...]:
    """As the entries of `conditioning.columns.COLUMNS`: the hint, those of further controls, and their weights.

    Args:
        options: `hint`, one of `HINTS`, and what that takes; `also`, the same of each further control.
    """
    image, sections = image_shape("control", data), [options, *options.get("also", ())]
    if len(sections) > len(NAMES):
        raise ValueError(f"condition.control.also: expected at most {len(NAMES) - 1}, found {len(sections) - 1}")
    found = []
    for name, section in zip(NAMES, sections, strict=False):
        kind = section.get("hint", "edges")
        if kind not in HINTS:
            raise ValueError(f"condition.control.hint: no hint {brief(kind)}; there are: {', '.join(HINTS)}")
        found.append(HINTS[kind](image, name, section, data))
    return *found, ControlWeightsColumn()

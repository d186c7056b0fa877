"""Images in fewer pixels, for models that draw them and for models that are conditioned on them. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def shrunk(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Images in fewer pixels: averaged over squares and rounded to 256 levels (Nichol & Dhariwal 2021, appendix C).

    Args:
        x: [N, C, H, W] in about [−1, 1].
        sides: h and w, divisors of H and W.

    Returns:
        uint8 [N, h, w, C].
    """
    squares = [(side, full // side) for side, full in zip(sides, x.shape[2:], strict=True)]
    return to_levels(x.unflatten(3, squares[1]).unflatten(2, squares[0]).mean((3, 5)))


def to_levels(x: Tensor) -> Tensor:
    """[N, C, H, W] in about [−1, 1] → uint8 [N, H, W, C], as `codecs.scale.PixelCodec` stores pixels."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def smaller_side(key: str, side: Any, height: int, width: int) -> int:
    """The side of an image in fewer pixels.

    Args:
        key: that asks for it, for errors.
        height, width: of the image.

    Raises:
        ValueError: it is no proper divisor of both.
    """
    if not isinstance(side, int) or side < 1 or height % side or width % side or side >= min(height, width):
        raise ValueError(f"{key} is {side}, expected a proper divisor of the images' {height}×{width}")
    return side

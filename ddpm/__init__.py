"""ddpm: denoising diffusion models from a folder of images to a deployed sampler.

Importing this package imports nothing heavy: an exported model is sampled with numpy and onnxruntime alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.model import Model, load, save

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    """Import the model directory's functions on first use, since they need torch."""
    if name in ("Model", "load", "save"):
        from ddpm import model

        return getattr(model, name)
    raise AttributeError(f"module 'ddpm' has no attribute {name!r}")

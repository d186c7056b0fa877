"""ddpm: denoising diffusion models from a folder of images to a deployed sampler.

    model = ddpm.fit("pictures", steps=2000, size=32)   # a folder of images, or an array
    images = model.sample(16, seed=0)                   # uint8 [16, 32, 32, C]
    ddpm.save(model, "my-model")
    ddpm.load("my-model")                               # also deploy/V, or "models:/ddpm-digits@champion"

Importing this package imports nothing heavy: an exported model is sampled with numpy and onnxruntime alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Relative, unlike all others: no stage imports these here, and ddpm.closure follows absolute imports alone.
    from .deploy.runtime import Sampler
    from .drawer.cascade import Cascade
    from .fitting import fit
    from .model import Model, save
    from .opening import load

from ddpm.version import __version__

__all__ = ["Cascade", "Model", "Sampler", "__version__", "fit", "load", "save"]

# Imported on first use: most of them need torch.
_HOMES = {
    "Cascade": "ddpm.drawer.cascade",
    "Model": "ddpm.model",
    "Sampler": "ddpm.deploy.runtime",
    "fit": "ddpm.fitting",
    "load": "ddpm.opening",
    "save": "ddpm.model",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ddpm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations", "import_module"})

"""Opening a model by what names it: a model directory, a deploy directory or a registered version."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.errors import DdpmWarning, UserError
from ddpm.layout import CASCADE, MODELS, find_model, is_uri

if TYPE_CHECKING:
    import torch

    from ddpm.deploy.runtime import Precision, Sampler
    from ddpm.drawer.cascade import Cascade
    from ddpm.model import Model

PARAMS = "params.yaml"


def load(
    model: Path | str,
    device: torch.device | str | None = "cpu",
    *,
    precision: Precision = "fp32",
    root: Path = Path(),
) -> Model | Sampler | Cascade:
    """Open a model to draw with: `load(…).sample(16, seed=0)`.

    - A directory with `model.json`, such as models/V: torch. Inside a project its plan is the one that the project's
      params.yaml has for it today, by which it is evaluated and exported. Elsewhere it is a general default, DDIM in
      50 steps, since a training writes no plan. An imported model has its own in model.json.
    - A directory with `sampler.json`, such as deploy/V: onnxruntime, by the plan it was exported with.
    - Either of a cascade: a directory with `cascade.json` and those of its links.
    - A name V of this project: models/V, or deploy/V if there is no models/V.
    - A URI such as `models:/ddpm-digits@champion`: onnxruntime, by the plan it was registered with. Needs mlflow.

    `plan_source` of what is returned says where its plan comes from.

    Args:
        device: of a model directory. None: CUDA where there is a device, else the CPU.
        precision: of an exported model.
        root: the project's folder: relative paths and names start there, and it holds the MLflow store if
            MLFLOW_TRACKING_URI names no other.

    Raises:
        UserError: there is no such model, it is damaged, or not of this precision.
        UpstreamError: the MLflow server does not answer.
    """
    if is_uri(str(model)):
        from ddpm import tracking

        directory = tracking.resolve(str(model), root)
    else:
        directory = find_model(model, root=root)
    if (directory / CASCADE).is_file():
        from ddpm.drawer.cascade import open_cascade

        _warn_of_older_links(directory)
        return open_cascade(directory, lambda link: _single(link, device, precision))
    return _single(directory, device, precision)


def _warn_of_older_links(directory: Path) -> None:
    """Warn of a cascade of models/ whose models have been trained again since it was composed."""
    from ddpm.drawer.cascade import CascadeFacts

    if directory.absolute().parent.name != MODELS.name:
        return
    for link, own in CascadeFacts.read(directory).links.items():
        if not own.is_current(directory.parent):
            warnings.warn(
                f"{directory / link} is not the model {own.variant} as it is now: `ddpm compose {directory.name}` "
                "makes the cascade of the new one",
                DdpmWarning,
                stacklevel=3,
            )


def _single(directory: Path, device: torch.device | str | None, precision: Precision) -> Model | Sampler:
    """A model that is no cascade, as of `load`."""
    if not (directory / "model.json").is_file():
        from ddpm.deploy.runtime import Sampler

        return Sampler(directory, precision=precision)
    if precision != "fp32":
        raise UserError(f"precision {precision} is for exported models; {directory} is a trained one")
    if device is None:
        from ddpm.compute.device import pick_device

        device = pick_device()
    return trained(directory, device)


def trained(directory: Path, device: torch.device | str = "cpu") -> Model:
    """A model directory; inside a project with the plan that its params.yaml has for it today, by which the model is
    evaluated and exported.

    Raises:
        UserError: it is damaged, or params.yaml is.
    """
    from ddpm.config.params import load_params
    from ddpm.model import load

    model, place = load(directory, device), directory.resolve()
    params, variant = place.parent.parent / PARAMS, model.card.variant
    if (place.parent.name, place.name) == (MODELS.name, variant) and params.is_file():
        models = load_params(params).models
        if variant in models:
            return model.sampled_by(models[variant].sampling, str(params), root=params.parent)
    return model

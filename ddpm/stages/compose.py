"""`ddpm compose NAME`: the two models of a cascade as one model directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import torch

from ddpm.conditioning.pictures import LowNoiseColumn
from ddpm.config.params import Params
from ddpm.drawer import Drawer
from ddpm.drawer.cascade import Cascade, CascadeFacts, LinkFacts, open_cascade
from ddpm.errors import UserError
from ddpm.files import atomic_directory, read_json, sha256_of, write_json
from ddpm.layout import MODELS
from ddpm.model import Model, load

WEIGHTS = "model.safetensors"


def compose(params: Params, name: str, *, root: Path = Path()) -> None:
    """Write `models/NAME/`: cascade.json, and the model directories base/ and upsampler/, each with the plan that
    params.yaml has for it.

    Raises:
        UserError: there is no such cascade, a link is not trained, or the two do not fit together.
    """
    config = params.cascade(name)
    models = {link: _sampled(params, variant, root) for link, variant in config.links.items()}
    try:
        wiring = Cascade.of(models["base"], models["upsampler"], low_noise=config.low_noise).wiring
    except ValueError as error:
        raise UserError(f"cascades.{name}: {error}") from None
    trained_on = {link: model.card.data.train_sha256 for link, model in models.items()}
    if len({*trained_on.values()}) > 1:
        names = " and ".join(config.links.values())
        raise UserError(f"cascades.{name}: {names} were trained on different data: train them again")
    with atomic_directory(root / MODELS / name) as out:
        links = {}
        for link, model in models.items():
            source = root / MODELS / config.links[link] / WEIGHTS
            (out / link).mkdir()
            shutil.copyfile(source, out / link / WEIGHTS)
            write_json(out / link / "model.json", model.card.model_dump(mode="json"))
            fed, fixed = wiring[link].fed, wiring[link].fixed
            links[link] = LinkFacts(model.variant, model.fingerprint, sha256_of(source), fed, fixed)
        CascadeFacts(name, links).write(out)


def _sampled(params: Params, variant: str, root: Path) -> Model:
    """A trained model with its plan of params.yaml, which it can be sampled by."""
    sampling = params.variant(variant).sampling
    model = load(root / MODELS / variant).sampled_by(sampling)
    try:
        model.plan()
    except ValueError as error:
        raise UserError(f"models/{variant} cannot be sampled by models.{variant}.sampling: {error}") from None
    return model


def open_trained(params: Params, name: str, device: torch.device | str = "cpu", *, root: Path = Path()) -> Drawer:
    """The model or the cascade of models/NAME, with its plan of params.yaml.

    Raises:
        UserError: as `model.load`, `Model.sampled_by` and `open_composed`; or there is no such model.
    """
    if name in params.cascades:
        return open_composed(params, name, device, root=root)
    return load(root / MODELS / name, device).sampled_by(params.variant(name).sampling, root=root)


def open_composed(params: Params, name: str, device: torch.device | str = "cpu", *, root: Path = Path()) -> Cascade:
    """The cascade of models/NAME.

    Raises:
        UserError: it is not composed, or of other trainings than its models have now.
    """
    directory = root / MODELS / name
    cascade = open_cascade(directory, lambda link: load(link, device))
    config = params.cascade(name)
    low_noise = cascade.wiring["upsampler"].fixed[LowNoiseColumn.name]
    if low_noise != config.low_noise:
        raise UserError(
            f"{directory} has low_noise {low_noise:g}, and cascades.{name} has {config.low_noise:g}: run "
            f"`ddpm compose {name}`"
        )
    for link, variant in config.links.items():
        card = root / MODELS / variant / "model.json"
        own = cast(Model, cascade.links[link])
        now = read_json(card)["training"]["fingerprint"] if card.is_file() else own.fingerprint
        if (own.variant, own.fingerprint) != (variant, now):
            raise UserError(f"{directory / link} is not the model {variant} as it is now: run `ddpm compose {name}`")
        if own.card.config.sampling != params.variant(variant).sampling:
            raise UserError(
                f"{directory / link} has another plan than models.{variant}.sampling: run `ddpm compose {name}`"
            )
    return cascade

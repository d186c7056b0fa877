"""`ddpm compose NAME`: the models of a cascade as one model directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from ddpm.config.cascade import CompositionConfig, Wires
from ddpm.config.params import Params
from ddpm.drawer import Drawer
from ddpm.drawer.cascade import Cascade, CascadeFacts, Link, LinkFacts, open_cascade
from ddpm.errors import UserError, listed
from ddpm.files import atomic_directory, sha256_of, write_json
from ddpm.layout import MODELS
from ddpm.model import Model, load

WEIGHTS = "model.safetensors"


def compose(params: Params, name: str, *, root: Path = Path()) -> None:
    """Write `models/NAME/`: cascade.json, and a model directory of each link, such as base/ and upsampler/, with the
    plan that params.yaml has for it.

    Raises:
        UserError: there is no such cascade, a link is not trained, or they do not fit together.
    """
    config = params.cascade(name)
    models = {link: _sampled(params, variant, root) for link, variant in config.links.items()}
    wiring = config.wiring(params.links(name))
    try:
        Cascade({link: Link(model, *wiring[link]) for link, model in models.items()}, leading=config.leading)
    except ValueError as error:
        raise UserError(f"{config.key}.{name}: {error}") from None
    check_encoders(config, models, f"{config.key}.{name}", root)
    trained_on = {link: model.card.data.train_sha256 for link, model in models.items()}
    if len({*trained_on.values()}) > 1:
        names = listed(config.links.values())
        raise UserError(f"{config.key}.{name}: {names} were trained on different data: train them again")
    with atomic_directory(root / MODELS / name) as out:
        links = {}
        for link, model in models.items():
            source = root / MODELS / config.links[link] / WEIGHTS
            (out / link).mkdir()
            shutil.copyfile(source, out / link / WEIGHTS)
            write_json(out / link / "model.json", model.card.model_dump(mode="json"))
            links[link] = LinkFacts(model.variant, model.fingerprint, sha256_of(source), *wiring[link])
        CascadeFacts(name, config.leading, links).write(out)


def check_encoders(config: CompositionConfig, links: Mapping[str, Drawer], where: str, root: Path) -> None:
    """Check that links of embeddings are of a CLIP as it is now.

    Args:
        links: by their keys.

    Raises:
        UserError: one was trained with other weights of the CLIP, which has been trained again since.
    """
    for encoder in config.encoders:
        weights = root / MODELS / encoder / WEIGHTS
        now = sha256_of(weights) if weights.is_file() else None
        for link, variant in config.links.items():
            used = links[link].embedded_by
            if None not in (used, now) and used != now:
                raise UserError(
                    f"{where}: {variant} was trained with {encoder} {str(used)[:12]}, which is {str(now)[:12]} now: "
                    f"run `ddpm embed {encoder}` and `ddpm train {variant}`"
                )


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
    if name in params.composed:
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
    _check_wiring(cascade, config, config.wiring(params.links(name)), directory)
    check_encoders(config, cascade.links, f"{config.key}.{name}", root)
    facts = CascadeFacts.read(directory)
    for link, variant in config.links.items():
        own = cast(Model, cascade.links[link])
        if own.variant != variant or not facts.links[link].is_current(root / MODELS):
            raise UserError(f"{directory / link} is not the model {variant} as it is now: run `ddpm compose {name}`")
        if own.card.config.sampling != params.variant(variant).sampling:
            raise UserError(
                f"{directory / link} has another plan than models.{variant}.sampling: run `ddpm compose {name}`"
            )
    return cascade


def _check_wiring(cascade: Cascade, config: CompositionConfig, wiring: Mapping[str, Wires], directory: Path) -> None:
    """Check that a cascade of models/ is put together as params.yaml says.

    Raises:
        UserError: it is not.
    """
    name = directory.name
    fed = {link: wires.fed for link, wires in wiring.items()}
    if {link: own.fed for link, own in cascade.wiring.items()} != fed or cascade.leading != config.leading:
        raise UserError(
            f"{directory} is put together in another way than {config.key}.{name}: run `ddpm compose {name}`"
        )
    for link, wires in wiring.items():
        for column, value in wires.fixed.items():
            if (found := cascade.wiring[link].fixed.get(column)) != value:
                raise UserError(
                    f"{directory} has {column} {found}, and {config.key}.{name} has {value}: run `ddpm compose {name}`"
                )

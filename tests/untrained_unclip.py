"""An unCLIP of random weights, as `unclips.unclip_params` describes it: a CLIP, a prior, a decoder and an upsampler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from unclips import unclip_params
from untrained import export, saved, untrained
from weights import awake

import ddpm
from ddpm.conditioning.tokenizers import Words
from ddpm.config.cascade import UnclipConfig
from ddpm.config.model import VariantConfig
from ddpm.drawer.cascade import CascadeFacts, LinkFacts
from ddpm.evaluation.accessory import open_space
from ddpm.files import sha256_of
from ddpm.model import DataFacts, Model, build_network, columns_for
from ddpm.stages.encoder import UsedEncoder

NAME = "dalle"
# Of the captions of `captioned.write_pictures`.
WORDS = Words(("a", "square", "dark", "light", "night"), 4)
CAPTIONS = ("a light square", "a dark square", "night")
SIDES = {"decoder": 4}  # of the others 8


def untrained_unclip(root: Path, **decoder: Any) -> dict[str, Path]:
    """The model directories below `root`/models, by the models' names; that of the whole is `dalle`.

    Args:
        decoder: sections of the decoder in place of those of `unclip_params`.
    """
    params, models = unclip_params(), root / "models"
    sections: dict[str, Any] = params["models"]
    sections["decoder"] |= decoder
    made = {"clip": untrained("clip", models, _facts("clip"), **sections["clip"])}
    clip, space = open_space("clip", _facts("clip").codec, "clip", root, torch.device("cpu"))
    for name in ("prior", "decoder", "larger"):
        made[name] = _with_clip(name, models, clip, space, sections[name])
    config = UnclipConfig.model_validate(params["unclips"][NAME])
    wiring = config.wiring({link: VariantConfig.model_validate(sections[own]) for link, own in config.links.items()})
    links = {}
    for link, name in config.links.items():
        shutil.copytree(made[name], models / NAME / link)
        links[link] = LinkFacts(name, name, sha256_of(made[name] / "model.safetensors"), *wiring[link])
    CascadeFacts(NAME, config.leading, links).write(models / NAME)
    return {**made, NAME: models / NAME}


def exported_unclip(trained: Path, out: Path) -> Path:
    """A deploy directory of such a cascade."""
    for link in CascadeFacts.read(trained).links:
        export(ddpm.load(trained / link), out / link)
    shutil.copyfile(trained / "cascade.json", out / "cascade.json")
    return out


def _facts(name: str) -> DataFacts:
    text = {"tokenizer": WORDS.as_json(), "captions": CAPTIONS}
    side = SIDES.get(name, 8)
    return DataFacts(name="pictures", shape=(side, side, 1), classes=None, text=text)


def _with_clip(name: str, models: Path, clip: Model, space: Any, sections: dict[str, Any]) -> Path:
    """A model that draws the CLIP's embeddings, or is conditioned on them; others as `untrained`."""
    config, facts = VariantConfig.model_validate(sections), _facts(name)
    if not config.encoders:
        return untrained(name, models, facts, **sections)
    used = UsedEncoder(config, clip, space, None)
    config, facts = used.described(config), used.told(facts)
    network = awake(build_network(config, facts.codec, columns=columns_for(config, facts, name)), std=0.1)
    used.fill(network)
    return saved(name, models, config, facts, network, clip=used.carried)

"""What the stages left behind of a variant, and what it came of."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.config.cascade import stages_of
from ddpm.drawer.cascade import CascadeFacts, united_fingerprint
from ddpm.errors import UserError
from ddpm.figures.protocol import mark_of
from ddpm.files import read_json, sha256_of
from ddpm.layout import CASCADE, DEPLOY, MODELS, PREPARED, REPORTS


@dataclass(frozen=True)
class Trained:
    """What models/V says of a model, or of the links of a cascade.

    Attributes:
        cards: model.json of each link by its name; of a single model under the empty name.
        fingerprint: of the training, or of all.
        facts: of a cascade cascade.json, else None.
    """

    cards: dict[str, dict[str, Any]]
    fingerprint: str
    facts: CascadeFacts | None = None

    @classmethod
    def read(cls, variant: str, root: Path) -> Trained:
        """
        Raises:
            UserError: a file is missing or damaged.
        """
        directory = root / MODELS / variant
        if not _is_cascade(variant, root):
            card = read_output(directory / "model.json", f"train@{variant}")
            return cls({"": card}, card["training"]["fingerprint"])
        facts = CascadeFacts.read(directory)
        cards = {link: read_output(directory / link / "model.json", f"compose@{variant}") for link in facts.links}
        return cls(cards, united_fingerprint(card["training"]["fingerprint"] for card in cards.values()), facts)

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the data that it draws."""
        return list(self.cards.values())[-1]["data"]

    @property
    def leading(self) -> str:
        """The link whose plan users choose."""
        return self.facts.leading if self.facts else ""

    @property
    def links(self) -> str:
        """The links of a cascade by their names and the start of their weights' SHA-256; empty of a model."""
        links = self.facts.links.values() if self.facts else ()
        return ", ".join(f"{link.variant} {link.sha256[:12]}" for link in links)

    def parameters(self) -> dict[str, Any]:
        """Nested; of each link under its name."""
        parts = {link: _parameters_of(card) for link, card in self.cards.items()}
        if self.facts is None:
            return parts[""]
        fixed = {name: value for link in self.facts.links.values() for name, value in link.fixed.items()}
        return {**parts, **fixed, "links": self.links}


def _parameters_of(card: dict[str, Any]) -> dict[str, Any]:
    trained = {key: card["training"][key] for key in ("seed", "precision", "device", "torch", "images_seen")}
    for key in ("start_from", "control_of"):
        if facts := card["training"].get(key):
            trained[key] = f"{facts['variant']} {facts['sha256'][:12]}"
    if facts := card["data"].get("encoder"):
        trained["encoder"] = f"{facts['variant']} {facts['sha256'][:12]}"
    return {**card["config"], "trained": trained, "parameters": card["parameters"]}


@dataclass(frozen=True)
class Outputs:
    """The finished stages of a model or a cascade, as far as MLflow shall know of them."""

    variant: str
    root: Path
    trained: Trained
    manifest: dict[str, Any]
    metrics: dict[str, float]
    protocol: dict[str, Any]
    sampling: dict[str, Any]
    parity: dict[str, Any]
    lineage: str

    @classmethod
    def read(cls, variant: str, root: Path) -> Outputs:
        """Read what train, evaluate and export wrote.

        Raises:
            UserError: a stage has not run, or it ran with another model than the trained one, or by hand since
                dvc.lock was written; or an exported file is not the trained model.
        """
        trained = Trained.read(variant, root)
        *_, evaluate, export = _own_stages(variant, root)
        reports, deploy = root / REPORTS / variant, root / DEPLOY / variant
        metrics = read_output(reports / "metrics.json", evaluate)
        exported = {link: read_output(deploy / link / "sampler.json", export) for link in trained.cards}
        sampler = exported[trained.leading]
        outputs = cls(
            variant=variant,
            root=root,
            trained=trained,
            manifest=manifest_of(root),
            metrics={key: value for key, value in metrics.items() if isinstance(value, int | float)},
            protocol=read_output(reports / "protocol.json", evaluate),
            sampling=sampler["sampling"],
            parity=read_output(deploy / "parity.json", export),
            lineage=lineage_of(variant, root),
        )
        marks = [each.get("training", {}).get("fingerprint", "") for each in exported.values()]
        for path, found, expected in (
            (reports, metrics.get("model"), mark_of(trained.fingerprint)),
            (deploy, united_fingerprint(marks), trained.fingerprint),
        ):
            if found != expected:
                model = root / MODELS / variant
                raise UserError(f"{path} was made of another training than {model}: evaluate and export the model anew")
        _check_guide(reports, outputs.protocol, sampler)
        if not _is_imported(trained):
            _check_lock(variant, root)
        if not outputs.parity["passed"]:
            raise UserError(
                f"{deploy / 'parity.json'}: an exported file differs from the trained model by more than its "
                "tolerance; it is not registered"
            )
        return outputs

    def parameters(self) -> dict[str, str]:
        """Every knob that made the model and its figures, flat: `training.learning_rate`, `protocol.steps`, …"""
        # A tokenizer and captions are longer than MLflow's parameters may be, and a CLIP has its own model.json.
        data = {key: value for key, value in self.trained.data.items() if key not in ("text", "encoder")}
        # The card's own sampling options are those of the time of training.
        parts = {"sampling": self.sampling, "data": data, "protocol": self.protocol}
        return dict(flatten({**self.trained.parameters(), **parts}))

    def curve(self) -> list[tuple[int, dict[str, float]]]:
        """The loss curve: a step and its metrics a row; none of a cascade, whose links have been trained apart."""
        path = self.root / MODELS / self.variant / "loss.csv"
        if self.trained.facts:
            return []
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
        return [(int(row.pop("step")), row) for row in rows]


def _is_cascade(variant: str, root: Path) -> bool:
    return (root / MODELS / variant / CASCADE).is_file()


def _autoencoder(variant: str, root: Path) -> str | None:
    """The name of the autoencoder of a model of latents; None of another one, or if there is no model."""
    card = root / MODELS / variant / "model.json"
    latent = read_output(card, f"train@{variant}").get("data", {}).get("latent") if card.is_file() else None
    return latent and latent["variant"]


def _encoders(variant: str, links: Iterable[str], root: Path) -> list[str]:
    """The names of the models whose embeddings the links of a cascade draw or see."""
    directories = (root / MODELS / variant / link for link in links)
    cards = [read_output(directory / "model.json", f"compose@{variant}") for directory in directories]
    return [*dict.fromkeys(facts["variant"] for card in cards if (facts := card["data"].get("encoder")))]


def _kind(variant: str, root: Path) -> str:
    """What the names of a model's stages end with, before the @; of a model with a control as dvc.lock has them."""
    if f"train-control@{variant}" in _stages_in_lock(root):
        return "-control"
    return "-latent" if _autoencoder(variant, root) else ""


def _stages_in_lock(root: Path) -> dict[str, Any]:
    """The entries of dvc.lock; none without it."""
    import yaml

    path = root / "dvc.lock"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}).get("stages", {})


def read_output(path: Path, stage: str) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro {stage}`") from None
    except ValueError:
        raise UserError(f"{path}: damaged; run `dvc repro --force --single-item {stage}`") from None


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dictionaries under dotted names, as MLflow's parameters want them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def lineage_of(variant: str, root: Path = Path()) -> str:
    """A hash of everything a variant came of: the entries of its stages in dvc.lock.

    An imported model came of no stage; it is identified by its own files, its figures' and its export's.

    Raises:
        UserError: dvc.lock lacks a stage, or an imported model was not evaluated or exported.
    """
    card = root / MODELS / variant / "model.json"
    if card.is_file() and _is_imported(Trained.read(variant, root)):
        for folder, command in ((REPORTS, "evaluate"), (DEPLOY, "export")):
            if not (root / folder / variant).is_dir():
                raise UserError(f"{root / folder / variant}: no such directory; run `ddpm {command} {variant}`")
        folders = (root / folder / variant for folder in (MODELS, REPORTS, DEPLOY))
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        hashes = {path.relative_to(root).as_posix(): sha256_of(path) for path in files}
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return hashlib.sha256(json.dumps(_locked_stages(variant, root), sort_keys=True).encode()).hexdigest()


def _is_imported(trained: Trained) -> bool:
    return any((card.get("training") or {}).get("weights") == "imported" for card in trained.cards.values())


def _check_guide(reports: Path, protocol: dict[str, Any], sampler: dict[str, Any]) -> None:
    """Refuse figures of a model with another guide than the exported one. (A plan of their own may have no guide.)"""
    measured, exported = protocol.get("guide"), (sampler.get("guide") or {}).get("mark")
    if measured not in (None, exported):
        raise UserError(
            f"{reports} was measured with the guide {measured}, but the model was exported with {exported or 'none'}: "
            "evaluate and export the model anew"
        )


def _locked_stages(variant: str, root: Path) -> dict[str, Any]:
    """What dvc.lock has of the stages that a variant came of."""
    path, stages = root / "dvc.lock", _stages_in_lock(root)
    names = ["prepare", *_own_stages(variant, root)]
    names += [f"train-guide@{guide}" for guide in _guides_of(variant, root)]
    names += [name for name in _trainings_of_base(variant, root) if name in stages]
    for name in names:
        if name not in stages:
            raise UserError(f"{path}: no entry for {name}; run `dvc repro {name}`")
    return {name: stages[name] for name in names}


def _own_stages(variant: str, root: Path) -> list[str]:
    """The stages of dvc.yaml that make a model or a cascade, from its trainings to its export; of a model of latents
    with those of its autoencoder, of embeddings with those of its CLIP."""
    if _is_cascade(variant, root):
        links = CascadeFacts.read(root / MODELS / variant).links
        encoders = [
            f"{stage}@{name}" for name in _encoders(variant, links, root) for stage in ("train-encoder", "embed")
        ]
        return [*encoders, *stages_of(links).of(variant)]
    kind, first = _kind(variant, root), list[str]()
    if autoencoder := _autoencoder(variant, root):
        first = [f"{stage}@{autoencoder}" for stage in ("train-autoencoder", "encode")]
    return [*first, *(f"{stage}{kind}@{variant}" for stage in ("train", "evaluate", "export"))]


def _guides_of(variant: str, root: Path) -> list[str]:
    """The model that guided it when it was evaluated, if one did."""
    protocol = root / REPORTS / variant / "protocol.json"
    guide = read_output(protocol, f"evaluate@{variant}").get("guide") if protocol.is_file() else None
    return [] if guide is None else [guide.split()[0]]


def _trainings_of_base(variant: str, root: Path) -> list[str]:
    """What may have trained the model that a variant controls; nothing, if it controls none."""
    card = root / MODELS / variant / "model.json"
    base = read_json(card)["training"].get("control_of") if card.is_file() else None
    return [] if base is None else [f"{stage}@{base['variant']}" for stage in ("train", "train-latent", "train-guide")]


def _check_lock(variant: str, root: Path) -> None:
    """Refuse files that are not those dvc.lock records, since its entries would not be their lineage."""
    for name, stage in _locked_stages(variant, root).items():
        for out in stage["outs"]:
            path = root / out["path"]
            # A directory's hash is of DVC's own list of what is in it.
            if path.is_file() and out.get("hash") == "md5" and _md5_of(path) != out["md5"]:
                raise UserError(f"{path} is not the file that dvc.lock records; run `dvc repro {name}`")


def _md5_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def model_name(root: Path = Path()) -> str:
    """The registered model's name, and the experiment's: `ddpm-<dataset>`."""
    return f"ddpm-{manifest_of(root)['name']}"


def credit_tag(facts: Mapping[str, Any]) -> dict[str, str]:
    """The credit for the images as a tag of runs and versions; nothing, where they ask for none.

    Args:
        facts: the manifest, or what a model knows of its data.
    """
    text = facts.get("attribution")
    return {} if text is None else {"attribution": text}


def manifest_of(root: Path = Path()) -> dict[str, Any]:
    """prepared/manifest.json."""
    return read_output(root / PREPARED / "manifest.json", "prepare")

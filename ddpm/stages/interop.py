"""`ddpm import` and `ddpm export-diffusers`: models from elsewhere, and to elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.scale import Codec, ValueCodec
from ddpm.conditioning.labels import Labels
from ddpm.conditioning.text import Text
from ddpm.config.base import validate
from ddpm.config.codec import CodecConfig, LatentConfig
from ddpm.config.condition import ConditionConfig, LabelConfig
from ddpm.config.data import DATA_NAME
from ddpm.config.model import ModelConfig
from ddpm.config.params import VARIANT_NAME
from ddpm.errors import UserError
from ddpm.files import atomic_directory, combined_sha256
from ddpm.first_stage import PREFIX, LatentFacts
from ddpm.interop import diffusers, ldm, lucidrains, openai, openai_classifier
from ddpm.interop.diffusers import pipeline, prior_pipeline
from ddpm.interop.published import Autoencoder, Classes, Flags, Published
from ddpm.interop.published import Text as PublishedText
from ddpm.interop.saved import in_short, must_be_a_file, read_saved, shown, tensors_alone
from ddpm.layout import MODELS, find_model
from ddpm.model import Model, load, save
from ddpm.model.card import DataFacts, EmbeddingFacts, ModelCard, TextFacts, TrainingFacts
from ddpm.model.network import build_network, columns_for
from ddpm.model.weights import refuse_not_finite_weights
from ddpm.stages.train import write_curve

NETWORK = "network."  # before the tensors' names in a conditional model
MOST_BYTES = 1 << 20  # of a file of classes
# Of diffusers, by whether the model is of latents.
_PIPELINES = {False: "DDPMPipeline", True: "StableDiffusionPipeline"}
_NETWORKS = {False: "UNet2DModel", True: "StableDiffusionPipeline"}


def import_model(
    source: Path, out: Path, flags: Flags, *, data_name: str | None = None, classes: Sequence[str] | None = None
) -> str:
    """Write the model directory `out` from a checkpoint file or a diffusers directory.

    The card's facts of data and training stay empty but for the name, since no such checkpoint tells them; the
    fingerprint is the SHA-256 of the file of weights, or of those of all its files, and loss.csv has no rows.

    Args:
        flags: what the source does not tell.
        data_name: what the model was trained on; by default the name of `out`.
        classes: their names, in the order of the embedding's rows or of a classifier's logits; by default their
            numbers.

    Returns:
        A line on what was made.

    Raises:
        UserError: the source is damaged, of another network or lacks something, a flag does not
            apply to it, `out` is there already or its name cannot be a model's.
        NotFiniteError: the weights hold NaN or infinite values.
    """
    model, notes = imported(source, out, flags, data_name=data_name, classes=classes)
    with atomic_directory(out) as temporary:
        save(model, temporary)
        write_curve([], temporary / "loss.csv")
    process, shape = model.card.config.process, "×".join(map(str, model.shape))
    said = "".join(f"; {note}" for note in notes)
    return (
        f"{out}: {model.card.parameters / 1e6:.2f} M parameters, {model.codec.name} of {shape}, "
        f"{process.schedule} schedule of {process.timesteps} steps{said}. {_next_step(model, out)}"
    )


def imported(
    source: Path, out: Path, flags: Flags, *, data_name: str | None = None, classes: Sequence[str] | None = None
) -> tuple[Model, tuple[str, ...]]:
    """The model that `import_model` writes, and what a user should know of the import."""
    _must_be_new(out)
    variant = out.resolve().name
    _must_be_a_name(variant, VARIANT_NAME, f"--out {out}: its last part becomes the model's name")
    if data_name is not None:
        _must_be_a_name(data_name, DATA_NAME, "--data-name")
    published, weights = _read(source, flags)
    refuse_not_finite_weights(published.weights, str(source))
    for part in (published.labels, published.text, published.autoencoder):
        refuse_not_finite_weights(part.weights if part else {}, str(source))
    _must_name(classes, published, source)
    model = assemble(
        published,
        variant=variant,
        data_name=data_name or variant,
        fingerprint=combined_sha256(weights),
        classes=classes,
    )
    return model, (*_note_on(published), *published.notes)


def _next_step(model: Model, out: Path) -> str:
    """What the imported model is good for."""
    if model.card.config.classifies:
        return f"To guide a model by it: ddpm sample MODEL --guide {out} --guidance-scale 1"
    return (
        f"To evaluate and export it, add {model.card.variant} to `models` in params.yaml, with the `sampling` you want"
    )


def class_names(text: str) -> tuple[str, ...]:
    """The names of `--classes`: words with commas between, or @FILE, a text file with a name a line.

    Raises:
        UserError: there is no such file, or a name is empty, there twice or not printable.
    """
    if text.startswith("@"):
        path = Path(text[1:])
        must_be_a_file(path)
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: longer than {MOST_BYTES:,} bytes; expected the name of a class a line")
        try:
            names = path.read_text("utf-8").splitlines()
        except ValueError:
            raise UserError(f"{path}: not UTF-8 text; expected the name of a class a line") from None
    else:
        names = text.split(",")
    found = tuple(name.strip() for name in names)
    for number, name in enumerate(found):
        if not name or not name.isprintable() or name in found[:number]:
            what = "there twice" if name in found[:number] else "no name"
            raise UserError(f"--classes: {shown(name)!r}, that of class {number}, is {what}")
    return found


def _must_name(classes: Sequence[str] | None, published: Published, source: Path) -> None:
    """
    Raises:
        UserError: there are not as many names as classes.
    """
    if classes is None:
        return
    if not published.classes:
        raise UserError(f"{source}: --classes: the network has no classes; leave it out")
    if len(classes) != published.classes:
        null = " beside the null class" if published.labels and published.labels.null else ""
        raise UserError(
            f"{source}: --classes has {len(classes)} names, but the network has {published.classes} classes{null}"
        )


def _note_on(published: Published) -> list[str]:
    labels = published.labels
    if published.text is not None:
        return [f"captions of {published.text.options['length']} tokens"]
    if labels is None:
        return [f"a classifier of {published.answers} classes"] if published.answers else []
    guidance = "a null class" if labels.null else "no null class, so that it cannot be guided (see --null-class)"
    return [f"{labels.count} classes and {guidance}"]


def _must_be_a_name(name: str, pattern: str, what: str) -> None:
    if not re.fullmatch(pattern, name):
        marks = "., - and _" if pattern == DATA_NAME else "- and _"
        likely = "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "imported"
        raise UserError(
            f"{what}; params.yaml has names of lower-case letters, digits, {marks}; found {shown(name)}, try {likely}"
        )


def _read(source: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """The model, and the files that have its weights.

    Names and shapes are taken at their word and checked when the whole is put together; what breaks before that is of
    no shape that a reader knows.
    """
    try:
        return _known(source, flags)
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a checkpoint that ddpm knows ({in_short(error)})") from error


def _known(source: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """By the reader of its kind."""
    if source.is_dir():
        if pipeline.is_theirs(source):
            return pipeline.read(source, flags)
        if prior_pipeline.is_theirs(source):
            return prior_pipeline.read(source, flags)
        return diffusers.read(source, flags), diffusers.find(source).weights
    saved, where = read_saved(source), str(source)
    if ldm.is_theirs(saved):
        return ldm.convert(tensors_alone(ldm.state_of(saved), where), flags, where), (source,)
    if lucidrains.is_theirs(saved):
        return lucidrains.convert(saved, flags, where), (source,)
    theirs = tensors_alone(saved, where)
    reader = openai_classifier if openai_classifier.is_theirs(theirs) else openai
    return reader.convert(theirs, flags, where), (source,)


def assemble(
    published: Published,
    *,
    variant: str,
    data_name: str,
    fingerprint: str,
    classes: Sequence[str] | None = None,
) -> Model:
    """The model of a published network, with its card.

    Args:
        classes: as many names as it has classes; by default their numbers.
    """
    codec, labels, weights = published.codec, published.labels, published.weights
    names = tuple(classes or map(str, range(published.classes))) or None
    told = {Labels.saved_as: labels, Text.saved_as: published.text}
    if any(told.values()):
        weights = _prefixed(NETWORK, weights)
    for saved_as, part in told.items():
        weights |= {} if part is None else _prefixed(f"{saved_as}.", part.weights)
    config = ModelConfig(
        network=published.network,
        condition=_condition_of(published),
        codec=CodecConfig(latent=LatentConfig(autoencoder=f"{MODELS}/{variant}") if published.autoencoder else None),
        process=published.process,
        sampling=published.sampling,
    )
    low, high = (codec.low, codec.high) if isinstance(codec, ValueCodec) else (None, None)
    text = published.text and TextFacts(tokenizer=published.text.tokenizer, captions=("",))
    facts = DataFacts(name=data_name, shape=codec.shape, classes=names, kind=codec.name, low=low, high=high, text=text)
    if isinstance(codec, Embedding):
        facts = facts.model_copy(update={"embedding": EmbeddingFacts.of(codec)})
    autoencoder = None
    if published.autoencoder is not None:
        latent = _latent_facts(published.autoencoder, codec, variant, fingerprint)
        facts = facts.model_copy(update={"latent": latent})
        autoencoder = latent.open(facts.stored, _prefixed(PREFIX, published.autoencoder.weights), "cpu")
    network = build_network(config, codec, columns=columns_for(config, facts, variant))
    network.load_state_dict(weights)
    card = ModelCard(
        variant=variant,
        config=config,
        data=facts,
        training=TrainingFacts(fingerprint=fingerprint, weights="imported"),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        own_plan=True,
    )
    return Model(network.eval().requires_grad_(False), card, autoencoder=autoencoder)


def _latent_facts(published: Autoencoder, codec: Codec, variant: str, fingerprint: str) -> LatentFacts:
    """Of an autoencoder that came with the model."""
    return LatentFacts(
        variant=variant,
        fingerprint=fingerprint,
        sha256=fingerprint,
        network=published.network,
        shape=codec.network_shape,
        scale=published.scale,
    )


def _condition_of(published: Published) -> ConditionConfig:
    """What the network is conditioned on; of a classifier, what it answers."""
    labels, text = published.labels, published.text
    if text is not None:
        return validate(ConditionConfig, {"prompt": text.options}, "condition")
    if labels is not None:
        # How often a label was dropped in training no weights tell; that it was, is what the default says.
        drop = {} if labels.null else {"drop": 0.0}
        return ConditionConfig(label=LabelConfig(perceptron=labels.perceptron, **drop))
    return ConditionConfig(label=LabelConfig(drop=0.0)) if published.answers else ConditionConfig()


def _prefixed(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def export_diffusers(model_directory: Path, out: Path) -> str:
    """Write the directory `out` for diffusers' `DDPMPipeline.from_pretrained` from a model directory; of a model of
    latents and captions for `StableDiffusionPipeline.from_pretrained`.

    Returns:
        The name of that pipeline.

    Raises:
        UserError: there is no model, it uses what diffusers' networks or DDPMScheduler lack, or `out` is there already.
    """
    _must_be_new(out)
    model = load(find_model(model_directory, exported=False))
    latent = model.autoencoder is not None
    told = {"prompt"} if latent else {"label"}
    if other := sorted({column.key for column in model.columns} - told):
        raise UserError(f"{model_directory}: condition.{other[0]} is not a part of diffusers' {_NETWORKS[latent]}")
    published = published_of(model)
    with atomic_directory(out) as temporary:
        (pipeline.write if latent else diffusers.write)(published, temporary)
    return _PIPELINES[latent]


def published_of(model: Model) -> Published:
    """The inverse of `assemble`."""
    config, weights, facts = model.card.config, model.network.state_dict(), model.card.data
    labels, text, autoencoder = None, None, None
    own = {column.key: column for column in model.columns}
    if "label" in own:
        labels = Classes(_below(f"{Labels.saved_as}.", weights), null=own["label"].null is not None)
    if facts.text is not None:
        of_text = _below(f"{Text.saved_as}.", weights)
        text = PublishedText(config.condition.model_dump()["prompt"], facts.text.tokenizer, of_text)
    if facts.latent is not None and model.autoencoder is not None:
        own_weights = model.autoencoder.network.state_dict()
        autoencoder = Autoencoder(facts.latent.network, own_weights, facts.latent.scale)
    return Published(
        config.network,
        config.process,
        config.sampling,
        model.codec,
        _below(NETWORK, weights) if own else weights,
        labels=labels,
        text=text,
        autoencoder=autoencoder,
    )


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another directory")

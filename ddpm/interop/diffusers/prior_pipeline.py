"""Directories of diffusers' pipelines with a `PriorTransformer`: the prior, its text encoder, tokenizer and scheduler.
Neither diffusers nor transformers is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from ddpm.codecs.embedding import Embedding
from ddpm.config.base import Positive, validate
from ddpm.config.process import ProcessConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.interop import clip
from ddpm.interop.diffusers.prior import CLASS, MEAN, PROJECTION, STD, PriorTransformerConfig, ours_of, prior_config
from ddpm.interop.diffusers.scheduler import SchedulerConfig, process_config
from ddpm.interop.folders import DIFFUSERS, read_config, read_weights, weights_in
from ddpm.interop.latent import text_of
from ddpm.interop.published import Flags, Published, Text, network_of
from ddpm.interop.saved import shown
from ddpm.nets.condition import Ports
from ddpm.nets.prior import Prior

PRIOR = "prior"
GUIDANCE_SCALE, STEPS = 4.0, 25  # of their pipelines, where nobody says others
_TEXT_PROJECTION = "text_projection.weight"
_SCHEDULERS = ("prior_scheduler", "scheduler")  # of a whole unCLIP pipeline, and of a prior's own
UNCLIP = "UnCLIPScheduler"


@dataclass(frozen=True)
class Found:
    """Where the parts of a pipeline are."""

    prior: Path
    text_encoder: Path
    tokenizer: Path
    scheduler: Path


class UnCLIPSchedulerConfig(BaseModel, frozen=True):
    """scheduler_config.json of an `UnCLIPScheduler`, with its defaults: the cosine schedule, ancestral sampling with
    the smaller of the two variances, and x̂_0 held in ±clip_sample_range."""

    class_name: Literal["UnCLIPScheduler"] = Field(alias="_class_name")
    num_train_timesteps: Positive = 1000
    variance_type: Literal["fixed_small_log"] = "fixed_small_log"
    clip_sample: bool = True
    clip_sample_range: float = Field(1.0, gt=0)
    prediction_type: Literal["epsilon", "sample"] = "epsilon"
    beta_schedule: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"


def is_theirs(directory: Path) -> bool:
    """Whether it is a pipeline with a prior, or the folder of the prior itself."""
    return any(
        config.is_file() and read_config(config).get("_class_name") == CLASS
        for config in (directory / PRIOR / "config.json", directory / "config.json")
    )


def find(directory: Path) -> Found:
    """The parts of a pipeline's directory; of the folder of its prior, with the others beside it.

    Raises:
        UserError: a part is missing.
    """
    whole = directory if (directory / PRIOR / "config.json").is_file() else directory.resolve().parent
    prior = directory / PRIOR if whole == directory else directory
    scheduler = next((whole / name for name in _SCHEDULERS if (whole / name).is_dir()), whole / _SCHEDULERS[0])
    found = Found(prior, whole / "text_encoder", whole / "tokenizer", scheduler)
    for folder, what in (
        (found.text_encoder, "the text encoder (CLIPTextModelWithProjection)"),
        (found.tokenizer, "the tokenizer (CLIP's vocab.json and merges.txt)"),
        (found.scheduler, "the scheduler's configuration"),
    ):
        if not folder.is_dir():
            raise UserError(f"{directory}: no {folder.name}/ in {whole}, {what}: a prior draws what a text says")
    return found


def read(directory: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """The model of such a directory, and the files that have its weights.

    Raises:
        UserError: a part is missing or damaged, uses what ours lacks, or does not fit the others.
    """
    flags.refuse_but(set(), f"{directory}: a diffusers pipeline with a prior")
    found = find(directory)
    files, where = weights_in(found.prior, DIFFUSERS), str(found.prior)
    config = validate(PriorTransformerConfig, read_config(found.prior / "config.json"), where)
    theirs = read_weights(files)
    if config.num_layers > len(theirs):
        raise UserError(f"{where}: another network: {len(theirs)} tensors for {config.num_layers} layers")
    text, of_text = _text(found, config, theirs)
    network = prior_config(config, where)
    ports = Ports(tokens=text.options["width"], length=config.num_embeddings)
    ours = network_of(network, (config.embedding_dim,), config.embedding_dim, where, ports)
    assert isinstance(ours, Prior)
    weights = ours_of(theirs, ours, where)
    process, sampling, notes = _process(read_config(found.scheduler / "scheduler_config.json"), str(found.scheduler))
    plan = sampling.model_copy(update={"guidance_scale": GUIDANCE_SCALE})
    said = f"guidance_scale {GUIDANCE_SCALE:g}, the pipelines' default"
    codec = _codec(theirs, config.embedding_dim, where)
    return Published(network, process, plan, codec, weights, (*notes, said), text=text), (*files, *of_text)


def _text(found: Found, config: PriorTransformerConfig, theirs: Mapping[str, Tensor]) -> tuple[Text, tuple[Path, ...]]:
    """The text encoder with its projection and what projects the embedding into the prior; and the encoder's files."""
    published, files = clip.read(found.text_encoder)
    text, where = text_of(published, found.tokenizer, str(found.text_encoder)), str(found.text_encoder)
    projection = read_weights(files).get(_TEXT_PROJECTION)
    if projection is None:
        raise UserError(f"{where}: no {_TEXT_PROJECTION}; expected a CLIPTextModelWithProjection")
    width, length = published.options["width"], published.options["length"] + clip.MARKS
    for what, own, wanted in (
        (f"{_TEXT_PROJECTION} is", list(projection.shape), [config.text_embedding, width]),
        ("the text encoder's width is", width, config.embedding_dim),
        ("its positions are", length, config.num_embeddings),
    ):
        if own != wanted:
            raise UserError(f"{where}: {what} {own}, and the prior needs {wanted}")
    options = {**text.options, "pooled": True, "frozen": True, "embedding": config.text_embedding, "masked": True}
    weights = {**text.weights, "embed.weight": projection.float()}
    for name in ("weight", "bias"):
        key = f"{PROJECTION}.{name}"
        if key not in theirs:
            raise UserError(f"{found.prior}: another network: missing {shown(key)}")
        weights[f"projection.{name}"] = theirs[key].float()
    return Text(options, text.tokenizer, weights), files


def _codec(theirs: Mapping[str, Tensor], numbers: int, where: str) -> Embedding:
    """What their `post_process_latents` does: an embedding is x · clip_std + clip_mean."""
    mean, std = (theirs[name].double().flatten() for name in (MEAN, STD))
    if len(mean) != numbers or len(std) != numbers:
        raise UserError(f"{where}: {MEAN} and {STD} have {len(mean)} and {len(std)} numbers; expected {numbers}")
    if not (std > 0).all():
        raise UserError(f"{where}: {STD} must be above 0: an untrained prior has zeros there")
    return Embedding(tuple(mean.tolist()), tuple(std.tolist()), unit_norm=False)


def _process(config: dict[str, Any], where: str) -> tuple[ProcessConfig, SamplingConfig, tuple[str, ...]]:
    """Of a scheduler's configuration, as `scheduler.process_config`."""
    if config.get("_class_name") != UNCLIP:
        return process_config(validate(SchedulerConfig, config, where), where)
    theirs = validate(UnCLIPSchedulerConfig, config, where)
    prediction = "x0" if theirs.prediction_type == "sample" else "epsilon"
    timesteps = theirs.num_train_timesteps
    process = {"timesteps": timesteps, "schedule": "cosine", "prediction": prediction, "variance": "fixed_small"}
    sampling = SamplingConfig(
        sampler="ancestral",
        steps=min(STEPS, timesteps),
        spacing="linspace",
        clip_range=theirs.clip_sample_range if theirs.clip_sample else None,
    )
    return validate(ProcessConfig, process, where), sampling, ()

"""The whole of params.yaml, and reading it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import Section, Seed, validate
from ddpm.config.cascade import CascadeConfig, CompositionConfig, UnclipConfig
from ddpm.config.condition import OF_TEXT
from ddpm.config.data import DataConfig
from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.export import ExportConfig
from ddpm.config.extractor import ExtractorConfig
from ddpm.config.model import VariantConfig
from ddpm.config.process import NUMBERS
from ddpm.config.promotion import PromotionConfig
from ddpm.config.sampling import SamplingConfig
from ddpm.config.yaml_file import aliases, read_yaml
from ddpm.errors import UserError, brief, listed

PARAMS_FILE = Path("params.yaml")
TRACKED = ("seed", "data", "extractor", "evaluation", "export")  # what stages of dvc.yaml depend on, beside models
DVC_STAGE = "DVC_STAGE"  # DVC sets it in the environment of a stage's command
# A name becomes a path, a word of a command and a part of a DVC key.
VARIANT_NAME = r"^[a-z0-9][a-z0-9_-]*$"
VariantName = Annotated[str, Field(pattern=VARIANT_NAME)]


# Where a model that draws nothing is written, by its network's kind.
_PLACES = {"classifier": "guides", "autoencoder": "autoencoders", "clip": "encoders"}


class ControlsConfig(Section):
    """What DVC has to know of a model with a control: which model is trained before it."""

    of: str = Field(description="the model that is controlled, by its name; as in condition.control.of")


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed = Field(0, description="of the split, the initial weights, the batches and the samples")
    data: DataConfig = DataConfig()
    extractor: ExtractorConfig = ExtractorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    promotion: PromotionConfig = PromotionConfig()
    variants: tuple[str, ...] = Field(("ddpm",), description="the models the pipeline builds")
    guides: tuple[str, ...] = Field((), description="the models that guide them, which the pipeline trains first")
    autoencoders: tuple[str, ...] = Field(
        (), description="the autoencoders that the pipeline trains, and encodes the images with"
    )
    encoders: tuple[str, ...] = Field(
        (), description="the CLIPs that the pipeline trains and measures, and embeds the images with"
    )
    latents: dict[str, str] = Field(
        {},
        description="models of latents that the pipeline builds, each with its autoencoder, such as {small: squeeze}; "
        "not also in `variants`",
    )
    cascades: dict[VariantName, CascadeConfig] = Field(
        {}, description="pairs of models that the pipeline builds as one, such as {glide: {base: a, upsampler: b}}"
    )
    unclips: dict[VariantName, UnclipConfig] = Field(
        {},
        description="models of a CLIP's embeddings with their decoders, that the pipeline builds as one, such as "
        "{dalle: {encoder: a, prior: b, decoder: c, upsampler: d}}",
    )
    controls: dict[VariantName, ControlsConfig] = Field(
        {}, description="models with condition.control, and what each controls, such as {edges: {of: base}}"
    )
    models: dict[VariantName, VariantConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _variants_are_models(self) -> Params:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"`variants` names a model twice: {listed(self.variants)}")
        for name in self.variants:
            if name not in self.models:
                says = "names" if "variants" in self.model_fields_set else "is not written, which means"
                raise ValueError(f"`variants` {says} {brief(name)}, but `models` has only: {listed(self.models)}")
            if key := _PLACES.get(self.models[name].network.kind):
                raise ValueError(
                    f"`variants` names {brief(name)}, of network.kind {self.models[name].network.kind}, which cannot "
                    f"be sampled or exported: write it in `{key}`, or train it with `ddpm train {name}`"
                )
            if self.models[name].codec.latent is not None:
                raise ValueError(
                    f"`variants` names {brief(name)}, which has codec.latent: write it in `latents`, so that its "
                    "autoencoder is trained before it"
                )
        return self

    @model_validator(mode="after")
    def _guides_are_models(self) -> Params:
        if len(set(self.guides)) < len(self.guides):
            raise ValueError(f"`guides` names a model twice: {listed(self.guides)}")
        for name in self.guides:
            if name not in self.models:
                raise ValueError(f"`guides` names {brief(name)}, but `models` has only: {listed(self.models)}")
            for key in ("variants", "autoencoders", "encoders", "latents"):
                if name in getattr(self, key):
                    raise ValueError(f"`guides` names {brief(name)}, which is among `{key}` too: leave it out of one")
        pairs = Counter(f"{variant}-{guide}" for variant in self.variants for guide in self.guides)
        for pair, count in pairs.items():
            if count > 1:  # DVC would have one stage for both, in silence
                raise ValueError(f"two pairs of `variants` and `guides` come to one name, {pair}: rename a model")
        return self

    @model_validator(mode="after")
    def _variants_are_guided_by_guides(self) -> Params:
        """DVC knows only of these that they come first."""
        for variant in self.variants:
            for key, sampling in self._plans_of(variant).items():
                guide = sampling.guide_name
                if sampling.guide is None:
                    continue
                if guide not in self.guides:
                    raise ValueError(
                        f"{key}.guide of {variant}, which `variants` names, is {brief(sampling.guide)}: expected "
                        f"models/NAME of a NAME in `guides`, found there: {listed(self.guides) or 'none'}"
                    )
                self._check_process(variant, str(guide))
        return self

    @model_validator(mode="after")
    def _accessories_are_of_their_kinds(self) -> Params:
        for key, expected in (("autoencoders", "autoencoder"), ("encoders", "clip")):
            names = getattr(self, key)
            for name in names:
                if name not in self.models:
                    raise ValueError(f"`{key}` names {brief(name)}, but `models` has only: {listed(self.models)}")
                if (kind := self.models[name].network.kind) != expected:
                    raise ValueError(f"`{key}` names {brief(name)}, of network.kind {kind}; expected {expected}")
            if len(set(names)) < len(names):
                raise ValueError(f"`{key}` names a model twice: {listed(names)}")
        return self

    @model_validator(mode="after")
    def _latents_are_of_autoencoders(self) -> Params:
        for name, autoencoder in self.latents.items():
            if name not in self.models:
                raise ValueError(f"`latents` names {brief(name)}, but `models` has only: {listed(self.models)}")
            latent = self.models[name].codec.latent
            if latent is None or latent.name != autoencoder:
                found = "none" if latent is None else brief(latent.autoencoder)
                raise ValueError(
                    f"latents.{name} is {brief(autoencoder)}, but models.{name}.codec.latent.autoencoder is {found}; "
                    f"expected models/{autoencoder}"
                )
            if autoencoder not in self.autoencoders:
                raise ValueError(
                    f"latents.{name} is {brief(autoencoder)}: write it in `autoencoders`, so that it is trained first"
                )
            for key, plan in self._plans_of(name).items():
                if plan.guide is not None:
                    raise ValueError(f"{key}.guide must be null: {name}, of `latents`, has no guide in the pipeline")
        return self

    @model_validator(mode="after")
    def _the_judge_is_among_the_encoders(self) -> Params:
        clip = self.evaluation.clip
        if clip is not None and self.evaluation.clip_name not in self.encoders:
            raise ValueError(
                f"evaluation.clip is {brief(clip)}: expected models/NAME of a NAME in `encoders`, found there: "
                f"{listed(self.encoders) or 'none'}"
            )
        for key in ("variants", "latents", "cascades", "unclips"):
            pairs = Counter(f"{name}-{encoder}" for name in getattr(self, key) for encoder in self.encoders)
            for pair, count in pairs.items():
                if count > 1:  # as of guides
                    raise ValueError(f"two pairs of `{key}` and `encoders` come to one name, {pair}: rename a model")
        return self

    def _check_process(self, variant: str, guide: str) -> None:
        """Before anything is trained: a guide is of the same process and draws images of the same size."""
        sides = [self.models[name].codec.side for name in (variant, guide)]
        if sides[0] != sides[1]:
            raise ValueError(
                f"models.{guide} guides models.{variant}, but its codec.side is {brief(sides[1])} and not "
                f"{brief(sides[0])}"
            )
        own, other = self.models[variant].process, self.models[guide].process
        for key in (
            "kind",
            "schedule",
            "timesteps",
            "betas",
            *NUMBERS,
            *(() if self.models[guide].guides_by_gradient else ("prediction",)),
        ):
            if getattr(own, key) != getattr(other, key):
                raise ValueError(
                    f"models.{guide} guides models.{variant}, but its process.{key} is {brief(getattr(other, key))} "
                    f"and not {brief(getattr(own, key))}"
                )

    def _plans_of(self, variant: str) -> dict[str, SamplingConfig]:
        """The plans that a model is exported with and measured by, under their keys."""
        plans = {f"models.{variant}.sampling": self.models[variant].sampling}
        return plans | ({"evaluation.sampling": self.evaluation.sampling} if self.evaluation.sampling else {})

    def guides_of(self, variant: str) -> set[str]:
        """The names of the models that guide a model, by the plan that it is exported with or measured by."""
        return {name for plan in self._plans_of(variant).values() if (name := plan.guide_name) is not None}

    @model_validator(mode="after")
    def _plans_have_no_idle_keys(self) -> Params:
        """Of params.yaml alone: model.json and sampler.json are read whatever their plans say."""
        for name, model in self.models.items():
            bounded = self.data.of_images and model.codec.latent is None and model.codec.embedding is None
            for key, plan in self._plans_of(name).items():
                if unused := plan.unused(bounded=bounded):
                    raise ValueError(f"{key}.{unused}")
        return self

    @model_validator(mode="after")
    def _text_encoders_of_a_clip_are_described_once(self) -> Params:
        """Of params.yaml alone: in model.json they are described."""
        for name, model in self.models.items():
            prompt = model.condition.prompt
            if prompt is None or prompt.of is None:
                continue
            if idle := [key for key in OF_TEXT if getattr(prompt, key) != type(prompt).model_fields[key].default]:
                raise ValueError(
                    f"models.{name}.condition.prompt.{idle[0]} has no effect beside `of`: the text encoder is that of "
                    f"{prompt.of}"
                )
        return self

    @model_validator(mode="after")
    def _models_of_embeddings_are_of_unclips(self) -> Params:
        """DVC knows only of those that their CLIP comes first."""
        links = {f"cascades.{key}": config.links.values() for key, config in self.cascades.items()}
        for key, names in {"variants": self.variants, "guides": self.guides, "latents": self.latents, **links}.items():
            for name in names:
                if name in self.models and (found := self.models[name].encoders):
                    raise ValueError(
                        f"`{key}` names {brief(name)}, with {next(iter(found))}: name it in `unclips`, so that the "
                        f"CLIP is trained before it, or train it with `ddpm train {name}`"
                    )
        return self

    @model_validator(mode="after")
    def _something_is_built(self) -> Params:
        if not self.built:
            raise ValueError(
                "`variants` is empty, and there are no `cascades`, `unclips`, `latents` or `controls`: expected a "
                "model to build"
            )
        for name in self.variants:
            if (side := self.models[name].codec.side) is not None:
                raise ValueError(
                    f"`variants` names {brief(name)}, whose codec.side is {side}; what the pipeline measures has the "
                    "side of the data: name it as the `base` of a cascade"
                )
        return self

    @model_validator(mode="after")
    def _cascades_are_of_models(self) -> Params:
        places = {name: key for key in ("guides", "variants", "latents") for name in getattr(self, key)}
        if both := [name for name in self.cascades if name in self.unclips]:
            raise ValueError(f"{both[0]} is in `cascades` and in `unclips`: rename one")
        for cascade, config in self.composed.items():
            if missing := [name for name in config.encoders if name not in self.encoders]:
                raise ValueError(
                    f"{config.key}.{cascade}.encoder is {brief(missing[0])}: name it in `encoders`, so that it is "
                    "trained first"
                )
            if cascade in self.models:
                raise ValueError(f"{cascade} is the name of a cascade and of a model: rename one")
            own = f"{config.key}.{cascade}"
            for link, name in config.links.items():
                key = f"{own}.{link}"
                if name not in self.models:
                    raise ValueError(f"{key} is {brief(name)}, but `models` has only: {listed(self.models)}")
                if self.models[name].draws_nothing:
                    kind = self.models[name].network.kind
                    raise ValueError(f"{key} is {brief(name)}: network.kind {kind} draws nothing")
                if self.models[name].codec.latent is not None:
                    raise ValueError(f"{key} is {brief(name)}, which has codec.latent")
                if name in places:
                    raise ValueError(
                        f"{key} is {brief(name)}, which is in `{places[name]}` too: the pipeline would train it twice. "
                        "Leave it out of one"
                    )
                places[name] = own
            if self.evaluation.sampling and self.evaluation.sampling.guide:
                raise ValueError(f"evaluation.sampling.guide must be null: the cascade {cascade} has no guide")
            try:
                config.check(self.links(cascade), {name: self.models[name] for name in config.encoders})
            except ValueError as error:
                raise ValueError(f"the cascade {cascade} {error}") from None
        return self

    @model_validator(mode="after")
    def _controls_are_of_models(self) -> Params:
        for name, entry in self.controls.items():
            for key, other in (("", name), (".of", entry.of)):
                if other not in self.models:
                    raise ValueError(
                        f"controls.{name}{key} is {brief(other)}, but `models` has only: {listed(self.models)}"
                    )
            control = self.models[name].condition.control
            if control is None:
                raise ValueError(
                    f"`controls` names {name}, which needs `condition: {{control: {{of: models/{entry.of}}}}}`"
                )
            if control.of not in (entry.of, f"models/{entry.of}"):
                raise ValueError(
                    f"controls.{name}.of is {entry.of}, and models.{name}.condition.control.of {control.of}: the two "
                    "must be the same model"
                )
            if place := next((key for key in ("variants", "guides", "latents") if name in getattr(self, key)), None):
                raise ValueError(f"`controls` names {name}, which is in `{place}` too: leave it out of one")
            if entry.of not in (*self.variants, *self.guides, *self.latents):
                raise ValueError(
                    f"controls.{name}.of is {entry.of}, which the pipeline does not train: name it in `variants`, in "
                    "`latents` if it has codec.latent, or in `guides` if it is not to be measured"
                )
            if self.models[name].sampling.guide is not None:
                raise ValueError(f"`controls` names {name}, whose sampling.guide must be null")
            self._check_controls(name, entry.of)
        for name in (*self.variants, *self.guides, *self.latents):
            control = self.models[name].condition.control
            if control is not None and Path(control.of).name in self.models:
                raise ValueError(
                    f"models.{name} controls {control.of}, which has to be trained before it: name it in `controls`, "
                    f"as {{{name}: {{of: {Path(control.of).name}}}}}"
                )
        return self

    def _check_controls(self, name: str, of: str) -> None:
        """Before anything is trained."""
        try:
            self.models[name].check_controls(self.models[of], f"models.{of}")
        except ValueError as error:
            raise ValueError(f"models.{name}.{error}") from None

    def measured_plan(self, name: str) -> tuple[SamplingConfig, str]:
        """The plan that a model is measured under, and its key. `evaluation.sampling` is for all but the links of a
        cascade whose plans users do not choose."""
        follows = any(
            model == name and link != cascade.leading
            for cascade in self.composed.values()
            for link, model in cascade.links.items()
        )
        if self.evaluation.sampling is None or follows:
            return self.variant(name).sampling, f"models.{name}.sampling"
        return self.evaluation.sampling, "evaluation.sampling"

    @property
    def composed(self) -> dict[str, CompositionConfig]:
        """What draws with several models, by its name."""
        return {**self.cascades, **self.unclips}

    def links(self, name: str) -> dict[str, VariantConfig]:
        """The models of a cascade, by the links' names."""
        return {link: self.models[model] for link, model in self.cascade(name).links.items()}

    @property
    def trained(self) -> tuple[str, ...]:
        """All models that the pipeline trains."""
        links = [name for cascade in self.composed.values() for name in cascade.links.values()]
        first = (*self.guides, *self.autoencoders, *self.encoders)
        return (*self.variants, *first, *self.latents, *links, *self.controls)

    @property
    def built(self) -> tuple[str, ...]:
        """What the pipeline measures, exports and registers: models and cascades. A model comes after the one that it
        controls."""
        return (*self.variants, *self.latents, *self.composed, *self.controls)

    @model_validator(mode="after")
    def _no_model_starts_from_itself(self) -> Params:
        for name, model in self.models.items():
            if model.training.start_from in (name, f"models/{name}"):
                raise ValueError(f"models.{name}.training.start_from names the model itself")
        return self

    @model_validator(mode="after")
    def _the_features_asked_for_are_made(self) -> Params:
        if self.evaluation.features == "inception" and self.extractor.kind != "inception":
            raise ValueError(
                f"evaluation.protocol {self.evaluation.protocol} measures in InceptionV3's features, but "
                f"extractor.kind is {self.extractor.kind}: set it to inception"
            )
        return self

    @property
    def model_name(self) -> str:
        """The registered model's."""
        return f"ddpm-{self.data.dataset_name}"

    def variant(self, name: str) -> VariantConfig:
        """The named model's configuration.

        Raises:
            UserError: there is none; it lists those there are, or says of which models a cascade is composed.
        """
        if name in self.composed:
            links = self.composed[name].links
            raise UserError(
                f"{name} is put together of the models {listed(links.values())} (`{self.composed[name].key}`), which "
                f"are configured and trained one by one; then `ddpm compose {name}` makes it"
            )
        if name not in self.models:
            raise UserError(f"there is no model {name!r} in {PARAMS_FILE}; it has: {listed(self.models)}")
        return self.models[name]

    def planned(self, name: str) -> str:
        """The model whose section `sampling` is the plan that users choose: of a cascade its leading link, else itself.

        Raises:
            UserError: there is no such model or cascade.
        """
        self.check_built(name)
        return self.composed[name].links[self.composed[name].leading] if name in self.composed else name

    def check_built(self, name: str) -> None:
        """
        Raises:
            UserError: there is no such model or cascade.
        """
        if name not in self.composed:
            self.variant(name)

    def cascade(self, name: str) -> CompositionConfig:
        """The named cascade's configuration, or a UserError that lists those there are."""
        if name not in self.composed:
            there = listed(self.composed) or "none"
            raise UserError(
                f"there is no cascade {name!r} among the `cascades` and `unclips` of {PARAMS_FILE}; there are: {there}"
            )
        return self.composed[name]


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing or out of its range; in a stage that
            DVC runs, also if a section that it tracks is not written.
    """
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file here ({Path.cwd()}); run ddpm in the project's folder") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys such as `data:` and `models:`, found {type(raw).__name__}")
    params = validate(Params, raw, str(path))
    if shared := aliases(path):
        print(
            f"warning: {path}: `*{shared[0]}` is a YAML alias. `dvc exp run -S` changes a key in every place that "
            "shares it: write the values out",
            file=sys.stderr,
        )
    if DVC_STAGE in os.environ:
        check_sections(params, path)
    return params


def check_sections(params: Params, path: Path = PARAMS_FILE) -> None:
    """Check that there is every section that a stage of dvc.yaml depends on, and that each model which the pipeline
    trains has all of its own. DVC tracks sections one by one and stops at one that is not written; without DVC they may
    be left out.

    Raises:
        UserError: a section is missing; it names all of them.
    """
    tops = [f"`{key}: {'0' if key == 'seed' else '{}'}`" for key in TRACKED if key not in params.model_fields_set]
    places = {" beside `models`": tops}
    for name in params.trained:
        own = params.models[name].model_fields_set
        places[f" under models.{name}"] = [f"`{key}: {{}}`" for key in VariantConfig.model_fields if key not in own]
    if missing := [f"{', '.join(keys)}{place}" for place, keys in places.items() if keys]:
        raise UserError(f"{path}: DVC needs every section that it tracks: add {'; '.join(missing)}")

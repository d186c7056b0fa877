"""What each command does: it reads its options and calls a stage. A stage's imports wait until its command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.cli.arguments import SAMPLES
from ddpm.errors import UserError, listed
from ddpm.layout import COMPARISON_PAGE, EMBEDDINGS, LATENTS, REPORTS
from ddpm.serve.arguments import chosen_settings

if TYPE_CHECKING:
    from ddpm.config.params import Params
    from ddpm.stages.alike import Alike

Arguments = argparse.Namespace


def _params() -> Params:
    from ddpm.config.params import load_params

    return load_params()


def _given_params(arguments: Arguments) -> Params:
    """Those of the process that started this one, or params.yaml's."""
    from ddpm.config.base import validate
    from ddpm.config.params import Params
    from ddpm.files import read_json

    if arguments.params is None:
        return _params()
    try:
        return validate(Params, read_json(arguments.params), str(arguments.params))
    except ValueError as error:
        raise UserError(f"{arguments.params}: {error}") from None


def run_fetch(arguments: Arguments) -> None:
    from ddpm.stages.fetch import fetch

    fetch(_params(), accept=arguments.accept)


def run_prepare(arguments: Arguments) -> None:
    from ddpm.stages.checks import check_all_plans
    from ddpm.stages.prepare import prepare

    params = _params()
    check_all_plans(params)
    if arguments.skip_bad:
        params = params.model_copy(update={"data": params.data.model_copy(update={"skip_bad": True})})
    manifest = prepare(params)
    counts, shape = manifest.counts, "×".join(map(str, manifest.shape))
    print(f"prepared/: {manifest.name}, {counts.train} + {counts.validation} {manifest.kind} of {shape}")


def run_fit_extractor(arguments: Arguments) -> None:
    from ddpm.stages.checks import check_all_networks
    from ddpm.stages.extractor import fit_extractor

    params = _params()
    check_all_networks(params)
    fit_extractor(params)


def run_train(arguments: Arguments) -> None:
    from ddpm.stages.checks import check_model

    params = _params()
    check_model(params, arguments.variant)
    if arguments.dry_run:
        from ddpm.stages.dry_run import dry_run

        print("\n".join(dry_run(params, arguments.variant)))
        return
    given = _given_params(arguments)
    if given.variant(arguments.variant).reconstructs:
        from ddpm.stages.train_autoencoder import train_autoencoder

        train_autoencoder(given, arguments.variant)
        return
    from ddpm.stages.train import train_variant

    train_variant(given, arguments.variant)


def run_encode(arguments: Arguments) -> None:
    from ddpm.stages.encode import encode

    written = encode(_params(), arguments.variant)
    shape, std = "×".join(map(str, written.shape)), ", ".join(f"{each:.3g}" for each in written.std)
    print(f"{LATENTS / arguments.variant}: {written.count} latents of {shape}; std of each channel {std}")


def run_embed(arguments: Arguments) -> None:
    from ddpm.stages.embed import embed

    written = embed(_params(), arguments.variant)
    print(f"{EMBEDDINGS / arguments.variant}: {written.count} embeddings of {written.dimension} numbers")


def run_compose(arguments: Arguments) -> None:
    from ddpm.stages.compose import compose

    params = _params()
    compose(params, arguments.cascade)
    print(f"models/{arguments.cascade}: {listed(params.cascade(arguments.cascade).links.values())}")


def run_join_controls(arguments: Arguments) -> None:
    from ddpm.conditioning.columns import needed
    from ddpm.stages.join import join_controls

    joined = join_controls(arguments.models, arguments.out)
    hints = ", ".join(f"{column.name}: {column}" for column in needed(joined.columns))
    print(f"{arguments.out}: {hints}")


def run_record_guide(arguments: Arguments) -> None:
    from ddpm.stages.guide import record_guide

    record_guide(_params(), arguments.variant, arguments.guide)


def run_record_judge(arguments: Arguments) -> None:
    from ddpm.stages.guide import record_judge

    record_judge(_params(), arguments.variant, arguments.clip)


def run_evaluate(arguments: Arguments) -> None:
    from ddpm.figures.figure import aligned, rows
    from ddpm.stages.evaluate import evaluate_variant

    measured = evaluate_variant(_given_params(arguments), arguments.variant)
    if measured is not None:
        print(f"{REPORTS / arguments.variant}, protocol {measured.protocol.id}:")
        print(aligned(rows(measured.metrics, measured.protocol.as_dict())))


def run_export(arguments: Arguments) -> None:
    from ddpm.stages.export import export_variant

    export_variant(_params(), arguments.variant)


def run_register(arguments: Arguments) -> None:
    from ddpm import tracking

    _params().check_built(arguments.variant)
    print(tracking.register(arguments.variant))


def run_promote(arguments: Arguments) -> None:
    from ddpm import tracking

    params = _params()
    if (arguments.to is None) != (arguments.reason is None):
        raise UserError("--to VERSION and --reason WHY go together")
    if arguments.model and arguments.to is None:
        raise UserError("--model NAME goes with --to VERSION")
    if arguments.to is None:
        params.check_built(arguments.variant)
        print(tracking.promote(arguments.variant, policy=params.promotion))
    else:
        model = arguments.model or params.model_name
        decision = tracking.promote_by_hand(model, arguments.to, arguments.reason, policy=params.promotion)
        print(f"models:/{model}/{arguments.to} is {decision}")


def run_rollback(arguments: Arguments) -> None:
    from ddpm import tracking

    print(f"{tracking.rollback(arguments.model or _params().model_name, arguments.reason).uri} is champion again")


def run_measure(arguments: Arguments) -> None:
    from ddpm.figures.figure import Reading, headline
    from ddpm.stages.measure import measure_model

    measured = measure_model(_params(), arguments.model, arguments.out)
    figure = headline(measured.metrics)
    found = f"{figure.named(measured.protocol.as_dict())} {Reading.of(measured.metrics, figure.key)}"
    print(f"{arguments.model}: {found} under protocol {measured.protocol.id}")


def run_sample(arguments: Arguments) -> None:
    from ddpm.stages.sample import sample_to

    images = sample_to(
        arguments.model,
        arguments.out,
        count=_count(arguments),
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        sampler=arguments.sampler,
        steps=arguments.steps,
        variance=arguments.variance,
        eta=arguments.eta,
        spacing=arguments.spacing,
        label=arguments.label,
        prompt=arguments.prompt,
        low_noise=arguments.low_noise,
        inpainting=arguments.inpainting,
        resamples=arguments.resamples,
        jump=arguments.jump,
        pictures=_pictures(arguments),
        guidance_scale=arguments.guidance_scale,
        guidance_interval=arguments.guidance_interval,
        control_scale=arguments.control_scale,
        control_interval=arguments.control_interval,
        guess=arguments.guess,
        guide=arguments.guide,
        alike=_alike(arguments),
    )
    print(f"{len(images)} samples of {'×'.join(map(str, images.shape[1:]))} in {arguments.out}")


def _count(arguments: Arguments) -> int:
    """How many images are asked for, where --mix does not say it."""
    if arguments.n is None:
        return SAMPLES
    if arguments.mix not in (None, arguments.n):
        raise UserError(f"--mix {arguments.mix} says how many images are drawn: leave --n {arguments.n} out")
    if arguments.mix is None and arguments.change_from is not None and arguments.n != 1:
        raise UserError(f"--from and --to draw one image, or as many as --mix says: leave --n {arguments.n} out")
    return arguments.n


def _alike(arguments: Arguments) -> Alike | None:
    """What the images are to be like; None: --like is not given."""
    from ddpm.stages.alike import Alike

    texts = (arguments.change_from, arguments.change_to)
    others = {"mix": arguments.mix, "from": texts[0], "to": texts[1], "strength": arguments.strength}
    if not arguments.like:
        if given := [name for name, value in others.items() if value is not None]:
            raise UserError(f"--{given[0]} needs --like FILE, the picture that it is about")
        return None
    if (texts[0] is None) != (texts[1] is None):
        raise UserError("--from and --to go together: what the picture shows, and what it is to become")
    if arguments.strength is not None and texts[0] is None:
        raise UserError("--strength is how far --from and --to change the picture; leave it out")
    return Alike(tuple(arguments.like), arguments.mix, None if texts[0] is None else texts, arguments.strength)


def _pictures(arguments: Arguments) -> dict[str, Path | None]:
    """The files of the columns of pictures, by the columns' names."""
    from ddpm.conditioning.columns import PICTURE_NAMES
    from ddpm.conditioning.hints import NAMES

    hints = arguments.control or []
    if len(hints) > len(NAMES):
        raise UserError(f"--control: a model has at most {len(NAMES)} controls, found {len(hints)} hints")
    found = {name: getattr(arguments, name) for name in PICTURE_NAMES if name not in NAMES}
    return found | dict(zip(NAMES, hints, strict=False))


def run_compare(arguments: Arguments) -> None:
    from ddpm.stages.compare import compare

    compared = compare(
        _params(),
        arguments.models,
        arguments.out,
        steps=arguments.steps,
        sampler=arguments.sampler,
        samples=arguments.samples,
        guidance_scales=arguments.guidance_scale,
        rank=arguments.rank,
    )
    print(f"drawn with seed {compared.conditions['seed']}, which evaluate and tune-guidance do not use")
    print(f"{', '.join(model.name for model in compared.models)}: {arguments.out / COMPARISON_PAGE}")


def run_tune_guidance(arguments: Arguments) -> None:
    from ddpm.stages.tune_guidance import tune_guidance

    given = {name: getattr(arguments, name) for name in ("scales", "intervals", "samples")}
    chosen = {name: value for name, value in given.items() if value is not None}
    tuned = tune_guidance(_params(), arguments.variant, **chosen)
    print("\n".join(tuned.lines(arguments.variant)))


def run_tune_ema(arguments: Arguments) -> None:
    from ddpm.stages.tune_ema import tune_ema

    given = {name: getattr(arguments, name) for name in ("lengths", "samples", "out")}
    tuned = tune_ema(
        _params(), arguments.variant, **{name: value for name, value in given.items() if value is not None}
    )
    print("\n".join(tuned.lines(arguments.variant)))
    if arguments.out is not None:
        print(f"length {tuned.best:g}: {arguments.out}")


def run_serve(arguments: Arguments) -> None:
    from ddpm.serve.server import serve

    serve(arguments.model, arguments.host, arguments.port, chosen_settings(arguments))


def run_import(arguments: Arguments) -> None:
    from dataclasses import fields

    if arguments.base is not None:
        from ddpm.stages.import_control import import_control

        print(import_control(arguments.source, arguments.out, base=arguments.base, hint=arguments.hint))
        return
    from ddpm.interop.published import Flags
    from ddpm.stages.interop import class_names, import_model

    flags = Flags(**{field.name: getattr(arguments, field.name) for field in fields(Flags)})
    classes = None if arguments.classes is None else class_names(arguments.classes)
    named = {"data_name": arguments.data_name, "classes": classes}
    if arguments.dry_run:
        from ddpm.stages.import_dry_run import import_dry_run

        print("\n".join(import_dry_run(arguments.source, arguments.out, flags, **named)))
        return
    print(import_model(arguments.source, arguments.out, flags, **named))


def run_export_diffusers(arguments: Arguments) -> None:
    from ddpm.stages.interop import export_diffusers

    name = export_diffusers(arguments.model, arguments.out)
    print(f"{arguments.out}: for {name}.from_pretrained")


def run_init(arguments: Arguments) -> None:
    from ddpm.stages.init import initialise

    print(initialise(arguments.directory, arguments.images, size=arguments.size, channels=arguments.channels))


def run_completion(arguments: Arguments) -> None:
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion needs the package shtab: pip install 'ddpm[pipeline]'") from None

    print(shtab.complete(arguments.parser, arguments.shell))


def run_status(arguments: Arguments) -> None:
    import json

    from ddpm.stages.status import lines, status

    found = status(_params())
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines(found)))


def run_config(arguments: Arguments) -> None:
    from ddpm.cli.explain import explain

    print(explain(_params(), arguments.variant, changed=arguments.changed))

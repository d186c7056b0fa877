"""Fetch, prepare, fit the extractor; then for each model or cascade train, evaluate, export, register and promote.

`python -m flows.retrain` runs it here and now, with a server of Prefect's own for as long as it takes, or on the
server that PREFECT_API_URL names; the deployment in prefect.yaml runs it every week.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, Failed, State

from ddpm.config.cascade import Stages
from ddpm.config.params import Params, load_params
from ddpm.errors import UpstreamError, UserError
from ddpm.stages.guide import JUDGED
from ddpm.tracking import Registration
from flows import dvc, report, tasks
from flows.pipeline import shared_state, start_own_server
from flows.report import Result


@flow
def retrain(variants: list[str] | None = None, accept_new_data: bool = False) -> State:
    """Bring the models up to date with the data, the code and params.yaml; do nothing where nothing has changed.

    Args:
        variants: models and cascades named in params.yaml; default: those under its keys `variants`, `latents`,
            `cascades`, `unclips` and `controls`.
        accept_new_data: record what the upstream has now as the data's new version.
    """
    try:
        names, params = _names(variants), load_params()
    except UserError as error:
        return Failed(message=str(error))
    with shared_state():
        known = [tasks.registered.submit(name) for name in names]
        fetched = tasks.fetch.submit(accept_new_data)
        fetched.wait()
        if fetched.state.is_completed() and not _has_changed(params, names):
            versions = [future.result(raise_on_failure=False) for future in known]
            if all(isinstance(version, Registration) and version.reason for version in versions):
                return _nothing_to_do([Result.read(*pair) for pair in zip(names, versions, strict=True)])

        prepared = tasks.prepare.submit(wait_for=[fetched])
        extractor = tasks.fit_extractor.submit(wait_for=[prepared])
        guiding = [tasks.train_guide.submit(guide, wait_for=[extractor]) for guide in params.guides]
        encoded = {name: _encoded(name, extractor) for name in params.autoencoders}
        bases = _bases(params, names, extractor, encoded) | dict(zip(params.guides, guiding, strict=True))
        embedded = {name: _embedded(name, extractor) for name in params.encoders}
        first = itertools.chain(*encoded.values(), *embedded.values())
        steps, promoted = [fetched, prepared, extractor, *guiding, *first], {}
        for name in names:
            evaluate, export = _last_stages(params, name)
            if name in params.composed:
                config = params.composed[name]
                wanted = [extractor, *itertools.chain(*(embedded[encoder] for encoder in config.encoders))]
                trained = _cascade(name, config.stages, wanted)
            elif name in params.latents:
                wanted = encoded[params.latents[name]]
                trained = [bases[name] if name in bases else tasks.train_latent.submit(name, wait_for=wanted)]
            elif name in params.controls:
                base = bases[params.controls[name].of]
                trained = [base, tasks.train.submit(name, "train-control", wait_for=[base])]
            elif name in bases:
                trained = _model(name, params.guides, bases[name], guiding)
            else:
                trained = _model(name, params.guides, tasks.train.submit(name, wait_for=[extractor]), guiding)
            if stage := next((stage for stage, key in JUDGED.items() if name in getattr(params, key)), None):
                trained = [*trained, *_judged(name, stage, trained, embedded)]
            evaluated = tasks.evaluate.submit(name, evaluate, wait_for=trained)
            exported = tasks.export.submit(name, export, wait_for=[evaluated])
            version = tasks.register.submit(name, wait_for=[exported])
            comparable = tasks.measure_champion.submit(name, wait_for=[version])
            promoted[name] = tasks.promote.submit(name, comparable)
            steps += [*trained, evaluated, exported, version, comparable, promoted[name]]
        wait([*steps, *known])
        done = {name: future.result() for name, future in promoted.items() if future.state.is_completed()}
        return _outcome(steps, [Result.read(name, version) for name, version in done.items()])


def _last_stages(params: Params, name: str) -> tuple[str, str]:
    """The stages that measure and export what the pipeline builds."""
    if name in params.composed:
        stages = params.composed[name].stages
        return stages.evaluate, stages.export
    kind = "-latent" if name in params.latents else "-control" if name in params.controls else ""
    return f"evaluate{kind}", f"export{kind}"


def _bases(
    params: Params,
    names: Sequence[str],
    extractor: PrefectFuture[Any],
    encoded: Mapping[str, Sequence[PrefectFuture[Any]]],
) -> dict[str, PrefectFuture[Any]]:
    """The trainings of the models that others among the names control, which are there before these.

    Args:
        encoded: what comes before the models of each autoencoder's latents.
    """
    wanted = dict.fromkeys(params.controls[name].of for name in names if name in params.controls)
    pixels = {of: tasks.train.submit(of, wait_for=[extractor]) for of in wanted if of in params.variants}
    latents = {
        of: tasks.train_latent.submit(of, wait_for=encoded[params.latents[of]]) for of in wanted if of in params.latents
    }
    return pixels | latents


def _model(
    name: str, guides: Sequence[str], trained: PrefectFuture[Any], guiding: Sequence[PrefectFuture[Any]]
) -> list[PrefectFuture[Any]]:
    """The training of a model, and the records of what guides it."""
    return [trained, *(tasks.record_guide.submit(name, guide, wait_for=[trained, *guiding]) for guide in guides)]


def _encoded(name: str, extractor: PrefectFuture[Any]) -> list[PrefectFuture[Any]]:
    """The training of an autoencoder, its figures, and the latents of the images."""
    trained = tasks.train_autoencoder.submit(name, wait_for=[extractor])
    evaluated = tasks.evaluate.submit(name, "evaluate-autoencoder", wait_for=[trained])
    return [trained, evaluated, tasks.encode.submit(name, wait_for=[trained])]


def _embedded(name: str, extractor: PrefectFuture[Any]) -> list[PrefectFuture[Any]]:
    """The training of a CLIP, its figures, and the embeddings of the images."""
    trained = tasks.train_encoder.submit(name, wait_for=[extractor])
    evaluated = tasks.evaluate.submit(name, "evaluate-encoder", wait_for=[trained])
    return [trained, evaluated, tasks.embed.submit(name, wait_for=[trained])]


def _judged(
    name: str, stage: str, trained: Sequence[PrefectFuture[Any]], embedded: Mapping[str, Sequence[PrefectFuture[Any]]]
) -> list[PrefectFuture[Any]]:
    """The records of what measures a model, after its training and those of the CLIPs."""
    return [
        tasks.record_judge.submit(name, clip, stage, wait_for=[*trained, *steps]) for clip, steps in embedded.items()
    ]


def _cascade(name: str, stages: Stages, wanted: Sequence[PrefectFuture[Any]]) -> list[PrefectFuture[Any]]:
    """The trainings of a cascade's links, and their composition.

    Args:
        wanted: what comes before them.
    """
    links = [tasks.train_link.submit(name, link, stage, wait_for=wanted) for link, stage in stages.trainings.items()]
    return [*links, tasks.compose.submit(name, stages.compose, wait_for=links)]


def _names(variants: Sequence[str] | None) -> list[str]:
    params = load_params()
    names = list(variants or params.built)
    for name in names:
        params.check_built(name)
        if name not in params.built:
            raise UserError(
                f"{name} is not among the `variants`, `latents`, `cascades` or `unclips` of params.yaml, which are "
                "what dvc.yaml has stages for"
            )
    return names


def _has_changed(params: Params, names: Sequence[str]) -> bool:
    """Whether DVC would run a stage that these models come of, or cannot tell."""
    variants = [name for name in names if name in params.variants]
    controls = [name for name in names if name in params.controls]
    cascades = [params.composed[name].stages.of(name) for name in names if name in params.composed]
    latents = [name for name in names if name in params.latents]
    own = {f"{stage}@{name}" for stage in ("train", "evaluate", "export") for name in variants}
    own |= {f"train-guide@{guide}" for guide in params.guides}
    own |= {f"guide@{variant}-{guide}" for variant in variants for guide in params.guides}
    own |= {*itertools.chain(*cascades)}
    own |= {f"{stage}-latent@{name}" for stage in ("train", "evaluate", "export") for name in latents}
    of_autoencoder = ("train-autoencoder", "evaluate-autoencoder", "encode")
    own |= {f"{stage}@{name}" for stage in of_autoencoder for name in params.autoencoders}
    of_encoder = ("train-encoder", "evaluate-encoder", "embed")
    own |= {f"{stage}@{name}" for stage in of_encoder for name in params.encoders}
    own |= {
        f"{stage}@{name}-{clip}"
        for stage, key in JUDGED.items()
        for name in names
        if name in getattr(params, key)
        for clip in params.encoders
    }
    own |= {f"{stage}-control@{name}" for stage in ("train", "evaluate", "export") for name in controls}
    bases = {params.controls[name].of for name in controls}
    own |= {f"train-latent@{base}" if base in params.latents else f"train@{base}" for base in bases}
    try:
        return bool(dvc.changed_stages() & {"prepare", "fit-extractor", *own})
    except RuntimeError as error:  # such as somebody else's `dvc repro` under way
        get_run_logger().warning("whether anything has changed is left to each stage: %s", error)
        return True


def _nothing_to_do(results: list[Result]) -> State:
    message = f"Nothing has changed since {', '.join(result.registration.uri for result in results)}"
    get_run_logger().info("%s: nothing to do", message)
    return Completed(message=message, data=results)


def _outcome(steps: list[PrefectFuture[Any]], results: list[Result]) -> State:
    """Publish what there is to see, and say what failed."""
    if results:
        report.publish(results)
    if failures := [step.state.message or "" for step in steps if step.state.is_failed() or step.state.is_crashed()]:
        return Failed(message="; ".join(failures))
    return Completed(message="; ".join(map(str, results)), data=results)


# --- The command line -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.description)
    parser.add_argument("--variants", nargs="+", metavar="V", help="models of params.yaml (default: its variants)")
    parser.add_argument("--accept-new-data", action="store_true", help="record the upstream's data as a new version")
    options = parser.parse_args(arguments)
    try:
        start_own_server()
        state = retrain(options.variants, options.accept_new_data, return_state=True)
    except (UserError, UpstreamError) as error:
        print(f"retrain: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped; the same command continues where it was.", file=sys.stderr)
        return 130
    if not state.is_completed():
        print(f"\n{state.message}", file=sys.stderr)
        return 1
    results = state.result()
    print(f"\n{report.text(results)}\n\n{report.pages(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

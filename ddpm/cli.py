"""The command line: one command a pipeline stage, thin. `ddpm --help` is the manual."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ddpm import __version__
from ddpm.arguments import (
    a_path,
    add_compare,
    add_completion,
    add_export_diffusers,
    add_import,
    add_init,
    add_measure,
    add_promotion,
    add_sample,
)
from ddpm.errors import DdpmWarning, Interrupted, UpstreamError, UserError, ran_out
from ddpm.files import meant
from ddpm.layout import COMPARISON_PAGE
from ddpm.serve.arguments import add_arguments as add_serve
from ddpm.serve.arguments import chosen_settings

if TYPE_CHECKING:
    from ddpm.config import Params

Arguments = argparse.Namespace

MANUAL = """\
Turn a folder of images into a measured, registered and deployed diffusion model.

The stages, in the order in which they run (V is a model named in params.yaml):

  ddpm fetch              the raw bytes, checked against data.dvc          → data/
  ddpm prepare            one array, a split, a manifest                   → prepared/
  ddpm fit-extractor      the features that FID and IS are computed in     → extractor/
  ddpm train V            continues by itself if it was interrupted        → models/V/
  ddpm evaluate V         figures with their protocol, and pictures        → reports/V/
  ddpm export V           ONNX, held against the trained model             → deploy/V/
  ddpm register V         a version in the MLflow registry                 → models:/ddpm-<data>
  ddpm promote V          champion, if it beats the one there is

`dvc repro` runs what has to run up to export; `python -m flows.retrain` runs all of it under Prefect.

Beside the stages:

  ddpm train V --dry-run                  parameters, operations, memory and time, by a short trial
  ddpm sample MODEL --n 64 --out FILE     images: .png, .npz or a directory
  ddpm compare A B …                      models side by side, as one page    → comparison/
  ddpm measure MODEL --out FILE           figures of an exported or registered model, as of today's data
  ddpm promote --to VERSION --reason WHY  champion by hand
  ddpm rollback --reason WHY              champion is again who was before
  ddpm status                             stages, versions, champion, unfinished trainings, disk use
  ddpm serve MODEL                        images over HTTP, and a page to look at them
  ddpm import SOURCE --out models/V       a published checkpoint as a model directory
  ddpm export-diffusers MODEL OUT         a model directory as diffusers' DDPMPipeline reads it
  ddpm init DIR --images PATH             a params.yaml for your images; the stages then run in DIR
  ddpm config [V] [--changed]             params.yaml with its defaults: the meaning and the values of each key
  ddpm completion bash|zsh                completion of commands and options in your shell

Exit codes: 0 done; 2 wrong input, said in one line; 75 something outside failed, try again; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    # torch's threads wait for each other thousands of times a step, by default spinning. Beside any other busy process
    # that starves them: training fell from 20 steps a second to below 1. To be set before torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if argv is None:
        _use_utf_8()
    _tolerate_a_narrow_encoding()
    arguments = _parser().parse_args(argv)
    _print_warnings(arguments.command)
    try:
        arguments.run(arguments)
    except (UserError, UpstreamError, Interrupted) as error:
        print(f"ddpm {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"ddpm {arguments.command}: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if ran_out(error):
            return _out_of_memory(arguments.command)
        if error.filename is None:
            raise
        print(f"ddpm {arguments.command}: {meant(error.filename)}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ddpm"):
            raise
        print(f"ddpm {arguments.command}: needs the package {error.name!r}: {_install_hint()}", file=sys.stderr)
        return UserError.exit_code
    except Exception as error:
        if not ran_out(error):
            raise
        return _out_of_memory(arguments.command)
    return 0


def _out_of_memory(command: str) -> int:
    print(f"ddpm {command}: out of memory; ask for less at once", file=sys.stderr)
    return UserError.exit_code


def _use_utf_8() -> None:
    """Start anew in Python's UTF-8 mode, where the locale has another encoding: names of files and text that DVC and
    others write are UTF-8 whatever the locale is. What is printed keeps the locale's encoding.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "ddpm", *sys.argv[1:]])


def _print_warnings(command: str) -> None:
    """Have the project's own warnings printed as errors are: in one line, without the code."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DdpmWarning):
            print(f"ddpm {command}: warning: {message}", file=sys.stderr)
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show


def _install_hint() -> str:
    return (
        "install ddpm[train] for the stages, ddpm[serve] for an exported model, "
        "ddpm[pipeline] for DVC, MLflow and Prefect"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm", description=MANUAL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ddpm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, run: Callable[[Arguments], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    def for_variant(name: str, run: Callable[[Arguments], None], text: str) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("variant", metavar="V", help="a model named in params.yaml")
        return sub

    fetch = command("fetch", _fetch, "bring the raw bytes into data/ and check them against data.dvc")
    fetch.add_argument("--accept", action="store_true", help="record what was found as the data's new version")
    prepare = command("prepare", _prepare, "make one array, a split and a manifest of data/")
    prepare.add_argument(
        "--skip-bad", action="store_true", help="as data.skip_bad: leave bad files out and list them in the manifest"
    )
    command("fit-extractor", _fit_extractor, "make the features that FID and IS are computed in")
    train = for_variant("train", _train, "train a model, or continue where an interrupted run stopped")
    train.add_argument(
        "--dry-run", action="store_true", help="tell parameters, operations, memory and time, and write nothing"
    )
    evaluate = for_variant("evaluate", _evaluate, "measure a model and draw its pictures")
    for shared in (train, evaluate):
        # By which one process hands its parameters to those that it starts.
        shared.add_argument("--params", type=a_path, help=argparse.SUPPRESS)
    for_variant("export", _export, "export a model to ONNX and hold it against the trained one")
    for_variant("register", _register, "register a model's export, with its figures, in MLflow")
    promote = command("promote", _promote, "make a version of a model champion, if it beats the one there is")
    rollback = command("rollback", _rollback, "make the version champion that was it before")
    add_promotion(promote, rollback)
    add_measure(command("measure", _measure, "measure an exported model as `evaluate` would, with the data of today"))
    add_init(command("init", _init, "write a short params.yaml for a folder of images, with a network that fits"))
    add_completion(command("completion", _completion, "print a script that completes ddpm's commands in your shell"))
    state = command("status", _status, "tell which stages are up to date, what is registered, and disk use")
    state.add_argument("--json", action="store_true", help="as JSON")
    config = command("config", _config, "print params.yaml with its defaults: the meaning and the values of each key")
    config.add_argument("variant", metavar="V", nargs="?", help="show this model of params.yaml alone")
    config.add_argument("--changed", action="store_true", help="show only what differs from the defaults")

    add_sample(command("sample", _sample, "draw images from a model"))
    add_compare(command("compare", _compare, "hold models side by side: pictures, figures and curves as one page"))
    add_serve(command("serve", _serve, "draw images over HTTP from an exported model"))
    add_import(command("import", _import, "make a model directory of a published checkpoint"))
    add_export_diffusers(command("export-diffusers", _export_diffusers, "write a model for diffusers' DDPMPipeline"))
    return parser


def _tolerate_a_narrow_encoding() -> None:
    """Print `?` for what stdout's encoding lacks: under latin-1 the arrows of the help would end in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _params() -> Params:
    from ddpm.config import load_params

    return load_params()


def _given_params(arguments: Arguments) -> Params:
    """Those of the process that started this one, or params.yaml's."""
    from ddpm.config import Params, validate
    from ddpm.files import read_json

    if arguments.params is None:
        return _params()
    try:
        return validate(Params, read_json(arguments.params), str(arguments.params))
    except ValueError as error:
        raise UserError(f"{arguments.params}: {error}") from None


def _fetch(arguments: Arguments) -> None:
    from ddpm.stages.fetch import fetch

    fetch(_params(), accept=arguments.accept)


def _prepare(arguments: Arguments) -> None:
    from ddpm.stages.checks import check_settings
    from ddpm.stages.prepare import prepare

    params = _params()
    check_settings(params)
    if arguments.skip_bad:
        params = params.model_copy(update={"data": params.data.model_copy(update={"skip_bad": True})})
    manifest = prepare(params)
    counts, shape = manifest.counts, "×".join(map(str, manifest.shape))
    print(f"prepared/: {manifest.name}, {counts.train} + {counts.validation} {manifest.kind} of {shape}")


def _fit_extractor(arguments: Arguments) -> None:
    from ddpm.stages.extractor import fit_extractor

    fit_extractor(_params())


def _train(arguments: Arguments) -> None:
    from ddpm.stages.checks import check_model

    params = _params()
    check_model(params, arguments.variant)
    if arguments.dry_run:
        from ddpm.stages.dry_run import dry_run

        print("\n".join(dry_run(params, arguments.variant)))
        return
    from ddpm.stages.train import train_variant

    train_variant(_given_params(arguments), arguments.variant)


def _evaluate(arguments: Arguments) -> None:
    from ddpm.stages.evaluate import evaluate_variant

    evaluate_variant(_given_params(arguments), arguments.variant)


def _export(arguments: Arguments) -> None:
    from ddpm.stages.export import export_variant

    export_variant(_params(), arguments.variant)


def _register(arguments: Arguments) -> None:
    from ddpm import tracking

    _params().variant(arguments.variant)
    print(tracking.register(arguments.variant))


def _promote(arguments: Arguments) -> None:
    from ddpm import tracking

    params = _params()
    if (arguments.to is None) != (arguments.reason is None):
        raise UserError("--to VERSION and --reason WHY go together")
    if arguments.model and arguments.to is None:
        raise UserError("--model NAME goes with --to VERSION")
    if arguments.to is None:
        params.variant(arguments.variant)
        print(tracking.promote(arguments.variant, policy=params.promotion))
    else:
        model = arguments.model or params.model_name
        decision = tracking.promote_by_hand(model, arguments.to, arguments.reason, policy=params.promotion)
        print(f"models:/{model}/{arguments.to} is {decision}")


def _rollback(arguments: Arguments) -> None:
    from ddpm import tracking

    print(f"{tracking.rollback(arguments.model or _params().model_name, arguments.reason).uri} is champion again")


def _measure(arguments: Arguments) -> None:
    from ddpm.figures import Reading, headline
    from ddpm.stages.deployed import measure_model

    measured = measure_model(_params(), arguments.model, arguments.out)
    figure = headline(measured.metrics)
    found = f"{figure.named(measured.protocol.as_dict())} {Reading.of(measured.metrics, figure.key)}"
    print(f"{arguments.model}: {found} under protocol {measured.protocol.id}")


def _sample(arguments: Arguments) -> None:
    from ddpm.stages.sample import sample_to

    images = sample_to(
        arguments.model,
        arguments.out,
        count=arguments.n,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        sampler=arguments.sampler,
        steps=arguments.steps,
        variance=arguments.variance,
        eta=arguments.eta,
    )
    print(f"{len(images)} samples of {'×'.join(map(str, images.shape[1:]))} in {arguments.out}")


def _compare(arguments: Arguments) -> None:
    from ddpm.stages.compare import compare

    compared = compare(
        _params(),
        arguments.models,
        arguments.out,
        steps=arguments.steps,
        sampler=arguments.sampler,
        samples=arguments.samples,
        rank=arguments.rank,
    )
    print(f"{', '.join(model.name for model in compared.models)}: {arguments.out / COMPARISON_PAGE}")


def _serve(arguments: Arguments) -> None:
    from ddpm.serve.server import serve

    serve(arguments.model, arguments.host, arguments.port, chosen_settings(arguments))


def _import(arguments: Arguments) -> None:
    from dataclasses import fields

    from ddpm.interop.published import Flags
    from ddpm.stages.interop import import_model

    flags = Flags(**{field.name: getattr(arguments, field.name) for field in fields(Flags)})
    print(import_model(arguments.source, arguments.out, flags, data_name=arguments.data_name))


def _export_diffusers(arguments: Arguments) -> None:
    from ddpm.stages.interop import export_diffusers

    export_diffusers(arguments.model, arguments.out)
    print(f"{arguments.out}: for DDPMPipeline.from_pretrained")


def _init(arguments: Arguments) -> None:
    from ddpm.stages.init import initialise

    print(initialise(arguments.directory, arguments.images, size=arguments.size, channels=arguments.channels))


def _completion(arguments: Arguments) -> None:
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion needs the package shtab: pip install 'ddpm[pipeline]'") from None

    print(shtab.complete(_parser(), arguments.shell))


def _status(arguments: Arguments) -> None:
    import json

    from ddpm.stages.status import lines, status

    found = status(_params())
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines(found)))


def _config(arguments: Arguments) -> None:
    from ddpm.explain import explain

    print(explain(_params(), arguments.variant, changed=arguments.changed))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: one command a pipeline stage, thin. `ddpm --help` is the manual."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ddpm.cli import commands
from ddpm.cli.arguments import (
    a_path,
    add_compare,
    add_completion,
    add_export_diffusers,
    add_import,
    add_init,
    add_measure,
    add_promotion,
    add_sample,
    add_tune_ema,
    add_tune_guidance,
)
from ddpm.errors import DdpmWarning, Interrupted, UpstreamError, UserError, ran_out
from ddpm.files import meant
from ddpm.serve.arguments import add_arguments as add_serve
from ddpm.version import __version__

MANUAL = """\
Turn a folder of images into a measured, registered and deployed diffusion model.

The stages, in the order in which they run (V is a model named in params.yaml):

  ddpm fetch              the original files, checked against data.dvc     → data/
  ddpm prepare            one array, a split, a manifest                   → prepared/
  ddpm fit-extractor      the feature network for FID and IS               → extractor/
  ddpm train V            continues by itself if it was interrupted        → models/V/
  ddpm record-guide V G   for DVC: the hash of a model that guides V       → models/V/guides/
  ddpm encode A           the latents of the prepared images by A          → latents/A/
  ddpm embed A            the embeddings of the prepared images by A       → embeddings/A/
  ddpm record-judge V C   for DVC: the hash of a CLIP that measures V      → models/V/judges/
  ddpm compose NAME       the models of a cascade as one                   → models/NAME/
  ddpm evaluate V         metrics with their protocol, and pictures        → reports/V/
  ddpm export V           ONNX, checked against the trained model          → deploy/V/
  ddpm register V         a version in the MLflow registry                 → models:/ddpm-<data>
  ddpm promote V          champion, if it is better than the current one

`dvc repro` runs the stages that are out of date, up to export; `python -m flows.retrain` runs all of it under Prefect.

Other commands:

  ddpm train V --dry-run                  parameters, memory, and the time of training and evaluation, from a trial
  ddpm sample MODEL --n 64 --out FILE     images: .png, .npz or a directory
  ddpm compare A B …                      models side by side, on one page    → comparison/
  ddpm tune-guidance V                    the guidance scale and interval with the best FID
  ddpm tune-ema V                         the length of the weights' average with the best FID, after training
  ddpm measure MODEL --out FILE           metrics of an exported or registered model on today's data
  ddpm promote --to VERSION --reason WHY  make a version champion by hand
  ddpm rollback --reason WHY              go back to the previous champion
  ddpm status                             stages, versions, champion, unfinished trainings, disk usage
  ddpm serve MODEL                        images over HTTP, and a web page
  ddpm join-controls OUT A B              the controls of several models in one, which takes all their hints
  ddpm import SOURCE --out models/V       a published checkpoint as a model directory
  ddpm export-diffusers MODEL OUT         a model directory in the format of diffusers' DDPMPipeline
  ddpm init DIR --images PATH             a params.yaml for your images; the stages then run in DIR
  ddpm config [V] [--changed]             params.yaml with its defaults, and the meaning and values of each key
  ddpm completion bash|zsh                completion of commands and options in your shell

Exit codes: 0 success; 2 invalid input, explained in one line; 75 an external failure, try again; 130 interrupted.
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
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=getattr(commands, f"run_{name.replace('-', '_')}"))
        return sub

    def for_variant(name: str, text: str) -> argparse.ArgumentParser:
        sub = command(name, text)
        sub.add_argument("variant", metavar="V", help="a model named in params.yaml")
        return sub

    fetch = command("fetch", "get the original files into data/ and check them against data.dvc")
    fetch.add_argument("--accept", action="store_true", help="record the files found as the new version of the data")
    prepare = command("prepare", "make one array, a split and a manifest of data/")
    prepare.add_argument(
        "--skip-bad", action="store_true", help="leave bad files out and list them in the manifest, like data.skip_bad"
    )
    command("fit-extractor", "make the feature network for FID and IS")
    train = for_variant("train", "train a model, or continue where an interrupted run stopped")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, operations, memory, and the time of training and evaluation, from a trial of "
        "seconds; write nothing",
    )
    for_variant("encode", "make the latents of the prepared images by a trained autoencoder, for models of them")
    for_variant("embed", "make the embeddings of the prepared images by a trained CLIP")
    compose = command("compose", "put the trained models of a cascade together, as a model that draws with all of them")
    compose.add_argument("cascade", metavar="NAME", help="a cascade named in params.yaml")
    join = command("join-controls", "put the controls of several models of one base into one model")
    join.add_argument("out", type=a_path, metavar="OUT", help="the model directory to make, such as models/both")
    join.add_argument("models", nargs="+", metavar="MODEL", help="two or three models with a control, such as models/V")
    record = for_variant("record-guide", "write down the hash of a model's guide, which DVC depends on")
    record.add_argument("guide", metavar="GUIDE", help="a model named under `guides` in params.yaml")
    judge = for_variant("record-judge", "write down the hash of the CLIP that measures a model, which DVC depends on")
    judge.add_argument("clip", metavar="CLIP", help="a model named under `encoders` in params.yaml")
    evaluate = for_variant("evaluate", "measure a model and draw its pictures")
    for shared in (train, evaluate):
        # By which one process hands its parameters to those that it starts.
        shared.add_argument("--params", type=a_path, help=argparse.SUPPRESS)
    for_variant("export", "export a model to ONNX and check it against the trained one")
    for_variant("register", "register a model's export, with its metrics, in MLflow")
    promote = command("promote", "make a version of a model champion, if it is better than the current champion")
    rollback = command("rollback", "make the previous champion the champion again")
    add_promotion(promote, rollback)
    add_measure(command("measure", "measure an exported model on today's data, as `evaluate` does"))
    add_init(command("init", "write a short params.yaml for a folder of images, with a network that fits"))
    completion = command("completion", "print a script that completes ddpm's commands in your shell")
    add_completion(completion)
    completion.set_defaults(parser=parser)
    state = command("status", "show which stages are up to date, what is registered, and disk usage")
    state.add_argument("--json", action="store_true", help="as JSON")
    config = command("config", "print params.yaml with its defaults, and the meaning and values of each key")
    config.add_argument("variant", metavar="V", nargs="?", help="show only this model of params.yaml")
    config.add_argument("--changed", action="store_true", help="show only what differs from the defaults")

    add_sample(command("sample", "draw images from a model"))
    add_compare(command("compare", "compare models side by side: pictures, metrics and curves on one page"))
    add_tune_guidance(for_variant("tune-guidance", "search the guidance scale and interval of a conditional model"))
    add_tune_ema(for_variant("tune-ema", "search the length of the average of the weights, after the training"))
    add_serve(command("serve", "draw images over HTTP from an exported model"))
    add_import(command("import", "convert a published checkpoint to a model directory"))
    add_export_diffusers(command("export-diffusers", "write a model for diffusers' DDPMPipeline"))
    return parser


def _tolerate_a_narrow_encoding() -> None:
    """Print `?` for what stdout's encoding lacks: under latin-1 the arrows of the help would end in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")

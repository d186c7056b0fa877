"""The command line: one command a pipeline stage, thin. `ddpm --help` is the manual."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.cli import commands
from ddpm.cli.arguments import (
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
from ddpm.serve.arguments import add_arguments as add_serve
from ddpm.version import __version__

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
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=getattr(commands, f"run_{name.replace('-', '_')}"))
        return sub

    def for_variant(name: str, text: str) -> argparse.ArgumentParser:
        sub = command(name, text)
        sub.add_argument("variant", metavar="V", help="a model named in params.yaml")
        return sub

    fetch = command("fetch", "bring the raw bytes into data/ and check them against data.dvc")
    fetch.add_argument("--accept", action="store_true", help="record what was found as the data's new version")
    prepare = command("prepare", "make one array, a split and a manifest of data/")
    prepare.add_argument(
        "--skip-bad", action="store_true", help="as data.skip_bad: leave bad files out and list them in the manifest"
    )
    command("fit-extractor", "make the features that FID and IS are computed in")
    train = for_variant("train", "train a model, or continue where an interrupted run stopped")
    train.add_argument(
        "--dry-run", action="store_true", help="tell parameters, operations, memory and time, and write nothing"
    )
    evaluate = for_variant("evaluate", "measure a model and draw its pictures")
    for shared in (train, evaluate):
        # By which one process hands its parameters to those that it starts.
        shared.add_argument("--params", type=Path, help=argparse.SUPPRESS)
    for_variant("export", "export a model to ONNX and hold it against the trained one")
    for_variant("register", "register a model's export, with its figures, in MLflow")
    promote = command("promote", "make a version of a model champion, if it beats the one there is")
    rollback = command("rollback", "make the version champion that was it before")
    add_promotion(promote, rollback)
    add_measure(command("measure", "measure an exported model as `evaluate` would, with the data of today"))
    add_init(command("init", "write a short params.yaml for a folder of images, with a network that fits"))
    completion = command("completion", "print a script that completes ddpm's commands in your shell")
    add_completion(completion)
    completion.set_defaults(parser=parser)
    state = command("status", "tell which stages are up to date, what is registered, and disk use")
    state.add_argument("--json", action="store_true", help="as JSON")
    config = command("config", "print params.yaml with its defaults: the meaning and the values of each key")
    config.add_argument("variant", metavar="V", nargs="?", help="show this model of params.yaml alone")
    config.add_argument("--changed", action="store_true", help="show only what differs from the defaults")

    add_sample(command("sample", "draw images from a model"))
    add_compare(command("compare", "hold models side by side: pictures, figures and curves as one page"))
    add_serve(command("serve", "draw images over HTTP from an exported model"))
    add_import(command("import", "make a model directory of a published checkpoint"))
    add_export_diffusers(command("export-diffusers", "write a model for diffusers' DDPMPipeline"))
    return parser


def _tolerate_a_narrow_encoding() -> None:
    """Print `?` for what stdout's encoding lacks: under latin-1 the arrows of the help would end in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")

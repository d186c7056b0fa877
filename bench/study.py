"""What the commands of the studies share: where they run, how they end and what becomes of their results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm import tracking
from ddpm.errors import Interrupted, UpstreamError, UserError
from ddpm.files import write_bytes, write_json
from ddpm.layout import MODELS


def add_project(parser: argparse.ArgumentParser, demo: str) -> None:
    """The option `--project`: the folder of a demo, such as .demo-text of `demo-text`."""
    parser.add_argument(
        "--project",
        type=Path,
        default=Path(f".{demo}"),
        help=f"where `make {demo}` has run (default: %(default)s)",
    )


def must_have_run(demo: str, project: Path, model: str) -> None:
    """
    Args:
        model: one that the demo trains last.

    Raises:
        UserError: it is not there.
    """
    if not (project / MODELS / model).is_dir():
        raise UserError(f"{project / MODELS / model} is missing: `make {demo}` makes it")


def run(program: str, study: Callable[[], None]) -> int:
    """Run or continue a study; returns the exit code. An error is one line on stderr that begins with the program."""
    try:
        study()
    except (UserError, UpstreamError, Interrupted) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on from here", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def publish(
    name: str,
    results: Mapping[str, Any],
    page: str,
    files: tuple[Path, Path],
    *,
    pictures: Sequence[Path] = (),
    points: Iterable[tuple[int, Mapping[str, float]]] = (),
) -> None:
    """Write the results of a study and their page, print the page, and record all of it in MLflow.

    Args:
        page: Markdown.
        files: where results and page go.
        pictures: of the page, which are written.
        points: as of `tracking.log_study`.
    """
    written = [*files, *pictures]
    write_json(files[0], dict(results))
    write_bytes(files[1], page.encode())
    print(f"\n{page}\n{', '.join(map(str, written[:-1]))} and {written[-1]} written", flush=True)
    run_id = tracking.log_study(name, results.get("protocol", {}), points, written)
    print(f"in MLflow: {tracking.run_url(run_id)}")

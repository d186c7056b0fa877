"""What a pipeline run has to show: a table in the terminal, and the same in Prefect's pages."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.settings import PREFECT_SERVER_API_PORT

from ddpm import tracking
from ddpm.figures.figure import aligned, headline, number, readings, rows
from ddpm.figures.promotion import Decision
from ddpm.files import read_json
from ddpm.layout import CASCADE, COMPARISON_PAGE, COMPARISON_PICTURE, COMPARISON_RECORD, DEPLOY, REPORTS
from ddpm.tracking import Registration


@dataclass(frozen=True)
class Result:
    """A variant at the end of a pipeline run."""

    variant: str
    registration: Registration
    metrics: dict[str, Any]
    protocol: dict[str, Any]

    @classmethod
    def read(cls, variant: str, registration: Registration) -> Result:
        metrics, protocol = (read_json(REPORTS / variant / name) for name in ("metrics.json", "protocol.json"))
        return cls(variant, registration, metrics, protocol)

    @property
    def onnx(self) -> Path:
        """A file of the deploy directory; of a cascade, the one that names the others."""
        cascade = DEPLOY / self.variant / CASCADE
        return cascade if cascade.is_file() else DEPLOY / self.variant / "denoiser.onnx"

    @property
    def picture(self) -> Path:
        return REPORTS / self.variant / "samples.png"

    def rows(self) -> dict[str, str]:
        """Label and value of each line of the table."""
        return {"model": self.variant, **rows(self.metrics, self.protocol), **self._version_rows()}

    def _version_rows(self) -> dict[str, str]:
        version = self.registration
        aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
        return {
            "version": f"{version.uri}{aliases}",
            "promotion": version.reason or "not decided",
            "ONNX": str(self.onnx),
            "sample picture": str(self.picture),
        }

    def figures(self) -> dict[str, float]:
        """The same as numbers, those of real data beside them."""
        figures = {}
        for figure, reading in readings(self.metrics):
            name = figure.named(self.protocol)
            figures[name] = reading.value
            for what, value in reading.beside.items():
                figures[f"{name}, {what}"] = value
        return {label: float(number(value)) for label, value in figures.items()}

    def __str__(self) -> str:
        version = self.registration
        figure = headline(self.metrics)
        value = f"{figure.named(self.protocol)} {number(self.metrics[figure.key])}"
        aliases = ", ".join(version.aliases) or "no alias"
        return f"{self.variant}: {value}, {version.uri} ({aliases})"


def text(results: list[Result]) -> str:
    """The table for a terminal."""
    return "\n\n".join(aligned(result.rows()) for result in results)


def pages(results: list[Result]) -> str:
    """What to type to see more of it."""
    prefect = os.environ.get("PREFECT_API_URL", f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}").removesuffix(
        "/api"
    )
    version = results[0].registration
    return (
        f"  make serve      MLflow at {tracking.run_url(version.run_id)}\n"
        f"                  Prefect at {prefect}\n"
        f"  ddpm sample {version.uri} --n 64 --out samples.png"
    )


def publish(results: list[Result]) -> None:
    """Put the table, and each variant's picture and MLflow page, among the flow run's artifacts."""
    create_table_artifact(
        key="results",
        table=[
            {
                "model": result.variant,
                **result.figures(),
                "version": result.registration.uri,
                "aliases": ", ".join(result.registration.aliases),
                "promotion": result.registration.reason,
            }
            for result in results
        ],
        description="The models as this run leaves them",
    )
    for result in results:
        key = _slug(result.variant)
        create_markdown_artifact(key=f"samples-{key}", markdown=_markdown(result), description=f"{result}")
        create_link_artifact(
            key=f"mlflow-{key}",
            link=tracking.run_url(result.registration.run_id),
            link_text=f"{result.variant} in MLflow",
        )


def publish_decision(variant: str, decision: Decision) -> None:
    """Put a promotion's outcome and the numbers it came of among the flow run's artifacts."""
    rows = "\n".join(f"| {row['figure']} | {row['challenger']} | {row['champion']} |" for row in decision.figures)
    table = f"\n\n| | challenger | champion |\n|---|---|---|\n{rows}" if rows else ""
    create_markdown_artifact(
        key=f"promotion-{_slug(variant)}", markdown=f"## {variant}\n\n{decision}{table}\n", description=f"{decision}"
    )


def publish_comparison(directory: Path, run_id: str) -> None:
    """Put a comparison's figures and picture among the flow run's artifacts, and where its page is in MLflow."""
    page = f"{tracking.run_url(run_id)}/artifacts/{COMPARISON_PAGE}"
    note = tracking.comparison_note(
        read_json(directory / COMPARISON_RECORD), page=page, picture=_inline(directory / COMPARISON_PICTURE)
    )
    create_markdown_artifact(key="comparison", markdown=note, description="Models side by side")
    create_link_artifact(key="comparison-page", link=page, link_text="The comparison as a page, in MLflow")


def _slug(variant: str) -> str:
    """A variant's name as Prefect takes it in keys."""
    return re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")


def _markdown(result: Result) -> str:
    """A page with the figures and the picture itself, which Prefect's server could not read from here."""
    rows = "\n".join(f"| {label.strip()} | {value} |" for label, value in result.rows().items())
    return f"## {result.variant}\n\n| | |\n|---|---|\n{rows}\n\n![samples]({_inline(result.picture)})\n"


def _inline(picture: Path) -> str:
    """A PNG as the address of itself."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"

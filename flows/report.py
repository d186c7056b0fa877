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
from ddpm.files import read_json
from ddpm.layout import COMPARISON_PAGE, COMPARISON_PICTURE, COMPARISON_RECORD, DEPLOY, REPORTS
from ddpm.promotion import Decision, headline
from ddpm.tracking import Registration


@dataclass(frozen=True)
class Result:
    """A variant at the end of a pipeline run."""

    variant: str
    registration: Registration
    metrics: dict[str, Any]

    @classmethod
    def read(cls, variant: str, registration: Registration) -> Result:
        return cls(variant, registration, read_json(REPORTS / variant / "metrics.json"))

    @property
    def onnx(self) -> Path:
        return DEPLOY / self.variant / "denoiser.onnx"

    @property
    def picture(self) -> Path:
        return REPORTS / self.variant / "samples.png"

    def rows(self) -> dict[str, str]:
        """Label and value of each line of the table."""
        count, all_samples = self.metrics["same_count"], self.metrics["samples"]
        figure = {key: f"{value:.2f}" for key, value in self.metrics.items() if isinstance(value, float)}
        if "fid" not in figure:
            return {"model": self.variant} | self._distances() | self._version_rows()
        rows = {
            "model": self.variant,
            "FID": f"{figure['fid']}{self._interval('fid')} over {all_samples} samples; lower is better",
            f"FID over {count}": f"{figure['fid_same_count']}; the floor, as many real images: {figure['fid_floor']}",
            "IS": f"{figure['inception_score']}{self._interval('inception_score')} over {all_samples} samples",
            f"IS over {count}": f"{figure['inception_score_same_count']}; as many real images: "
            f"{figure['inception_score_real']}",
        }
        if "nll_validation" in figure:
            rows["NLL"] = f"{figure['nll_validation']} bits/dim; of training images: {figure['nll_train']}"
        return rows | self._version_rows()

    def _interval(self, key: str) -> str:
        """The ends of a figure's 95 % interval."""
        low, high = (self.metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"

    def _distances(self) -> dict[str, str]:
        """The figures of points and sequences, each beside its floor."""
        found, count = self.metrics, self.metrics["same_count"]
        return {
            f"{name} over {count}": f"{found[key]:.4g}; the floor, as many real ones: {found[f'{key}_floor']:.4g}"
            for key, name in (("wasserstein", "Wasserstein"), ("mmd", "MMD"))
        }

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
        """What models are compared by, with its floor, and IS where there is one."""
        key, name = headline(self.metrics)
        figures = {name: self.metrics[key], "floor": self.metrics[f"{key}_floor"]}
        if "inception_score" in self.metrics:
            figures["IS"] = self.metrics["inception_score"]
        return {label: round(value, 3) for label, value in figures.items()}

    def __str__(self) -> str:
        version = self.registration
        key, name = headline(self.metrics)
        aliases = ", ".join(version.aliases) or "no alias"
        return f"{self.variant}: {name} {self.metrics[key]:.2f}, {version.uri} ({aliases})"


def text(results: list[Result]) -> str:
    """The table for a terminal."""
    blocks = []
    for result in results:
        rows = result.rows()
        width = max(map(len, rows))
        blocks.append("\n".join(f"  {label:<{width}}  {value}" for label, value in rows.items()))
    return "\n\n".join(blocks)


def pages(results: list[Result]) -> str:
    """What to type to see more of it."""
    prefect = os.environ.get("PREFECT_API_URL", f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}").removesuffix(
        "/api"
    )
    version = results[0].registration
    return (
        f"  make serve      MLflow at {tracking.run_url(version.run_id)}\n"
        f"                  Prefect at {prefect}\n"
        f"  .venv/bin/ddpm sample {version.uri} --n 64 --out samples.png"
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

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
from ddpm.stages.layout import DEPLOY, REPORTS
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
        version, count, all_samples = self.registration, self.metrics["same_count"], self.metrics["samples"]
        figure = {key: f"{value:.2f}" for key, value in self.metrics.items() if isinstance(value, float)}
        rows = {
            "model": self.variant,
            "FID": f"{figure['fid']} over {all_samples} samples; lower is better",
            f"FID over {count}": f"{figure['fid_same_count']}; the floor, as many real images: {figure['fid_floor']}",
            "IS": f"{figure['inception_score']} ± {figure['inception_score_std']} over {all_samples} samples",
            f"IS over {count}": f"{figure['inception_score_same_count']}; as many real images: "
            f"{figure['inception_score_real']}",
        }
        if "nll" in figure:
            rows["NLL"] = f"{figure['nll']} bits/dim"
        aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
        return rows | {
            "version": f"{version.uri}{aliases}",
            "promotion": version.reason or "not decided",
            "ONNX": str(self.onnx),
            "sample picture": str(self.picture),
        }

    def __str__(self) -> str:
        found, version = self.metrics, self.registration
        return f"{self.variant}: FID {found['fid']:.2f}, {version.uri} ({', '.join(version.aliases) or 'no alias'})"


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
                "FID": round(result.metrics["fid"], 3),
                "floor": round(result.metrics["fid_floor"], 3),
                "IS": round(result.metrics["inception_score"], 3),
                "version": result.registration.uri,
                "aliases": ", ".join(result.registration.aliases),
                "promotion": result.registration.reason,
            }
            for result in results
        ],
        description="The models as this run leaves them",
    )
    for result in results:
        key = re.sub(r"[^a-z0-9]+", "-", result.variant.lower()).strip("-")
        create_markdown_artifact(key=f"samples-{key}", markdown=_markdown(result), description=f"{result}")
        create_link_artifact(
            key=f"mlflow-{key}",
            link=tracking.run_url(result.registration.run_id),
            link_text=f"{result.variant} in MLflow",
        )


def _markdown(result: Result) -> str:
    """A page with the figures and the picture itself, which Prefect's server could not read from here."""
    rows = "\n".join(f"| {label.strip()} | {value} |" for label, value in result.rows().items())
    picture = base64.b64encode(result.picture.read_bytes()).decode()
    return f"## {result.variant}\n\n| | |\n|---|---|\n{rows}\n\n![samples](data:image/png;base64,{picture})\n"

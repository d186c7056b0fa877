"""The flow `compare`, against a real Prefect server, with a real comparison."""

import shutil
from pathlib import Path

import pytest
from finished import empty_store
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from ddpm import tracking
from ddpm.figures.figure import Reading
from ddpm.files import read_json
from flows.compare import compare

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def project_with_store(trained, tmp_path_factory, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", trained / "mlflow")
    return trained


def markdown(key: str) -> str:
    """The newest Markdown artifact of that key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return found[0].data


@pytest.mark.slow
def test_the_page_is_in_mlflow_and_the_figures_are_among_the_artifacts(project_with_store):
    state = compare(["tiny", "deploy/tiny"], steps=[2], return_state=True)
    assert state.is_completed(), state.message
    mlflow = tracking.load_mlflow()
    run_id = state.result()
    page = mlflow.artifacts.load_text(f"runs:/{run_id}/report.html")
    assert page == Path("comparison/report.html").read_text(encoding="utf-8")
    figure = str(Reading.of(read_json(Path("reports/tiny/metrics.json")), "fid"))
    assert f"| FID | {figure} | {figure} |" in markdown("comparison")
    assert "data:image/png;base64," in markdown("comparison")


@pytest.mark.slow
def test_what_cannot_be_compared_fails_at_once_in_the_commands_words(project_with_store):
    state = compare(["tiny", "none"], return_state=True)
    assert state.is_failed()
    assert state.message.startswith("compare: ddpm compare: none: expected a model of params.yaml (tiny)")
    assert not Path("comparison").exists()

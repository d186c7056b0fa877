"""A project with the real graph's stages, each of which does next to nothing."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished import empty_store, write_outputs
from graphs import SCRIPT, STAGE, write_graph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A Prefect server for all tests that run flows; its start takes seconds, and so does its import."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory) -> Path:
    """git and DVC, as yet without a graph."""
    root = tmp_path_factory.mktemp("project")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=root, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "empty"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (root / SCRIPT).write_text(STAGE)
    (root / "content").write_text(json.dumps({"version": 1}))
    (root / "on").mkdir()
    return root


@pytest.fixture
def graph(empty_project, tmp_path, monkeypatch) -> Path:
    """The stand-in project with one variant, `one`, and the current directory."""
    root = tmp_path / "project"
    shutil.copytree(empty_project, root)
    write_graph(root)
    write_outputs(root / "finished")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def store(graph, tmp_path_factory, monkeypatch) -> Path:
    """MLflow's store in the stand-in project, empty."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", graph / "mlflow")
    return graph / "mlflow"


@pytest.fixture
def before(graph) -> Callable[[str, str], None]:
    """Have a stage run some Python first: `before("train@one", "sys.exit(2)")`."""
    return lambda address, code: (graph / "on" / address).write_text(textwrap.dedent(code)) and None


@pytest.fixture
def calls(graph) -> Callable[[], list[str]]:
    """The stages that really ran, in order."""
    return lambda: (graph / "calls").read_text().split() if (graph / "calls").exists() else []


@pytest.fixture(scope="session")
def repository(empty_project, tmp_path_factory) -> Callable[..., Path]:
    """Make a folder with the repository's params.yaml and dvc.yaml, for a demo to be made in.

    With the demo's folder, DVC is there already: `dvc init` takes a second.
    """

    def make(demo: Path | None = None) -> Path:
        root = tmp_path_factory.mktemp("repository")
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, root)
        for name in ("ddpm", "flows"):
            (root / name).mkdir()
        if demo:
            shutil.copytree(empty_project / ".dvc", root / demo / ".dvc")
        return root

    return make

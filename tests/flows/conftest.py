"""A project with the real graph's stages, each of which does next to nothing."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from finished import empty_store, write_outputs
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from ddpm.config.model import VariantConfig

SCRIPT = "stage.py"

_STAGE = '''
"""Stand-in for `ddpm`: `stage.py NAME [VARIANT [GUIDE]]` brings what is in finished/ to where the stage would write it.

A file on/NAME or on/NAME@VARIANT holds Python to run before.
"""
import pathlib, shutil, sys, time
name, *variant = sys.argv[1:]
address = "@".join([name, *(["-".join(variant)] if variant else [])])
with open("calls", "a") as calls:
    print(address, file=calls)
first = pathlib.Path("on", address)
if first.exists():
    exec(first.read_text())
folders = {"prepare": "prepared", "train": "models", "evaluate": "reports", "export": "deploy"}
folder = folders.get(name.removesuffix("-guide"))
if folder:
    shutil.copytree(pathlib.Path("finished", folder, *(["tiny"] if variant else [])), pathlib.Path(folder, *variant))
copy = {"fetch": "fetched.json", "prepare": "prepared/content", "fit-extractor": "extractor/content"}.get(name)
if name == "guide":
    copy = "guides/" + "-".join(variant)
if copy:
    pathlib.Path(copy).parent.mkdir(exist_ok=True)
    shutil.copy("content", copy)
print("done with", address)
'''


def write_graph(root: Path, variants: tuple[str, ...] = ("one",), guides: tuple[str, ...] = ()) -> None:
    """dvc.yaml with the names and the order of the real one."""

    def stage(name: str, deps: list[str], out: str, **more) -> dict:
        return {"cmd": f"{sys.executable} {SCRIPT} {name}", "deps": deps, "outs": [{out: {"cache": False}}], **more}

    def per_variant(name: str, deps: list[str], out: str, names: tuple[str, ...] = variants) -> dict:
        matrix = {"matrix": {"variant": list(names)}}
        return matrix | stage(f"{name} ${{item.variant}}", deps, f"{out}/${{item.variant}}")

    stages = {
        "fetch": stage("fetch", ["content"], "fetched.json", always_changed=True),
        "prepare": stage("prepare", ["fetched.json"], "prepared"),
        "fit-extractor": stage("fit-extractor", ["prepared"], "extractor"),
        "train": per_variant("train", ["prepared"], "models"),
        "train-guide": per_variant("train-guide", ["prepared"], "models", guides),
        "guide": {
            "matrix": {"variant": list(variants), "guide": list(guides)},
            **stage(
                "guide ${item.variant} ${item.guide}",
                ["models/${item.variant}", "models/${item.guide}"],
                "guides/${item.variant}-${item.guide}",
            ),
        },
        "evaluate": per_variant("evaluate", ["extractor", "models/${item.variant}"], "reports"),
        "export": per_variant("export", ["models/${item.variant}"], "deploy"),
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    sections: dict[str, dict] = {section: {} for section in VariantConfig.model_fields}
    models = dict.fromkeys([*variants, *guides], sections)
    (root / "params.yaml").write_text(
        yaml.safe_dump({"variants": list(variants), "guides": list(guides), "models": models})
    )


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A Prefect server for all tests that run flows; its start takes seconds."""
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
    (root / SCRIPT).write_text(_STAGE)
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
    shutil.copytree(empty_store(tmp_path_factory.getbasetemp()) / "mlflow", graph / "mlflow")
    return graph / "mlflow"


@pytest.fixture
def before(graph) -> Callable[[str, str], None]:
    """Have a stage run some Python first: `before("train@one", "sys.exit(2)")`."""
    return lambda address, code: (graph / "on" / address).write_text(textwrap.dedent(code)) and None


@pytest.fixture
def calls(graph) -> Callable[[], list[str]]:
    """The stages that really ran, in order."""
    return lambda: (graph / "calls").read_text().split() if (graph / "calls").exists() else []

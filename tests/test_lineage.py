"""What a registered model came of, by dvc.lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ddpm.errors import UserError
from ddpm.tracking.stage_outputs import lineage_of

STAGES = (
    *("prepare", "train-autoencoder@squeeze", "encode@squeeze", "train-latent@small"),
    *(f"{stage}-control@steered" for stage in ("train", "evaluate", "export")),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A control of a model of latents; of its files those that say what it is."""
    training = {"fingerprint": "f", "control_of": {"variant": "small", "fingerprint": "g", "sha256": "h"}}
    card = {"data": {"latent": {"variant": "squeeze"}}, "training": training}
    (tmp_path / "models/steered").mkdir(parents=True)
    (tmp_path / "models/steered/model.json").write_text(json.dumps(card))
    return tmp_path


def lock(project: Path, **changed: str) -> str:
    """The lineage of the control with such a dvc.lock.

    Args:
        changed: hashes of what stages wrote, by their names.
    """
    stages = {name: {"outs": [{"path": "x", "md5": "1"}]} for name in (*STAGES, "train-latent@other")}
    stages |= {name: {"outs": [{"path": "x", "md5": md5}]} for name, md5 in changed.items()}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return lineage_of("steered", project)


def test_a_control_of_latents_came_of_its_base_and_of_the_autoencoder(project: Path):
    lineages = [lock(project), *(lock(project, **{name: "2"}) for name in STAGES)]
    assert len({*lineages}) == 1 + len(STAGES)
    assert lock(project, **{"train-latent@other": "2"}) == lineages[0]


def test_a_stage_that_has_not_run_is_named(project: Path):
    lock(project)
    (path,) = project.glob("dvc.lock")
    content = yaml.safe_load(path.read_text())
    del content["stages"]["encode@squeeze"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="no entry for encode@squeeze; run `dvc repro encode@squeeze`"):
        lineage_of("steered", project)

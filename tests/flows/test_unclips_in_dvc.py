"""The real graph with a prior, a decoder and an upsampler. They are trained after the CLIP and its embeddings, then
composed, and from then on one model. One training is killed and goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from captioned import CLIP, write_pictures
from test_guides_in_dvc import ROOT, pipeline, ran  # noqa: F401  (pipeline is a fixture)
from tiny import write_params
from unclips import unclip_params

import ddpm
from ddpm.cli.main import main
from ddpm.files import read_json, sha256_of
from ddpm.tracking.stage_outputs import Outputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

LINKS = {"prior": "train-prior", "decoder": "train-decoder", "upsampler": "train-unclip-upsampler"}
WHOLE = {f"{stage}-unclip@dalle" for stage in ("compose", "evaluate", "export")} | {"judge-unclip@dalle-clip"}


def kill_training(project: Path, stage: str, model: str) -> None:
    """Start a stage and kill its `ddpm train` once that has a checkpoint."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dvc", "repro", stage]
    started = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(project.glob(f".ddpm/training/{model}/*/step-*")):
        assert started.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def test_the_whole_graph_with_a_kill_and_what_a_change_reruns(pipeline: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    write_pictures(pipeline / "pictures")
    params = unclip_params()
    params["models"]["decoder"]["training"] |= {"steps": 400, "checkpoint_every": 5}
    write_params(pipeline, params)
    kill_training(pipeline, "train-decoder@dalle", "decoder")
    (killed,) = [path for path in pipeline.glob(".ddpm/training/decoder/*") if path.is_dir()]
    assert not (pipeline / "models/decoder").exists()
    first = ran(pipeline)
    for later in LINKS.values():
        assert first.index(f"{later}@dalle") < first.index("compose-unclip@dalle")
    assert first.index("compose-unclip@dalle") < min(
        first.index(f"{each}-unclip@dalle") for each in ("evaluate", "export")
    )
    assert not {"train-encoder@clip", "embed@clip"} & set(first), "they were done before the kill"
    assert not set(ran(pipeline)) - {"fetch"}

    # Lineage: the CLIP by its hash in each link, and all its stages in what is registered.
    monkeypatch.chdir(pipeline)
    clip = sha256_of(Path("models/clip/model.safetensors"))
    cards = {name: read_json(Path("models", name, "model.json")) for name in ("prior", "decoder")}
    assert cards["decoder"]["training"]["fingerprint"].startswith(killed.name), "it went on from the checkpoint"
    assert {card["data"]["encoder"]["sha256"] for card in cards.values()} == {clip}
    facts, protocol = read_json(Path("models/dalle/cascade.json")), read_json(Path("reports/dalle/protocol.json"))
    assert (list(facts["links"]), facts["leading"]) == (list(LINKS), "decoder")
    assert (protocol["steps"], protocol["prior"]["steps"], protocol["upsampler"]["low_noise"]) == (5, 5, 0.1)
    outputs = Outputs.read("dalle", Path())
    assert outputs.parameters()["prior.trained.encoder"] == f"clip {clip[:12]}"
    assert Path("reports/dalle/links.png").is_file()

    # Exported, it draws what the trained one draws; who gives an embedding skips the prior.
    assert read_json(Path("deploy/dalle/parity.json"))["passed"]
    trained, exported = ddpm.load("models/dalle"), ddpm.load("deploy/dalle")
    drawn = [each.sample(3, seed=1, prompt="night").astype(int) for each in (trained, exported)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 2
    given = trained.sample(3, seed=1, prompt="night", embedding=np.ones(CLIP["network"]["embedding"]))
    assert (given != drawn[0]).any()
    assert main(["sample", "deploy/dalle", "--prompt", "night", "--n", "2", "--out", "x.png"]) == 0

    changed = unclip_params(low_noise=0.0)
    changed["models"]["decoder"]["training"] = params["models"]["decoder"]["training"]
    write_params(pipeline, changed)
    assert set(ran(pipeline)) - {"fetch"} == WHOLE
    changed["models"]["clip"]["training"]["learning_rate"] = 2e-3
    write_params(pipeline, changed)
    of_clip = {"train-encoder@clip", "embed@clip", "evaluate-encoder@clip"}
    again = ran(pipeline)
    assert set(again) - {"fetch"} == of_clip | WHOLE | {f"{stage}@dalle" for stage in LINKS.values()}
    for later in ("train-prior@dalle", "train-decoder@dalle"):
        assert again.index("train-encoder@clip") < again.index("embed@clip") < again.index(later)


def test_without_unclips_the_graph_has_no_stage_of_them(pipeline: Path):  # noqa: F811
    assert not [stage for stage in ran(pipeline, "prepare") if "unclip" in stage]

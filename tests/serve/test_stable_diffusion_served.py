"""An imported Stable Diffusion, and a ControlNet of it, on the whole way: measured, exported, registered in a real
MLflow store, and asked over HTTP."""

from __future__ import annotations

import base64
import copy
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from service import Server
from stable_diffusion import UNET, write_pipeline
from tiny import TINY_PARAMS, write_params
from weights import moved

import ddpm
from ddpm.cli.main import main
from ddpm.files import read_json, sha256_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SAMPLING = {"sampler": "dpmpp_2m", "steps": 3, "clip": False, "guidance_scale": 3.0}
SD = {
    "network": {},
    "condition": {"prompt": {}},
    "codec": {"latent": {"autoencoder": "models/sd"}},
    "process": {},
    "sampling": SAMPLING,
}
CONTROLNET = {key: value for key, value in UNET.items() if key not in ("sample_size", "up_block_types")}
CONTROLNET |= {"in_channels": 4, "conditioning_embedding_out_channels": (4, 8)}  # 8×8 pictures, 4×4 latents
EDGES = np.zeros((8, 8), np.uint8)
EDGES[3] = 255


def write_pictures(directory: Path) -> None:
    """Sixteen pictures of 8×8, with captions in the letters of the tiny tokenizer."""
    directory.mkdir()
    for number in range(16):
        image = np.full((8, 8, 3), 220, np.uint8)
        image[2:6, 2 : 4 + number % 4] = (20 * (number % 8), 40, 90)
        Image.fromarray(image).save(directory / f"{number:02}.png")
        (directory / f"{number:02}.txt").write_text("a b" if number % 2 else "c d")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, prepared; the pipeline and a ControlNet of it, imported."""
    root = tmp_path_factory.mktemp("served")
    write_pictures(root / "pictures")
    write_pipeline(root / "pipeline")
    torch.manual_seed(3)
    moved(ControlNetModel(**CONTROLNET)).save_pretrained(root / "controlnet")
    params = copy.deepcopy(TINY_PARAMS)
    params["data"] = {"source": "folder", "path": "pictures", "channels": 3, "validation_fraction": 0.25}
    params["evaluation"] |= {"samples": 16, "held_out_samples": 4}
    steered = copy.deepcopy(SD)
    steered["condition"]["control"] = {"of": "models/sd", "hint": "edges"}
    params["models"] |= {"sd": SD, "steered": steered}
    write_params(root, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for line in (
            ["fetch"],
            ["prepare"],
            ["fit-extractor"],
            ["import", "pipeline", "--out", "models/sd"],
            ["import", "controlnet", "--base", "models/sd", "--hint", "edges", "--out", "models/steered"],
        ):
            assert main(line) == 0, line
    return root


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the current directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(project)
    return project


def hint() -> str:
    """A PNG in base64."""
    stream = io.BytesIO()
    Image.fromarray(EDGES).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def images_in(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))


# `steered` is `sd` with a control, and goes the same way.
@pytest.mark.parametrize("name", [pytest.param("sd", marks=pytest.mark.slow), "steered"])
def test_it_is_measured_exported_registered_and_served(here: Path, name, tmp_path: Path, capsys):
    for command in ("evaluate", "export", "register"):
        assert main([command, name]) == 0, command
    said = capsys.readouterr().out
    assert read_json(here / "deploy" / name / "parity.json")["passed"]
    metrics = json.loads((here / "reports" / name / "metrics.json").read_text())
    assert metrics["fid"] > 0
    assert not [key for key in metrics if key.startswith("nll")]
    (uri,) = {word.rstrip(":,") for word in said.split() if word.startswith("models:/")}
    asked = {"n": 2, "seed": 5, "prompt": "a b"}
    in_python = {"seed": 5, "prompt": "a b"}
    if name == "steered":
        assert 0 <= metrics["control_edges"] <= 1
        asked["control"], in_python["control"] = hint(), EDGES
    server = Server(here, uri)
    try:
        drawn = images_in(server.draw(**asked, format="npy"))
        refused = server.draw(**{**asked, "prompt": 7})
        facts = server.client.get("/v1/model").json()
    finally:
        assert server.stop() == 0
    model = ddpm.load(f"models/{name}").sampled_by(SAMPLING)
    expected = model.sample(2, **in_python)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert refused.status_code == 422
    columns = {column["name"] for column in facts["columns"]}
    assert {"prompt", "control"} & columns == ({"prompt", "control"} if name == "steered" else {"prompt"})


def test_a_control_weighs_nothing_and_is_its_base(here: Path):
    base, steered = (ddpm.load(f"models/{name}").sampled_by(SAMPLING) for name in ("sd", "steered"))
    asked = {"seed": 1, "prompt": "c d"}
    expected = base.sample(2, **asked)
    assert np.array_equal(steered.sample(2, **asked, control=EDGES, control_scale=0.0), expected)
    assert not np.array_equal(steered.sample(2, **asked, control=EDGES), expected)
    assert steered.card.training.control_of.sha256 == sha256_of(here / "models/sd/model.safetensors")

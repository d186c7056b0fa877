"""A control of latents: its hints are derived from the pictures that the latents are of. Trained, drawn with, measured,
exported."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from of_latents import AUTOENCODER, OF_LATENTS, params
from tiny import TINY_PARAMS

import ddpm
from ddpm.conditioning.hints import DerivedHint
from ddpm.config.params import Params
from ddpm.data.latents import Latents
from ddpm.data.shown import values_of_pictures
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.layout import LATENTS, PREPARED
from ddpm.stages.dry_run import dry_run
from ddpm.stages.encode import encode
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.train import train_variant
from ddpm.stages.train_autoencoder import train_autoencoder

pytest.importorskip("skimage")

HINT = {"of": "models/small", "hint": "edges", "also": [{"hint": "silhouette"}], "widths": [4, 8]}
EDGES = np.zeros((8, 8), bool)
EDGES[3] = True
ASKED = {"control": EDGES, "control_2": EDGES, "label": 3}


def with_control(**models) -> Params:
    """The autoencoder, the model of its latents, and a control of that; with other models in place of them."""
    steered = copy.deepcopy(OF_LATENTS)
    steered["condition"]["control"] = copy.deepcopy(HINT)
    return params(**{"steered": steered, **models})


def section(**changes) -> dict:
    """The control's model with changes to its section `control`."""
    steered = copy.deepcopy(OF_LATENTS)
    steered["condition"]["control"] = {**HINT, **changes}
    return steered


@pytest.fixture(scope="module")
def template(latents_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The autoencoder, the model and its control trained, and the control exported."""
    directory = tmp_path_factory.mktemp("latent-controls") / "project"
    shutil.copytree(latents_template, directory)
    with contextlib.chdir(directory):
        train_variant(with_control(), "steered")
        export_variant(with_control(), "steered")
    return directory


def test_the_hints_of_latents_are_those_of_their_pictures(here: Path):
    data, model = PreparedData.open(PREPARED), ddpm.load("models/steered")
    latents = Latents.open(LATENTS / "squeeze", data, sha256_of(Path("models/squeeze/model.safetensors")))
    found = values_of_pictures(model.columns, model.codec, latents.split("train"))
    assert list(found) == ["control", "control_2"]
    rows = np.array([3, 0, 11])
    x0 = data.codec.encode(torch.from_numpy(data.split("train").rows(rows)))
    for column in model.columns:
        if isinstance(column, DerivedHint):
            expected = column.derive(x0, torch.empty(3, 0)).numpy()
            assert expected.any()
            assert np.array_equal(found[column.name].at(rows), expected)
    assert values_of_pictures(model.columns, data.codec, data.split("train")) == {}


def test_training_shows_the_network_those_hints(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of each image of the batch its own, in the pixels of the picture."""
    from ddpm.nets.controlled import Controlled

    shown, own = [], Controlled.residuals

    def recorded(self, x, t, c):
        if x.device.type != "meta":
            shown.append([hint.clone() for hint in c.hints])
        return own(self, x, t, c)

    monkeypatch.setattr(Controlled, "residuals", recorded)
    shutil.copytree(here, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    short = section()
    short["training"] = {**short["training"], "steps": 1}
    train_variant(with_control(steered=short), "steered")
    data = PreparedData.open(PREPARED)
    split = data.split("train")
    x0 = data.codec.encode(torch.from_numpy(split.rows(np.arange(len(split)))))
    columns = [column for column in ddpm.load("models/steered").columns if isinstance(column, DerivedHint)]
    for column, hints in zip(columns, shown[-1], strict=True):
        assert hints.shape == (8, 1, 8, 8)
        all_of_them = column.as_maps(column.derive(x0, torch.empty(len(split), 0)))
        assert all((all_of_them == hint).flatten(1).all(1).any() for hint in hints)


def test_training_leaves_the_base_and_the_autoencoder_as_they_are(here: Path):
    base, control = (ddpm.load(f"models/{name}") for name in ("small", "steered"))
    theirs = base.network.network.state_dict()
    own = control.network.network.base.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert control.network.network.controls[0].zero[0].weight.any()
    assert control.card.data.latent == base.card.data.latent
    halves = base.autoencoder.network.state_dict()
    assert all(torch.equal(t, halves[name]) for name, t in control.autoencoder.network.state_dict().items())
    assert control.card.training.control_of.sha256 == sha256_of(Path("models/small/model.safetensors"))


def test_drawing_follows_the_hint_and_a_weight_of_0_is_the_base(here: Path):
    model = ddpm.load("models/steered")
    x, t = model.noise(2, 0)(), torch.tensor([3, 40])
    one, other = (model.denoiser(model.given(2, **{**ASKED, "control": edges}))(x, t) for edges in (EDGES, EDGES.T))
    assert not torch.allclose(one, other, atol=1e-6)
    base = ddpm.load("models/small").sample(2, label=3)
    assert np.array_equal(model.sample(2, **ASKED, control_scale=0.0), base)


def test_a_hint_has_the_size_of_the_picture_not_of_the_latent(here: Path):
    with pytest.raises(ValueError, match="control: expected a picture of 8×8, or several, found 4×4"):
        ddpm.load("models/steered").sample(1, **{**ASKED, "control": EDGES[:4, :4]})


def test_the_agreement_with_each_hint_is_measured(project: Path):
    measured = evaluate_variant(with_control(), "steered")
    for key in ("control_edges", "control_2_silhouette"):
        assert 0 <= measured.metrics[key] <= 1
        assert f"{key}_chance" in measured.metrics
    assert measured.protocol.hints == "validation, edges at sigma 1, silhouette"
    assert {"hints.png", "samples.png"} <= {path.name for path in Path("reports/steered").iterdir()}
    assert not [name for name in measured.metrics if name.startswith("nll")]


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_exported_one_draws_the_same(here: Path, in_graph):
    parity = json.loads(Path("deploy/steered/parity.json").read_text())
    assert parity["passed"]
    assert set(parity["files"]) == {"denoiser.onnx", "sampler.onnx", "decoder.onnx"}
    model = ddpm.load("models/steered").sampled_by(with_control().variant("steered").sampling)
    exported = Sampler("deploy/steered", in_graph=in_graph)
    for more in ({}, {"control_scale": 0.0}, {"control_scale": 2.0, "guess": True, "guidance_scale": 2.0}):
        ours, theirs = (each.sample(3, seed=2, **ASKED, **more).astype(int) for each in (model, exported))
        assert np.abs(theirs - ours).max() <= 1, more


def test_training_can_be_watched_and_tried(project: Path, capsys):
    watched = section()
    watched["training"] = {**watched["training"], "steps": 4, "sample_every": 2}
    train_variant(with_control(steered=watched), "steered")
    assert any("parameters" in line for line in dry_run(with_control(), "steered"))


def test_a_base_of_other_latents_is_refused_with_both_hashes(project: Path):
    first = sha256_of(Path("models/squeeze/model.safetensors"))
    other = copy.deepcopy(AUTOENCODER)
    other["training"]["steps"] = 2
    train_autoencoder(with_control(squeeze=other), "squeeze")
    encode(with_control(), "squeeze")
    second = sha256_of(Path("models/squeeze/model.safetensors"))
    words = f"models/small draws latents of squeeze {first[:12]}, and this model latents of squeeze {second[:12]}"
    for run in (train_variant, dry_run):
        with pytest.raises(UserError, match=f"{words}: train models/small again"):
            run(with_control(), "steered")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shrink": 8}, r"condition\.control\.shrink is 8, expected 2: x is latents, whose sides are 1/2 of the"),
        ({"widths": [4]}, r"condition\.control\.widths are 1, expected at least 2"),
    ],
)
def test_a_hint_encoder_that_does_not_fit_is_refused(here: Path, changes, words):
    with pytest.raises(UserError, match=words):
        train_variant(with_control(steered=section(**changes)), "steered")


def test_a_control_of_pixels_sees_the_hint_as_it_is(here: Path):
    tiny = {**TINY_PARAMS["models"]["tiny"], "condition": {"control": {**HINT, "of": "models/tiny", "shrink": 2}}}
    with pytest.raises(UserError, match=r"condition\.control\.shrink is 2, expected 1: x is pixels"):
        train_variant(with_control(pixels=tiny), "pixels")


def test_the_pipeline_trains_the_control_after_its_base():
    raw = {
        **with_control().model_dump(mode="json", exclude_unset=True),
        "variants": [],
        "autoencoders": ["squeeze"],
        "latents": {"small": "squeeze"},
        "controls": {"steered": {"of": "small"}},
    }
    del raw["models"]["tiny"]
    assert Params.model_validate(raw).built == ("small", "steered")
    for changes, words in (
        ({"latents": {"small": "squeeze", "steered": "squeeze"}}, "names steered, which is in `latents` too"),
        ({"latents": {"small": "squeeze", "steered": "squeeze"}, "controls": {}}, "name it in `controls`"),
        ({"latents": {}}, "controls.steered.of is small, which the pipeline does not train"),
    ):
        with pytest.raises(ValueError, match=words):
            Params.model_validate({**raw, **changes})

"""A model that is told a hint: the column, its weights as plan data, training it, and drawing with it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import TINY_PARAMS
from untrained import untrained

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import columns_of
from ddpm.conditioning.hints import HINTS
from ddpm.data.given import read_picture
from ddpm.data.images import BadImageError
from ddpm.diffusion.plans import GUESS_FACTOR, sampling_plan
from ddpm.diffusion.schedules import Schedule
from ddpm.files import read_json, sha256_of, write_json
from ddpm.model import Model, load
from ddpm.model.card import DataFacts

pytest.importorskip("skimage")

DATA = {"shape": (16, 16, 3)}
CONTROL = {"of": "models/base", "hint": "edges", "widths": [4, 8]}


def column(hint: str = "edges", **options):
    (found, _) = columns_of({"control": {"hint": hint, **options}}, DATA)
    return found


def square() -> torch.Tensor:
    """A blue square of 8×8 on white, in [−1, 1]."""
    x = torch.ones(1, 3, 16, 16)
    x[:, :, 4:12, 4:12] = torch.tensor([-1.0, -1.0, 0.5]).view(1, 3, 1, 1)
    return x


def png(levels: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    stream.seek(0)
    return stream


# --- hints


def test_edges_lie_around_what_is_drawn_and_move_with_it():
    edges = column().derive(square(), torch.empty(1, 0))
    assert edges.shape == (1, 16, 16)
    assert edges.dtype == torch.bool
    rows, columns = edges[0].nonzero().unbind(1)
    near = torch.minimum(
        (rows - 3.5).abs().minimum((rows - 11.5).abs()), (columns - 3.5).abs().minimum((columns - 11.5).abs())
    )
    assert len(rows) >= 24
    assert near.max() <= 1
    moved = column().derive(square().roll(2, dims=-1), torch.empty(1, 0))
    assert torch.equal(moved, edges.roll(2, dims=-1))


def test_a_silhouette_is_what_differs_from_the_rim():
    found = column("silhouette").derive(square(), torch.empty(1, 0))
    assert torch.equal(found[0], (square()[0] < 1).any(0))
    assert not column("silhouette").derive(0.3 * torch.ones(1, 3, 16, 16), torch.empty(1, 0)).any()


def test_colour_is_the_image_in_few_pixels_and_is_shown_in_its_size():
    own = column("colour", side=4)
    found = own.derive(square(), torch.empty(1, 0))
    assert found.shape == (1, 4, 4, 3)
    assert found[0, 1, 1].tolist() == [0, 0, 191]
    shown = own.as_maps(found)
    assert shown.shape == (1, 3, 16, 16)
    assert shown[0, :, 8, 8].tolist() == pytest.approx([-1, -1, 191 / 127.5 - 1])


def test_every_hint_can_be_asked_for_and_none_is_drawn():
    for hint in HINTS.keys() - {"given"}:  # tests/data/test_hints.py
        own = column(hint)
        asked = own.derive(square(), torch.empty(1, 0)).numpy()
        assert np.array_equal(own.read(asked, 3), np.repeat(asked, 3, axis=0))
        with pytest.raises(ValueError, match=f"control: the model needs {hint}, a picture of"):
            own.draw(1, seed=0)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.full((16, 16), 255), "expected edges, white on black, found 100% of the pixels white: invert it"),
        (np.full((16, 16, 3), (90, 120, 200)), "expected edges, white on black, found 256 of 256 pixels that are"),
        (np.zeros((8, 8)), "8 pixels wide and 8 high, expected 16 wide and 16 high"),
    ],
)
def test_a_hint_of_another_size_or_kind_is_refused(levels, words):
    with pytest.raises(BadImageError, match=words):
        read_picture(column(), png(levels.astype(np.uint8)))


def test_a_hint_may_be_a_little_grey_where_a_lossy_file_made_it_so():
    levels = np.zeros((16, 16), np.uint8)
    levels[4] = 250
    levels[5] = 9
    assert np.array_equal(read_picture(column(), png(levels)), levels > 100)


def test_a_hint_that_there_is_not_is_named():
    with pytest.raises(
        ValueError, match=r"condition\.control\.hint: no hint 'depth'; there are: edges, silhouette, colour"
    ):
        column("depth")
    with pytest.raises(ValueError, match=r"condition\.control is for images; the data are points"):
        columns_of({"control": {}}, {"kind": "points", "shape": (2,)})


# --- weights as plan data


def plan(**options):
    return sampling_plan(
        Schedule.named("linear", 100), sampler="ddim", steps=10, prediction="epsilon", variance="fixed_small", **options
    )


def test_a_plan_without_weights_is_the_plan_as_it_was():
    assert plan().control is None
    assert plan(control_scale=1.0, control_interval=(0.0, 1.0)).control is None
    assert all(row.control is None for _, row in plan().rows())


def test_weights_are_rows_of_a_plan():
    half = plan(control_scale=0.5, control_interval=(0.5, 1.0))
    assert [row.control for _, row in half.rows()] == [(0.5, 0.5, 1.0)] * 6 + [(0.0, 0.0, 1.0)] * 4
    assert np.array_equal(half.table, plan().table)
    assert [row.control for _, row in plan(guess=True).rows()] == [(1.0, 0.0, GUESS_FACTOR)] * 10


def test_weights_follow_the_rows_when_a_plan_goes_back_into_the_noise():
    asked = {"control_interval": (0.5, 1.0), "inpainting": "repaint", "resamples": 2, "jump": 3}
    for t, row in plan(**asked).rows():
        assert row.control == ((1.0, 1.0, 1.0) if t + 1 >= 50 else (0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"control_scale": -1.0}, "control_scale must be in 0..10, found -1.0"),
        (
            {"control_interval": (0.9, 0.1)},
            "control_interval must be two shares, 0 <= low <= high <= 1, found 0.9, 0.1",
        ),
    ],
)
def test_weights_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        plan(**options)


# --- a model with a control


FACTS = DataFacts(name="squares", shape=(8, 8, 1), classes=("a", "b"))
EDGES = np.zeros((8, 8), bool)
EDGES[3] = True


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """With random weights, so that the control does something."""
    folder = tmp_path_factory.mktemp("models")
    conditions = {"plain": {}, "guided": {"label": {"drop": 0.2}}}
    return {
        name: load(untrained(name, folder, FACTS, condition={**condition, "control": CONTROL}))
        for name, condition in conditions.items()
    } | {"uncontrolled": load(untrained("uncontrolled", folder, FACTS))}


def test_drawing_follows_the_hint_and_a_weight_of_0_is_the_base(models):
    model = models["plain"]
    drawn = model.sample(2, control=EDGES)
    assert not np.array_equal(drawn, model.sample(2, control=EDGES.T))
    base = model.sample(2, control=EDGES, control_scale=0.0)
    assert np.array_equal(base, model.sample(2, control=EDGES.T, control_scale=0.0))
    assert not np.array_equal(base, drawn)


def test_a_row_of_weight_0_does_not_evaluate_the_control(models, monkeypatch):
    model, calls = models["plain"], []
    (control,) = model.network.network.controls
    monkeypatch.setattr(control, "forward", lambda *args, own=control.forward: calls.append(1) or own(*args))
    model.sample(1, control=EDGES, steps=5)
    assert len(calls) == 5
    model.sample(1, control=EDGES, steps=5, control_interval=(0.6, 1.0))
    assert len(calls) == 5 + 3
    model.sample(1, control=EDGES, steps=5, control_scale=0.0)
    assert len(calls) == 5 + 3


def test_guess_mode_moves_away_from_the_base_without_its_control(models):
    """The output is that of the told half with a falling weight, away from the base that is told nothing."""
    model = models["guided"]
    own = model.plan(steps=1, guess=True, guidance_scale=3.0)
    given = model.given(2, control=EDGES, label=1)
    x, t = model.noise(2, 0)(), torch.tensor([7, 7])
    ((_, row),) = own.rows()
    found = model.denoiser(given).controlled(row.control).guided(x, t, 2.0)
    network, tensors = model.network, {name: torch.from_numpy(values) for name, values in given.items()}
    tensors["control_weights"] = torch.tensor([[1.0, 0.0, GUESS_FACTOR]] * 2)
    strong = network(x, t, tensors)
    del tensors["control"]
    weak = network(x, t, {**tensors, "label": torch.tensor([2, 2])})
    assert torch.allclose(found, strong + 2 * (strong - weak), atol=1e-5)


def test_a_model_without_a_control_takes_no_weights_and_no_hint(models):
    with pytest.raises(ValueError, match="control_scale, control_interval and guess are for models with a control"):
        models["uncontrolled"].plan(guess=True)
    with pytest.raises(ValueError, match="control: the model takes no such input"):
        models["uncontrolled"].sample(1, control=EDGES)
    with pytest.raises(ValueError, match="control: the model needs edges, a picture of 8×8; found none"):
        models["plain"].sample(1)


# --- training


@pytest.fixture(scope="module")
def controls(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and its control, both trained."""
    directory = tmp_path_factory.mktemp("controls") / "project"
    shutil.copytree(prepared_template, directory)
    write(directory)
    with contextlib.chdir(directory):
        assert main(["train", "base"]) == 0
        assert main(["train", "edges"]) == 0
    return directory


def write(directory: Path, **changes) -> None:
    """params.yaml with a base and a control of it.

    Args:
        changes: sections of the control.
    """
    tiny = {
        **TINY_PARAMS["models"]["tiny"],
        "process": {"timesteps": 50, "prediction": "x0", "variance": "fixed_small"},
    }
    training = {**tiny["training"], "steps": 20}
    base = {**tiny, "training": training}
    edges = {**base, "condition": {"control": CONTROL}, **changes}
    params = {**TINY_PARAMS, "variants": ["base"], "models": {"base": base, "edges": edges}}
    (directory / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(params))))


def test_training_leaves_the_base_as_it_is_and_names_it(controls):
    base, control = (load(controls / "models" / name) for name in ("base", "edges"))
    own, theirs = control.network.network.base.state_dict(), base.network.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    (trained,) = control.network.network.controls
    assert trained.zero[0].weight.any()
    facts = read_json(controls / "models/edges/model.json")["training"]["control_of"]
    assert facts["variant"] == "base"
    assert facts["sha256"] == sha256_of(controls / "models/base/model.safetensors")


def test_checkpoints_hold_what_is_trained_alone(controls):
    from safetensors import safe_open

    (checkpoint,) = sorted((controls / ".ddpm/training/edges").glob("*/*/state.safetensors"))[-1:]
    with safe_open(checkpoint, framework="pt") as file:
        names = set(file.keys())
    assert any(name.startswith("adam.exp_avg.network.controls.") for name in names)
    assert not any("network.base." in name for name in names)


@pytest.fixture
def project(controls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(controls, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_another_base_begins_another_training(project, capsys):
    shutil.rmtree(project / "models/base")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["base"]["training"]["steps"] = 5
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert main(["train", "base"]) == 0
    assert main(["train", "edges"]) == 0
    assert "the model that it controls has changed" in capsys.readouterr().out


def test_a_control_of_another_base_is_refused_with_both_hashes(project, capsys):
    shutil.copytree(project / "models/edges", project / "models/old")
    shutil.rmtree(project / "models/base")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["base"]["training"]["steps"] = 5
    params["models"]["edges"]["training"]["start_from"] = "models/old"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    before = read_json(project / "models/old/model.json")["training"]["control_of"]["sha256"]
    assert main(["train", "base"]) == 0
    assert main(["train", "edges"]) == 2
    words = capsys.readouterr().err
    assert f"models/old was trained to control base with the SHA-256 {before[:12]}…" in words
    assert f"not base with {sha256_of(project / 'models/base/model.safetensors')[:12]}…" in words


def test_figures_and_files_of_another_base_are_refused_with_both_hashes(project, capsys):
    before = sha256_of(project / "models/base/model.safetensors")
    shutil.copy(project / "models/edges/model.safetensors", project / "models/base/model.safetensors")
    now = sha256_of(project / "models/base/model.safetensors")
    for command in ("evaluate", "export"):
        assert main([command, "edges"]) == 2
        words = capsys.readouterr().err
        assert f"edges was trained to control base with the SHA-256 {before[:12]}…" in words
        assert f"models/base has {now[:12]}… now: run `ddpm train edges`" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"network": {**TINY_PARAMS["models"]["tiny"]["network"], "width": 16}},
            "network.width is 16, and 8 of models/base",
        ),
        (
            {"process": {"timesteps": 50, "variance": "fixed_small"}},
            "process.prediction is 'epsilon', and 'x0' of models",
        ),
        ({"condition": {"control": CONTROL, "label": {}}}, "this model has condition.label, and models/base has not"),
        ({"condition": {"control": {**CONTROL, "of": "nothing"}}}, "nothing: expected a model directory"),
        ({"condition": {"control": {**CONTROL, "side": 4}}}, "`side` is for `hint: colour`, found `hint: edges`"),
    ],
)
def test_a_base_that_does_not_fit_is_said_with_the_key(project, capsys, changes, words):
    write(project, **changes)
    assert main(["train", "edges"]) == 2
    assert words in capsys.readouterr().err


def test_ddpm_sample_takes_a_hint_and_its_weights(project, capsys):
    Image.fromarray(255 * EDGES.astype(np.uint8)).save("hint.png")
    line = ["sample", "models/edges", "--n", "2", "--control", "hint.png", "--out"]
    assert main([*line, "a.npz"]) == 0
    assert main([*line, "b.npz", "--control-scale", "0", "--control-interval", "0.5,1"]) == 0
    assert main([*line, "c.png", "--guess"]) == 0
    drawn = [np.load(name)["images"] for name in ("a.npz", "b.npz")]
    base = ddpm.load("models/base").sample(2, seed=0)
    assert np.array_equal(drawn[1], base)
    assert not np.array_equal(drawn[0], base)
    assert Image.open("c.png").info["Control"] == "hint.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("small.png")
    assert main(["sample", "models/edges", "--control", "small.png", "--out", "d.npz"]) == 2
    assert "--control small.png: 4 pixels wide and 4 high, expected 8 wide and 8 high" in capsys.readouterr().err


# --- several controls


def test_models_are_joined_and_follow_both_hints(project, capsys):
    other = {"control": {**CONTROL, "hint": "colour", "side": 4}}
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["colours"] = {**params["models"]["edges"], "condition": other}
    (project / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(params))))
    assert main(["train", "colours"]) == 0
    assert main(["join-controls", "models/both", "models/edges", "models/colours"]) == 0
    assert "control: edges at sigma 1, control_2: colour at 4×4" in capsys.readouterr().out
    parts, both = [ddpm.load(f"models/{name}") for name in ("edges", "colours")], ddpm.load("models/both")
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 1), np.uint8)
    given = both.given(2, control=EDGES, control_2=colours)
    x, t = both.noise(2, 0)(), torch.tensor([7, 7])
    out = [
        model.denoiser(model.given(2, control=hint))(x, t) for model, hint in zip(parts, (EDGES, colours), strict=True)
    ]
    assert not torch.allclose(both.denoiser(given)(x, t), out[0])
    hints = {"control": EDGES, "control_2": colours}
    assert np.array_equal(both.sample(2, **hints, control_scale=0.0), ddpm.load("models/base").sample(2, steps=50))
    Image.fromarray(255 * EDGES.astype(np.uint8)).save("edges.png")
    Image.fromarray(colours[..., 0]).save("colours.png")
    line = ["sample", "models/both", "--n", "1", "--out", "a.npz", "--control", "edges.png"]
    assert main(line) == 2
    assert "control_2: the model needs colour, a picture of 4×4×1; found none" in capsys.readouterr().err
    assert main([*line, "--control", "colours.png"]) == 0
    expected = both.sample(1, **hints)
    assert np.array_equal(np.load("a.npz")["images"], expected)


def test_controls_of_different_bases_are_not_joined(project, capsys):
    shutil.copytree(project / "models/edges", project / "models/other")
    card = read_json(project / "models/other/model.json")
    sha256, card["training"]["control_of"]["sha256"] = card["training"]["control_of"]["sha256"], "0" * 64
    write_json(project / "models/other/model.json", card)
    assert main(["join-controls", "models/both", "models/edges", "models/other"]) == 2
    words = capsys.readouterr().err
    assert f"{'0' * 12}…" in words
    assert f"{sha256[:12]}…" in words
    assert main(["join-controls", "models/both", "models/base", "models/edges"]) == 2
    assert "models/base controls no model" in capsys.readouterr().err
    assert not (project / "models/both").exists()

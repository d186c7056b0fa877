"""A model directory, its evaluation, its export and its samples."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import run_cli

import ddpm
from ddpm import __version__
from ddpm.config.params import load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError
from ddpm.evaluation.denoising import FILM_BYTES
from ddpm.evaluation.pictures import CAPTION_HEIGHT
from ddpm.files import sha256_of
from ddpm.layout import find_model
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.sample import sample_to


def test_a_model_directory_needs_nothing_else(trained: Path, tmp_path: Path):
    shutil.move(trained / "models/tiny", tmp_path / "elsewhere")
    model = ddpm.load(tmp_path / "elsewhere")
    images = model.sample(3, seed=1, steps=2)
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8


def test_saved_and_loaded_is_the_same_model(trained: Path, tmp_path: Path):
    # Outside a project, whose params.yaml would give it a plan.
    shutil.move(trained / "params.yaml", tmp_path / "params.yaml")
    ddpm.save(ddpm.load(trained / "models/tiny"), tmp_path)
    for name in ("model.safetensors", "model.json"):
        assert sha256_of(tmp_path / name) == sha256_of(trained / "models/tiny" / name)


def redescribed(before: str, after: str) -> Callable[[Path], object]:
    """What changes a model's card."""

    def damage(directory: Path) -> None:
        card = directory / "model.json"
        card.write_text(card.read_text().replace(before, after))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "model.json").unlink(), r"expected a model directory \(model.json\).* neither file"),
        (lambda d: (d / "model.safetensors").unlink(), "is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda d: (d / "model.json").write_text("{"), "damaged"),
        (redescribed('"width": 8', '"width": 16'), "another network: down.0.resample.conv.bias is"),
        (redescribed('"blocks": 1', '"blocks": 2'), "another network: missing"),
        (redescribed('"groups": 4', '"groups": 7'), "tiny/model.json: network: groups is 7, which does not divide"),
        (redescribed('"format": 1', '"format": 7'), "`format`.*found 7"),
    ],
)
def test_a_damaged_model_is_named(trained: Path, damage, words):
    damage(trained / "models/tiny")
    with pytest.raises(UserError, match=words):
        ddpm.load(trained / "models/tiny")


@pytest.mark.parametrize(
    "overrides", [{}, {"sampler": "ancestral", "steps": 50}, {"eta": 1.0}, {"steps": 1}, {"spacing": "quadratic"}]
)
def test_the_exported_model_draws_what_the_trained_one_draws(trained: Path, overrides):
    """Torch and numpy + onnxruntime: one plan, one noise, the same images, for every kind of plan."""
    model, sampler = ddpm.load(trained / "models/tiny"), Sampler(trained / "deploy/tiny")
    model = model.sampled_by(load_params().variant("tiny").sampling)
    ours = model.sample(6, seed=9, **overrides).astype(int)
    theirs = sampler.sample(6, seed=9, **overrides).astype(int)
    assert np.abs(ours - theirs).max() <= 1  # a level: where rounding falls on the other side
    assert np.mean(ours != theirs) < 0.01


@pytest.mark.parametrize("open_", [lambda p: ddpm.load(p / "models/tiny"), lambda p: Sampler(p / "deploy/tiny")])
def test_an_image_does_not_depend_on_its_batch(trained: Path, open_):
    model = open_(trained)
    options = {"seed": 4, "sampler": "ancestral", "steps": 10}
    together = model.sample(7, batch_size=7, **options).astype(int)
    apart = model.sample(7, batch_size=2, **options).astype(int)
    assert np.abs(together - apart).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_parity_is_recorded(trained: Path):
    parity = json.loads((trained / "deploy/tiny/parity.json").read_text())
    assert parity["passed"] is True
    assert 0 < parity["max_abs_difference"] <= parity["tolerance"]
    assert set(parity["files"]) == {"denoiser.onnx", "sampler.onnx"}
    for name, file in parity["files"].items():
        assert file["passed"]
        assert file["max_abs_difference"] <= parity["max_abs_difference"]
        assert file["sha256"] == sha256_of(trained / "deploy/tiny" / name)
    facts = json.loads((trained / "deploy/tiny/sampler.json").read_text())
    assert facts["denoiser_sha256"] == parity["files"]["denoiser.onnx"]["sha256"]


def test_an_export_that_differs_is_refused_and_the_old_one_stays(trained: Path, monkeypatch: pytest.MonkeyPatch):
    """The fault: an exporter that loses a part of the network."""
    from ddpm.export import files
    from ddpm.stages import export as stage

    def lossy(model, path):
        with torch.no_grad():
            model.network.out_conv.bias += 0.05
            files.export_denoiser(model, path)
            model.network.out_conv.bias -= 0.05

    before = sha256_of(trained / "deploy/tiny/denoiser.onnx")
    monkeypatch.setattr(stage, "export_denoiser", lossy)
    with pytest.raises(UserError, match=r"denoiser.onnx differs from the trained model by .*nothing was exported"):
        stage.export_variant(load_params(), "tiny")
    assert sha256_of(trained / "deploy/tiny/denoiser.onnx") == before


def test_the_exported_files_tell_no_paths_and_are_the_same_again(trained: Path):
    files = sorted((trained / "deploy/tiny").iterdir())
    assert [file.name for file in files] == ["denoiser.onnx", "parity.json", "sampler.json", "sampler.onnx"]
    before = {file: file.read_bytes() for file in files}
    assert not any(b".py" in content for content in before.values())
    done = run_cli(trained, "export", "tiny")
    assert done.returncode == 0, done.stderr
    assert "sampler.onnx is the trained model to " in done.stdout
    assert {file: file.read_bytes() for file in files} == before


def test_figures_and_pictures(trained: Path):
    metrics = json.loads((trained / "reports/tiny/metrics.json").read_text())
    protocol = json.loads((trained / "reports/tiny/protocol.json").read_text())
    assert metrics["protocol"] == protocol["id"]
    assert metrics["fid"] > metrics["fid_floor"] > 0
    assert 1 <= metrics["inception_score"] <= 10
    assert metrics["samples"] == 64
    assert protocol["sampler"] == "ddim"
    assert protocol["samples"] == 64
    assert 0 <= metrics["precision"] <= 1
    assert 0 <= metrics["recall"] <= 1
    assert metrics["fid_low"] < metrics["fid"] < metrics["fid_high"]
    for picture, columns, captions in (("samples", 8, 1), ("denoising", 6, 2), ("neighbours", 8, 2)):
        image = Image.open(trained / f"reports/tiny/{picture}.png")
        step = 2 + 8 * -(-(600 - 2 * (columns + 1)) // (8 * columns))
        assert image.size == (columns * step + 2, 8 * step + 2 + captions * CAPTION_HEIGHT)
        assert image.width >= 600
        assert image.text == {  # type: ignore[attr-defined]
            "Software": f"ddpm {__version__}",
            "Model": "tiny",
            "Training": metrics["model"],
            "Seed": "3",
            "Plan": "sampler ddim, steps 5, eta 0.0, spacing trailing, clip True",
            "Protocol": protocol["id"],
        }


def test_the_film_goes_from_noise_to_the_samples(trained: Path):
    film = Image.open(trained / "reports/tiny/denoising.gif")
    assert film.n_frames == 6  # x_T, and one after each of the 5 steps
    assert (trained / "reports/tiny/denoising.gif").stat().st_size <= FILM_BYTES
    assert b"Plan: sampler ddim, steps 5" in film.info["comment"]


def test_the_likelihood_is_the_sum_of_its_terms(trained: Path):
    metrics = json.loads((trained / "reports/tiny/metrics.json").read_text())
    table = np.loadtxt(trained / "reports/tiny/nll.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == list(range(50 + 1))  # the decoder's term first, the prior's last
    assert metrics["nll_train"] == pytest.approx(table[:, 1].sum())
    assert metrics["nll_validation"] == pytest.approx(table[:, 2].sum())


def test_a_plan_for_all_models_is_part_of_the_protocol(trained: Path):
    params = load_params()
    plan = SamplingConfig(sampler="ancestral", steps=4)
    evaluation = params.evaluation.model_copy(update={"sampling": plan, "nll_samples": 0})
    before = json.loads((trained / "reports/tiny/metrics.json").read_text())
    evaluate_variant(params.model_copy(update={"evaluation": evaluation}), "tiny")
    metrics = json.loads((trained / "reports/tiny/metrics.json").read_text())
    protocol = json.loads((trained / "reports/tiny/protocol.json").read_text())
    assert (protocol["sampler"], protocol["steps"]) == ("ancestral", 4)
    assert metrics["protocol"] != before["protocol"]
    assert metrics["gflops_per_image"] == pytest.approx(before["gflops_per_image"] * 4 / 5)
    assert "nll_train" not in metrics
    assert (trained / "reports/tiny/nll.csv").read_text() == "t,train,validation\n"


def test_a_plan_that_a_model_has_not_is_refused(trained: Path):
    params = load_params()
    evaluation = params.evaluation.model_copy(update={"sampling": SamplingConfig(steps=51)})
    with pytest.raises(UserError, match=r"models/tiny cannot be sampled by evaluation.sampling: .*found 51"):
        evaluate_variant(params.model_copy(update={"evaluation": evaluation}), "tiny")


def test_the_same_figures_again(trained: Path):
    before = {p.name: sha256_of(p) for p in (trained / "reports/tiny").iterdir()}
    assert run_cli(trained, "evaluate", "tiny").returncode == 0
    assert {p.name: sha256_of(p) for p in (trained / "reports/tiny").iterdir()} == before


def test_a_trained_model_is_sampled_as_the_exported_one_is(trained: Path):
    """By the plan of params.yaml, of which training knows nothing; elsewhere by its own."""
    mine, exported = (sample_to(model, Path("s.npz"), count=4) for model in ("models/tiny", "deploy/tiny"))
    np.testing.assert_allclose(mine.astype(int), exported.astype(int), atol=1)
    shutil.copytree("models/tiny", "elsewhere")
    assert np.any(sample_to("elsewhere", Path("s.npz"), count=4) != mine)


def test_a_models_name_alone_is_its_model_directory_or_else_its_export(trained: Path):
    Path("tiny").mkdir()  # a folder that is no model, such as the package `ddpm` in the project of a model `ddpm`
    by_name, by_path = (sample_to(model, Path("s.npz"), count=2) for model in ("tiny", "models/tiny"))
    np.testing.assert_array_equal(by_name, by_path)
    shutil.rmtree("models")
    exported = sample_to("deploy/tiny", Path("s.npz"), count=2)
    np.testing.assert_array_equal(sample_to("tiny", Path("s.npz"), count=2), exported)


@pytest.mark.parametrize(
    ("model", "accepted", "words"),
    [
        ("models/new", {}, "models/new: expected .*; no such directory; `ddpm train new` makes models/new$"),
        ("deploy/new", {}, "deploy/new: expected .*; no such directory; `ddpm export new` makes deploy/new$"),
        ("new", {}, "new: expected .*; no such directory; `ddpm train new` makes models/new$"),
        ("new", {"trained": False}, "new: expected a deploy directory .*; `ddpm export new` makes deploy/new$"),
        ("elsewhere/new", {}, r"elsewhere/new: expected .* no such directory$"),
    ],
)
def test_a_model_that_is_missing_is_answered_with_the_command_that_makes_it(tmp_path, model, accepted, words):
    with pytest.raises(UserError, match=words.replace("makes ", f"makes {tmp_path}/")):
        find_model(model, root=tmp_path, **accepted)


@pytest.mark.parametrize("model", ["models/tiny", "deploy/tiny"])
def test_samples_go_where_out_says(trained: Path, model: str):
    images = sample_to(model, Path("s.npz"), count=3, seed=1)
    np.testing.assert_array_equal(np.load("s.npz")["images"], images)
    sample_to(model, Path("grid.png"), count=3, seed=1)
    assert Image.open("grid.png").size == (2 * 306 + 2, 2 * 306 + 2)
    sample_to(model, Path("GRID.PNG"), count=3, seed=1)
    assert Path("GRID.PNG").read_bytes() == Path("grid.png").read_bytes()
    assert Image.open("grid.png").text["Plan"] == "sampler ddim, steps 5, eta 0.0, spacing trailing, clip True"
    assert Image.open("grid.png").text["Seed"] == "1"
    sample_to(model, Path("pictures"), count=3, seed=1)
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(np.array(Image.open("pictures/1.png")), images[1, :, :, 0])
    assert Image.open("pictures/1.png").text["Sample"] == "1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--out", "a.npz"], "no such directory"),
        (["prepared", "--out", "a.npz"], "it has neither file"),
        (["models/tiny", "--out", "a.jpg"], "expected FILE.npz, FILE.png or a directory"),
        (["models/tiny", "--out", "models"], "not an empty directory"),
        (["models/tiny", "--out", "a.npz", "--n", "0"], "--n must be at least 1"),
        (["models/tiny", "--out", "a.npz", "--steps", "51"], "found 51"),
        (["models/tiny", "--out", "a.npz", "--sampler", "eulerian"], "no sampler 'eulerian'"),
        (["models/tiny", "--out", "a.npz", "--eta", "-1"], "eta must be in 0..1"),
        (["models/tiny", "--out", "a.npz", "--seed", "-1"], "--seed must be in"),
        (["models/tiny", "--out", "a.npz", "--batch-size", "0"], "--batch-size must be"),
        (["deploy/tiny", "--out", "a.npz", "--steps", "51"], "found 51"),
    ],
)
def test_wrong_requests_get_one_line_and_exit_code_2(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments, words
):
    from ddpm.cli import main

    assert main(["sample", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("a.npz").exists()


def test_an_out_that_cannot_be_written_is_named(trained: Path, capsys: pytest.CaptureFixture[str]):
    from ddpm.cli import main

    Path("file").write_text("")
    assert main(["sample", "deploy/tiny", "--n", "1", "--steps", "1", "--out", "file/a.npz"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm sample: file")
    assert error.count("\n") == 1


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_stage_without_its_input_says_which_stage_makes_it(
    tmp_path: Path, stage: str, prepared_template: Path, monkeypatch, capsys
):
    from ddpm.cli import main

    shutil.copy(prepared_template / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([stage, "tiny"]) == 2
    error = capsys.readouterr().err
    assert "missing" in error or "ddpm prepare" in error
    assert error.count("\n") == 1
    assert main([stage, "huge"]) == 2
    assert "there is no model 'huge' in params.yaml; it has: tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("prepared/images.npy", "train tiny"),
        ("prepared/train.npy", "train tiny"),
        ("prepared/manifest.json", "train tiny"),
        ("extractor/extractor.json", "evaluate tiny"),
        ("extractor/model.safetensors", "evaluate tiny"),
        ("models/tiny/model.safetensors", "export tiny"),
        ("models/tiny/model.json", "export tiny"),
        ("deploy/tiny/denoiser.onnx", "sample deploy/tiny --out a.npz"),
        ("deploy/tiny/sampler.json", "sample deploy/tiny --out a.npz"),
    ],
)
def test_a_truncated_file_is_named_by_the_command_that_reads_it(trained: Path, capsys, file: str, command: str):
    from ddpm.cli import main

    whole = Path(file).read_bytes()
    Path(file).write_bytes(whole[: len(whole) // 2])
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert str(Path(file).parent) in error
    assert "damaged" in error or "does not load" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"width": 10}, "groups is 4, which does not divide a level's 10 channels (width × multiplier)"),
        ({"attention_resolutions": [16]}, "attention_resolutions names [16], but the levels are 8, 4 pixels a side"),
        (
            {"multipliers": [1, 1, 1, 1, 1]},
            "8 is not a multiple of 16: use fewer multipliers or another data.image_size",
        ),
        ({"kind": "vae"}, "network.kind vae and objective.loss elbo go together; found vae and simple"),
        ({"kind": "mlp"}, "kind: mlp is for points; the data are images"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_training(project: Path, capsys, network: dict, words: str):
    from ddpm.cli import main

    params = yaml.safe_load(Path("params.yaml").read_text())
    tiny = params["models"]["tiny"]
    tiny["network"] = network if "kind" in network else {**tiny["network"], **network}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert main(["train", "tiny"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("models").exists()

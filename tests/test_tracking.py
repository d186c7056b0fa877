"""MLflow's side of the project, against a real SQLite store, with a small real ONNX model."""

import base64
import hashlib
import io
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from finished import SHAPE, VARIANT, silent_network, write_guide, write_outputs
from mlflow.exceptions import MlflowException
from mlflow_server import mlflow_running
from PIL import Image

from ddpm import tracking
from ddpm.errors import UpstreamError, UserError


@pytest.fixture
def project(finished) -> Path:
    return finished


def client(root: Path):
    return tracking.load_mlflow(root).MlflowClient()


def holder(root: Path, alias: str) -> int:
    """The version that has an alias."""
    return int(client(root).get_model_version_by_alias("ddpm-dots", alias).version)


def test_a_registered_version_holds_all_that_is_known_of_it(project):
    made = tracking.register(VARIANT)
    assert (made.model, made.version, made.created, made.aliases) == ("ddpm-dots", 1, True, ("challenger",))
    run = client(project).get_run(made.run_id)
    assert run.data.metrics["eval/fid"] == 20.0
    assert run.data.metrics["export/parity_max_abs_difference"] == 1e-6
    assert run.data.params["network.multipliers"] == "[1, 2]"
    assert run.data.params["protocol.samples"] == "2000"
    assert run.data.params["trained.device"] == "cpu"
    assert run.data.tags["protocol"] == "protocol-2000"
    assert run.data.tags["lineage"] == tracking.lineage_of(VARIANT)
    assert len(run.data.tags["dvc.lock"]) == 64
    assert [m.step for m in client(project).get_metric_history(made.run_id, "train/loss")] == [5, 10]
    assert {f.path for f in client(project).list_artifacts(made.run_id)} >= {
        "samples.png",
        "metrics.json",
        "eval_protocol.json",
        "dvc.lock",
    }
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("dots", "d" * 16)
    assert run.info.status == "FINISHED"


def test_an_imported_model_is_registered_without_the_stages_that_would_have_trained_it(project):
    """No dvc.lock, no rows in the loss curve, and a card that tells little of data and training."""
    (project / "dvc.lock").unlink()
    (project / f"models/{VARIANT}/loss.csv").write_text("step,loss,grad_norm,learning_rate\n")
    path = project / f"models/{VARIANT}/model.json"
    card = json.loads(path.read_text())
    card["training"] = {**dict.fromkeys(card["training"]), "fingerprint": "f", "weights": "imported"}
    card["data"] |= {"mean": None, "std": None, "train_count": None}
    path.write_text(json.dumps(card))
    made = tracking.register(VARIANT)
    assert (made.version, made.created) == (1, True)
    assert not tracking.register(VARIANT).created
    run = client(project).get_run(made.run_id)
    assert run.data.params["trained.device"] == "null"
    assert "dvc.lock" not in run.data.tags
    metrics = project / f"reports/{VARIANT}/metrics.json"
    metrics.write_text(metrics.read_text().replace("20.0", "19.0"))
    assert tracking.register(VARIANT).created
    shutil.rmtree(metrics.parent)
    with pytest.raises(UserError, match=f"reports/{VARIANT}: no such directory; run `ddpm evaluate {VARIANT}`"):
        tracking.find(VARIANT)


def test_the_registered_model_samples_what_the_exported_one_does(project):
    from ddpm.deploy.runtime import Sampler

    tracking.register(VARIANT)
    model = tracking.load_mlflow(project).pyfunc.load_model("models:/ddpm-dots@challenger")
    images = model.predict(pd.DataFrame({"n": [3, 2], "seed": [1, 2]}))
    assert images.shape == (5, *SHAPE)
    assert images.dtype == np.uint8
    exported = Sampler(project / "deploy" / VARIANT)
    np.testing.assert_array_equal(images, np.concatenate([exported.sample(3, seed=1), exported.sample(2, seed=2)]))
    chosen = model.predict(pd.DataFrame({"n": [3], "seed": [1], "sampler": ["ancestral"], "steps": [2]}))
    np.testing.assert_array_equal(chosen, exported.sample(3, seed=1, sampler="ancestral", steps=2))


@pytest.fixture
def ask(project):
    """The registered model behind the function that answers for MLflow's server."""
    from mlflow.pyfunc.scoring_server import invocations

    tracking.register(VARIANT)
    model = tracking.load_mlflow(project).pyfunc.load_model("models:/ddpm-dots@challenger")

    def ask(records: str):
        request = f'{{"dataframe_records": {records}}}'
        return invocations(request, "application/json", model, model.metadata.get_input_schema())

    return ask


def test_the_registered_model_answers_as_a_server_would_be_asked(project, ask):
    from ddpm.deploy.runtime import Sampler

    answer = ask(f'[{{"n": 2, "seed": {2**64 - 1}}}, {{"n": 1.0, "seed": 0}}]')
    assert answer.status == 200
    images = np.array(json.loads(answer.response)["predictions"], dtype=np.uint8)
    exported = Sampler(project / "deploy" / VARIANT)
    np.testing.assert_array_equal(images, np.concatenate([exported.sample(2, seed=2**64 - 1), exported.sample(1)]))
    for wrong, words in (
        ('"label": 7', "label: the model takes no such input; it takes: image, mask"),
        ('"guidance_scale": 2', "guidance_scale must be 1"),
    ):
        with pytest.raises(MlflowException, match=words) as refused:
            ask(f'[{{"n": 1, {wrong}}}]')
        assert refused.value.get_http_status_code() == 400


def make_conditional(deploy: Path, drop: float = 0.1) -> None:
    """A model with two classes in place of the unconditional one: it answers with x · factors[label]."""
    facts = json.loads((deploy / "sampler.json").read_text())
    facts |= {"format": 2, "condition": {"label": {"drop": drop}}, "data": {"classes": ["cat", "dog"]}}
    (deploy / "sampler.json").write_text(json.dumps(facts))
    model = silent_network()
    model.graph.input.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([0.5, 0.9, 0.7]), "factors"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(1, 4), "axes"))
    model.graph.node[0].input[1] = "own"
    model.graph.node.insert(0, onnx.helper.make_node("Gather", ["factors", "label"], ["picked"]))
    model.graph.node.insert(1, onnx.helper.make_node("Unsqueeze", ["picked", "axes"], ["own"]))
    onnx.save(model, deploy / "denoiser.onnx")


def test_a_registered_conditional_model_takes_classes_and_guidance(project, request):
    from ddpm.deploy.runtime import Sampler

    make_conditional(project / "deploy" / VARIANT)
    ask = request.getfixturevalue("ask")
    answer = ask(
        '[{"n": 2, "label": "dog", "guidance_scale": 3}, {"n": 2, "label": 1.0, "seed": 1},'
        ' {"n": 3, "label": [0, "dog"], "guidance_scale": 2, "guidance_interval": [0, 0.5]}, {"n": 2, "seed": 4}]'
    )
    exported = Sampler(project / "deploy" / VARIANT)
    expected = [
        exported.sample(2, label=1, guidance_scale=3),
        exported.sample(2, seed=1, label=1),
        exported.sample(3, label=["cat", "dog"], guidance_scale=2, guidance_interval=[0, 0.5]),
        exported.sample(2, seed=4),
    ]
    images = np.array(json.loads(answer.response)["predictions"], dtype=np.uint8)
    np.testing.assert_array_equal(images, np.concatenate(expected))
    assert (expected[0] != exported.sample(2, label=1)).any()
    for record, words in {
        '{"label": "cow"}': "label: no class 'cow'; there are: cat, dog",
        '{"label": 2}': "label: no class 2",
        '{"label": true}': "label: no class True",
        '{"label": 0.5}': "label: no class 0.5",
        '{"label": []}': "label: expected at least one class, found none",
        '{"guidance_scale": true}': "`guidance_scale` must be a number, found True",
        '{"guidance_scale": "2"}': "`guidance_scale` must be a number, found '2'",
        '{"guidance_scale": -1}': r"guidance_scale must be in 0\.\.1000, found -1",
        '{"guidance_scale": Infinity}': r"guidance_scale must be in 0\.\.1000, found inf",
        '{"guidance_scale": 2, "guidance_interval": 1}': "`guidance_interval` must be two numbers, found 1",
        '{"guidance_scale": 2, "guidance_interval": [0, "x"]}': "`guidance_interval` must be a number, found 'x'",
        '{"guidance_scale": 2, "guidance_interval": [1, 0]}': "low <= high",
    }.items():
        with pytest.raises(MlflowException, match=words) as refused:
            ask(f'[{{"n": 1, {record[1:]}]')
        assert refused.value.get_http_status_code() == 400


def measured_with(root: Path, guide: str) -> None:
    path = root / f"reports/{VARIANT}/protocol.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guide": guide}))


def record_guide(root: Path) -> Path:
    """As after the training of the guide."""
    lock = root / "dvc.lock"
    lock.write_text(f"{lock.read_text()}  train-guide@classifier:\n    outs: [{{path: x, md5: '1'}}]\n")
    return lock


def test_a_registered_model_with_a_guide_takes_classes_and_a_scale_from_0(project, request):
    """What it came of has the training of its guide in it."""
    from ddpm.deploy.runtime import Sampler

    deploy = project / "deploy" / VARIANT
    write_guide(deploy, classes=["dark", "light"])
    measured_with(project, "classifier g")
    with pytest.raises(UserError, match=r"no entry for train-guide@classifier"):
        tracking.register(VARIANT)
    lock = record_guide(project)
    ask = request.getfixturevalue("ask")
    answer = ask('[{"n": 2, "label": "light"}, {"n": 2, "label": 1, "guidance_scale": 0, "sampler": "ancestral"}]')
    exported = Sampler(deploy)
    expected = [
        exported.sample(2, label=1, guidance_scale=1),
        exported.sample(2, label=1, guidance_scale=0, sampler="ancestral"),
    ]
    images = np.array(json.loads(answer.response)["predictions"], dtype=np.uint8)
    np.testing.assert_array_equal(images, np.concatenate(expected))
    assert (expected[0] != exported.sample(2, label=1, guidance_scale=0)).any()
    again = tracking.register(VARIANT)
    assert not again.created
    assert client(project).get_run(again.run_id).data.params["sampling.guide"] == "models/classifier"
    lock.write_text("'2'".join(lock.read_text().rsplit("'1'", 1)))
    assert tracking.register(VARIANT).created


def test_figures_of_another_guide_are_not_registered(project):
    write_guide(project / "deploy" / VARIANT, classes=["dark", "light"])
    measured_with(project, "classifier h")
    record_guide(project)
    with pytest.raises(UserError, match=r"measured with the guide classifier h, but .* with classifier g: evaluate"):
        tracking.register(VARIANT)


def test_the_signature_names_all_that_any_model_is_told(project):
    """MLflow leaves out what the signature does not have, in silence; so the model comes to see it, and refuses."""
    tracking.register(VARIANT)
    signature = tracking.load_mlflow(project).models.get_model_info("models:/ddpm-dots/1").signature
    drawing = {"n", "seed", "sampler", "steps", "eta", "guidance_scale", "guidance_interval"}
    drawing |= {"control_scale", "control_interval", "guess"}
    columns = {"label", "prompt", "low", "low_noise", "image", "mask", "control", "control_2", "control_3"}
    assert {*signature.inputs.input_names()} == drawing | columns | {"inpainting", "resamples", "jump"}


@pytest.mark.slow
def test_mlflows_own_command_serves_the_registered_model(project, monkeypatch):
    from ddpm.deploy.runtime import Sampler

    tracking.register(VARIANT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.store_uri())
    command = ["models", "serve", "-m", "models:/ddpm-dots@challenger", "--env-manager", "local"]
    with mlflow_running(*command, health="/ping") as address:
        drawn = httpx.post(f"{address}/invocations", json={"dataframe_records": [{"n": 3, "seed": 5}]}, timeout=120)
        refused = httpx.post(f"{address}/invocations", json={"dataframe_records": [{"n": -1}]}, timeout=120)
    images = np.array(drawn.json()["predictions"], np.uint8)
    np.testing.assert_array_equal(images, Sampler(project / "deploy" / VARIANT).sample(3, seed=5))
    assert refused.status_code == 400
    assert "`n` must be at least 1, found -1" in refused.json()["message"]


def test_what_nothing_can_be_drawn_by_is_refused_over_http(ask):
    for records, words in {
        '[{"n": -1}]': "`n` must be at least 1, found -1",
        '[{"n": 0}]': "`n` must be at least 1, found 0",
        '[{"n": 2}, {"n": null}]': "`n` must be at least 1, found None",
        '[{"n": 1.5}]': "`n` must be an exact whole number, found 1.5",
        '[{"n": "4"}]': "`n` must be an exact whole number, found '4'",
        '[{"n": true}]': "`n` must be an exact whole number, found True",
        '[{"n": [1, 2]}]': r"`n` must be an exact whole number, found \[1, 2\]",
        '[{"n": 1000000000000000}]': "`n` must be at most 1024 in all rows together, found 1000000000000000",
        '[{"n": 1000}, {"n": 25}]': "`n` must be at most 1024 in all rows together, found 1025",
        '[{"n": 1, "seed": 1.5}]': "`seed` must be an exact whole number, found 1.5",
        f'[{{"n": 1, "seed": {2**64 - 1}}}, {{"n": 1}}]': "`seed` must be an exact whole number, found 1.8",
        '[{"n": 1, "seed": -1}]': "seed must be in",
        '[{"n": 1, "steps": 2.5}]': "`steps` must be an exact whole number, found 2.5",
        '[{"n": 1, "steps": -1}]': "steps must be in",
        '[{"n": 1, "sampler": "x"}]': "no sampler 'x'",
        '[{"n": 1, "sampler": 5}]': "`sampler` must be text, found 5",
        '[{"n": 1, "eta": true}]': "`eta` must be a number, found True",
        '[{"n": 1, "eta": "0.5"}]': "`eta` must be a number, found '0.5'",
    }.items():
        with pytest.raises(MlflowException, match=words) as refused:
            ask(records)
        assert refused.value.get_http_status_code() == 400


def test_pictures_come_in_base64(project, ask):
    """Through MLflow's own parsing; what is white in the mask is kept."""
    from ddpm.deploy.runtime import Sampler

    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    mask = np.zeros(SHAPE[:2], np.uint8)
    mask[1:] = 255

    def png(array) -> str:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    part = {"image": png(image[..., 0]), "mask": [png(mask)]}
    answer = ask(json.dumps([{"n": 3, **part}, {"n": 1}]))
    images = np.array(json.loads(answer.response)["predictions"], dtype=np.uint8)
    assert len(images) == 4
    assert (images[:3, 1:] == image[1:]).all()
    assert (images[3, 1:] != image[1:]).any()
    repaint = {"sampler": "ancestral", "steps": 4, "inpainting": "repaint", "resamples": 3, "jump": 2}
    answer = ask(json.dumps([{"n": 2, **part, **repaint}]))
    drawn = np.array(json.loads(answer.response)["predictions"], dtype=np.uint8)
    exported = Sampler(project / "deploy" / VARIANT)
    np.testing.assert_array_equal(drawn, exported.sample(2, image=image, mask=mask > 0, **repaint))
    assert (drawn != exported.sample(2, image=image, mask=mask > 0, sampler="ancestral", steps=4)).any()
    for wrong, words in (
        ({"inpainting": "repaint"}, "inpainting is how a part of an image is kept: it needs image and mask"),
        ({**part, "inpainting": 3}, "`inpainting` must be text, found 3"),
        ({**part, **repaint, "jump": 1.5}, "`jump` must be an exact whole number, found 1.5"),
        ({**part, "resamples": 3}, "resamples is used by inpainting repaint alone"),
        ({"image": "cat", "mask": "cat"}, "image: expected a PNG image in base64, found 'cat'"),
        ({"image": 7, "mask": 7}, "image: expected a PNG image in base64, found 7"),
        ({"image": part["image"]}, "image needs mask as well"),
        ({"image": png(np.zeros((9, 9), np.uint8)), "mask": part["mask"]}, "image: 9 pixels wide and 9 high"),
        ({"low": part["image"]}, "low: the model takes no such input"),
        ({"low_noise": 0.1}, "low_noise: the model takes no such input"),
    ):
        with pytest.raises(MlflowException, match=words) as refused:
            ask(json.dumps([{"n": 1, **wrong}]))
        assert refused.value.get_http_status_code() == 400


def test_nan_is_answered_over_http_with_500_and_the_reason(project, request):
    onnx.save(silent_network(float("nan")), project / "deploy" / VARIANT / "denoiser.onnx")
    ask = request.getfixturevalue("ask")
    with pytest.raises(MlflowException, match="the network's output is NaN or infinite in 3 of 3 samples") as failed:
        ask('[{"n": 3}]')
    assert failed.value.get_http_status_code() == 500


def test_the_logged_model_is_code_and_carries_no_pickle(project):
    tracking.register(VARIANT)
    directory = Path(tracking.load_mlflow(project).artifacts.download_artifacts("models:/ddpm-dots/1"))
    names = [path.name for path in directory.rglob("*") if path.is_file()]
    assert "pyfunc.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]


def test_it_loads_where_neither_this_checkout_nor_torch_is_in_reach(project):
    tracking.register(VARIANT)
    code = textwrap.dedent("""
        import sys, mlflow
        sys.modules["torch"] = None
        model = mlflow.pyfunc.load_model(sys.argv[1])
        import ddpm
        print(ddpm.__file__, model.predict([{"n": 2, "seed": 0}]).shape)
    """)
    # -P and a foreign directory keep the checkout off the path; a finder that pip made for it is switched off.
    blocked = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", blocked + code, "models:/ddpm-dots/1"],
        cwd=project / "mlflow",
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking.store_uri(project)},
        capture_output=True,
        text=True,
    )
    assert "(2, 4, 4, 1)" in done.stdout, done.stderr
    assert str(project) in done.stdout


def test_the_same_lineage_is_registered_once_and_another_one_again(project):
    first = tracking.register(VARIANT)
    again = tracking.register(VARIANT)
    assert (again.version, again.run_id, again.created) == (first.version, first.run_id, False)
    assert len(client(project).search_runs([client(project).get_run(first.run_id).info.experiment_id])) == 1
    write_outputs(project, lock="2")
    assert tracking.find(VARIANT) is None
    assert tracking.register(VARIANT).version == 2
    assert holder(project, "challenger") == 2


def test_a_challenger_whose_alias_was_lost_has_it_again(project):
    tracking.register(VARIANT)
    client(project).delete_registered_model_alias("ddpm-dots", "challenger")
    again = tracking.register(VARIANT)
    assert (again.aliases, again.created) == (("challenger",), False)
    assert holder(project, "challenger") == 1


def test_the_champion_is_the_best_version_and_every_decision_has_its_reason(project):
    expected = [(20.0, 2000, 1, "no champion"), (25.0, 2000, 1, "no lower"), (10.0, 500, 1, "samples: 2000 → 500"),
                (15.0, 2000, 4, "15 against 20 of version 1")]  # fmt: skip
    for version, (fid, samples, champion, reason) in enumerate(expected, 1):
        write_outputs(project, fid=fid, samples=samples, lock=str(version))
        tracking.register(VARIANT)
        decision = tracking.promote(VARIANT)
        assert reason in decision.reason
        assert holder(project, "champion") == champion
        tags = client(project).get_model_version("ddpm-dots", str(version)).tags
        assert tags["promotion_reason" if decision.promote else "refusal_reason"] == decision.reason
        assert tracking.find(VARIANT).reason == decision.reason


def test_promoting_the_champion_again_changes_nothing(project):
    tracking.register(VARIANT)
    first, again = tracking.promote(VARIANT), tracking.promote(VARIANT)
    assert (again.promote, again.reason) == (first.promote, first.reason)


def test_what_was_not_registered_is_not_promoted(project):
    with pytest.raises(UserError, match="ddpm register tiny"):
        tracking.promote(VARIANT)


def test_a_model_that_failed_parity_is_not_registered(project):
    write_outputs(project, passed=False)
    with pytest.raises(UserError, match=r"parity.json: .* not registered"):
        tracking.register(VARIANT)
    assert not client(project).search_registered_models()


@pytest.mark.parametrize(
    ("file", "other"), [("reports/tiny/metrics.json", "e"), ("deploy/tiny/sampler.json", {"fingerprint": "e"})]
)
def test_what_was_made_of_another_training_is_not_registered(project, file, other):
    content = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({**content, "model" if "model" in content else "training": other}))
    with pytest.raises(UserError, match=rf"^{Path(file).parent} was made of another training than models/tiny: "):
        tracking.register(VARIANT)
    assert not client(project).search_registered_models()


def test_what_was_run_by_hand_since_dvc_lock_was_written_is_not_registered(project):
    """Else it would have the lineage, and so perhaps the version, of what was there before."""
    path = project / f"reports/{VARIANT}/metrics.json"
    recorded = hashlib.md5(path.read_bytes()).hexdigest()
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"][f"evaluate@{VARIANT}"]["outs"] = [
        {"path": f"reports/{VARIANT}/metrics.json", "hash": "md5", "md5": recorded}
    ]
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert tracking.register(VARIANT).version == 1
    path.write_text(path.read_text().replace("20.0", "19.0"))
    with pytest.raises(UserError, match=r"metrics.json is not the file that dvc.lock records; .*evaluate@tiny"):
        tracking.register(VARIANT)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("dvc.lock", "dvc repro prepare"),
        (f"reports/{VARIANT}/metrics.json", f"dvc repro evaluate@{VARIANT}"),
        (f"deploy/{VARIANT}/parity.json", f"dvc repro export@{VARIANT}"),
        ("prepared/manifest.json", "dvc repro prepare"),
    ],
)
def test_a_stage_that_has_not_run_is_named_with_the_command_that_runs_it(project, missing, advice):
    (project / missing).unlink()
    with pytest.raises(UserError, match=advice):
        tracking.register(VARIANT)


def test_a_damaged_file_is_named(project):
    (project / f"reports/{VARIANT}/metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: damaged"):
        tracking.register(VARIANT)


def test_a_uri_resolves_to_the_deploy_directory(project):
    tracking.register(VARIANT)
    directory = tracking.resolve("models:/ddpm-dots@challenger")
    assert (directory / "denoiser.onnx").read_bytes() == (project / f"deploy/{VARIANT}/denoiser.onnx").read_bytes()


@pytest.mark.parametrize("uri", ["models:/ddpm-dots@champion", "models:/none/1", "models:/none@champion", "models:/"])
def test_a_uri_of_nothing_is_answered_in_one_line(project, uri):
    tracking.register(VARIANT)
    with pytest.raises(UserError, match=uri) as caught:
        tracking.resolve(uri)
    assert "\n" not in str(caught.value)


def machine_load(root: Path, run_id: str) -> list[str]:
    """Metrics of the machine that a run has."""
    return [key for key in client(root).get_run(run_id).data.metrics if key.startswith("system/")]


def test_the_curve_of_a_training_under_way_is_sent_and_not_sent_twice(project, monkeypatch):
    run_id = tracking.start_run(VARIANT)
    monkeypatch.setenv(tracking.RUN_ID, run_id)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with tracking.live_curve() as log:
        log(5, {"loss": 9.0, "grad_norm": float("inf")})
        deadline = time.monotonic() + 30
        while not machine_load(project, run_id) and time.monotonic() < deadline:
            time.sleep(0.1)
        log(7, {"loss": 8.0})
        log(7, {}, Image.new("L", (8, 8)))
    assert [file.path for file in client(project).list_artifacts(run_id, "images")]
    assert client(project).get_metric_history(run_id, "train/steps_per_second")[0].value > 0
    made = tracking.register(VARIANT, run_id=run_id)
    assert made.run_id == run_id
    curve = client(project).get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in curve] == [(5, 9.0), (7, 8.0), (10, 0.5)]
    assert machine_load(project, run_id)


def test_without_a_run_the_live_curve_is_nobodys(project):
    with tracking.live_curve() as log:
        log(1, {"loss": 1.0})
    with sqlite3.connect(project / "mlflow" / "mlflow.db") as store:
        assert store.execute("select count(*) from metrics").fetchone() == (0,)


def test_a_tracking_server_that_is_down_neither_stops_nor_delays_training(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv(tracking.RUN_ID, "0" * 32)
    with caplog.at_level(logging.WARNING), tracking.live_curve() as log:
        started = time.monotonic()
        log(1, {"loss": 1.0})
        assert time.monotonic() - started < 0.5
    assert "training goes on" in caplog.text


@pytest.mark.parametrize("speak", [tracking.register, tracking.promote, tracking.find, tracking.start_run])
def test_a_server_that_does_not_answer_is_worth_another_try(project, monkeypatch, speak):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UpstreamError, match=r"^MLflow does not answer at http://127\.0\.0\.1:9$"):
        speak(VARIANT)
    with pytest.raises(UpstreamError, match="does not answer"):
        tracking.resolve("models:/ddpm-dots@champion")


@pytest.mark.slow
def test_a_store_that_is_busy_is_worth_another_try(project):
    tracking.register(VARIANT)
    with sqlite3.connect(project / "mlflow" / "mlflow.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        with pytest.raises(UpstreamError, match="MLflow does not answer"):
            tracking.resolve("models:/ddpm-dots/1")


def test_without_mlflow_the_answer_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['mlflow'] = None\nfrom ddpm import tracking\ntracking.load_mlflow()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "UserError: mlflow is not installed" in done.stderr


def test_nothing_is_written_beside_the_projects_own_store(project):
    tracking.register(VARIANT)
    tracking.promote(VARIANT)
    assert not (project / "mlruns").exists()
    assert {path.name for path in (project / "mlflow").iterdir()} == {"mlflow.db", "mlflow.db.lock", "artifacts"}

"""Figures in MLflow: their names, a run's note, and comparisons, against a real SQLite store."""

import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from finished import VARIANT, empty_store, write_outputs
from hypothesis import given
from hypothesis import strategies as st

from ddpm import tracking
from ddpm.files import read_json, write_json
from ddpm.tracking.names import evaluation, evaluation_among, grouped
from ddpm.tracking.version_records import _cost

MODEL = "ddpm-dots"

numbers = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True) | st.just("fid"), st.floats(0, 1e6))


@given(metrics=numbers, curve=numbers)
def test_the_figures_of_a_run_come_back_as_metrics_json_has_them(metrics, curve):
    logged = {**evaluation(metrics), **grouped("train", curve), **grouped("export", curve), **grouped("system", curve)}
    assert evaluation_among(logged) == metrics
    assert evaluation_among(metrics) == metrics, "as runs had them before there were groups"


def test_charts_of_figures_are_apart_from_what_belongs_to_them():
    assert evaluation({"fid": 1.0, "fid_low": 0.5}) == {"eval/fid": 1.0, "eval/detail/fid_low": 0.5}


@pytest.fixture
def registered(tmp_path, tmp_path_factory, monkeypatch) -> tracking.Registration:
    """A version of a model whose stages have all run; its project is the current directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty_store(tmp_path_factory) / "mlflow", tmp_path / "mlflow")
    write_outputs(tmp_path)
    Path(f"reports/{VARIANT}/nll.csv").write_text("t,train,validation\n0,2.0,2.5\n1,0.5,0.25\n")
    return tracking.register(VARIANT)


def client():
    return tracking.load_mlflow().MlflowClient()


def artifacts(run_id: str) -> set[str]:
    return {file.path for file in client().list_artifacts(run_id)}


def test_the_evaluation_of_a_registered_model_is_what_was_measured(registered):
    metrics = {
        key: value
        for key, value in read_json(Path(f"reports/{VARIANT}/metrics.json")).items()
        if key not in ("protocol", "model")
    }
    for uri in (f"models:/{MODEL}@challenger", f"models:/{MODEL}/latest", f"models:/{MODEL}/1"):
        found = tracking.evaluation_of(uri)
        assert found.figures.metrics == metrics
        assert found.figures.protocol == read_json(Path(f"reports/{VARIANT}/protocol.json"))
        assert found.likelihood == Path(f"reports/{VARIANT}/nll.csv").read_text()
        assert found.version == f"models:/{MODEL}/1"
    assert tracking.evaluation_of(f"runs:/{registered.run_id}/{VARIANT}").version is None


def test_the_note_has_the_figures_and_a_picture_that_is_there(registered):
    note = client().get_run(registered.run_id).data.tags["mlflow.note.content"]
    assert "| FID | 20 |  |" in note, "real data were not measured over as many samples"
    assert "| FID, same count | 20 | 1 |" in note
    assert "protocol-2000" in note
    assert client().get_model_version(MODEL, "1").description == note
    [address] = re.findall(r"!\[samples\]\((.*?)\)", note)
    query = parse_qs(urlsplit(address).query)
    assert query["run_uuid"] == [registered.run_id]
    assert set(query["path"]) <= artifacts(registered.run_id)


def test_a_measurement_has_the_cost_of_an_image_by_its_number_of_steps(registered):
    client().log_metric(registered.run_id, "eval/gflops_per_image", 3.0)
    protocol = read_json(Path(f"reports/{VARIANT}/protocol.json")) | {"id": "other", "steps": 10}
    tracking.log_measurement(registered, tracking.Figures({"fid": 9.0}, protocol))
    assert tracking.recorded_figures(registered, "other").metrics == {"fid": 9.0, "gflops_per_image": 6.0}


def test_a_measurement_of_a_cascade_carries_over_the_cost_of_its_other_links(registered):
    """Of the plan that has other steps only the first link's part changes; what is not known is left out."""
    steps = read_json(Path(f"reports/{VARIANT}/protocol.json"))["steps"]
    recorded = {"steps": steps, "upsampler": {"steps": 4}}
    cost = {"gflops_per_image": 5.0, "gflops_other_links": 2.0}
    again = {"id": "other", "steps": 2 * steps}
    assert _cost(tracking.Figures(cost, recorded), again) == {"gflops_per_image": 8.0, "gflops_other_links": 2.0}
    assert _cost(tracking.Figures({"gflops_per_image": 5.0}, recorded), again) == {}
    for other in ({"guidance_scale": 2.0}, {"sampler": "heun"}):
        assert _cost(tracking.Figures(cost, recorded), {**again, **other}) == {}


def test_the_evaluation_of_a_model_measured_again_is_that_under_the_protocol_asked_for(registered):
    tracking.log_measurement(registered, tracking.Figures({"fid": 9.0}, {"id": "other", "steps": 10}))
    first, again, unknown = (tracking.evaluation_of(registered.uri, protocol=id) for id in (None, "other", "third"))
    assert again.figures.metrics["fid"] == 9.0
    assert again.figures.protocol["id"] == "other"
    assert first.likelihood is not None
    assert again.likelihood is None, "it was bounded under the first protocol"
    assert unknown == first != again


def test_a_comparison_is_a_run_that_says_what_was_compared(registered):
    directory = Path("comparison")
    directory.mkdir()
    (directory / "report.html").write_text("<p>page</p>")
    (directory / "samples.png").write_bytes(b"\x89PNG")
    one = {"name": "tiny", "model": "tiny", "version": None, "protocol": "a", "metrics": {"fid": 3.0}}
    other = {**one, "name": f"{MODEL}@champion", "version": f"models:/{MODEL}/7", "protocol": "b"}
    curves = {"tiny": [[5, 30.0], [10, 20.0]], f"{MODEL}@champion": [[5, 9.0], [10, 8.0]]}
    record = {
        "models": [one, other],
        "protocols": {"a": {}, "b": {}},
        "differences": {"steps": {"a": 1, "b": 2}},
        "over_steps": {"figure": "fid", "curves": curves},
    }
    write_json(directory / "comparison.json", record)
    run_id = tracking.log_comparison(directory)
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["compared"] == f"tiny, {MODEL}@champion"
    assert run.data.tags["versions"] == f"models:/{MODEL}/1, models:/{MODEL}/7", "a variant is named by its version too"
    assert run.data.tags["protocols"] == "a, b"
    assert artifacts(run_id) == {"report.html", "samples.png", "comparison.json"}
    history = client().get_metric_history(run_id, "fid_over_steps/tiny")
    assert [(point.step, point.value) for point in history] == [(5, 30.0), (10, 20.0)]
    assert len(run.data.metrics) == 2
    note = run.data.tags["mlflow.note.content"]
    assert "| FID | 3 | 3 |" in note
    assert "Not to be ranked: their protocols differ in steps." in note


def test_a_comparison_that_cannot_be_logged_leaves_no_run_that_seems_to_go_on(registered, tmp_path):
    damaged = {"figure": "fid", "curves": {"a": [[2, {}]]}}
    record = {"models": [], "protocols": {}, "differences": {}, "over_steps": damaged}
    write_json(tmp_path / "comparison.json", record)
    with pytest.raises(TypeError):
        tracking.log_comparison(tmp_path)
    experiment = client().get_run(registered.run_id).info.experiment_id
    [run] = client().search_runs([experiment], filter_string="tags.compared = ''")
    assert run.info.status == "FAILED"

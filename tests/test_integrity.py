"""Faults of a deployed model, each made for real and found with numpy and onnxruntime."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from finished import VARIANT, write_outputs
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ddpm.deploy.integrity import TOLERANCE, Fingerprint, find_fault
from ddpm.figures.drift import drifts
from ddpm.files import sha256_of


def model(root: Path, seed: int) -> Path:
    """A deploy directory whose network is a convolution with weights of its own."""
    write_outputs(root)
    deploy = root / "deploy" / VARIANT
    kernel = np.random.default_rng(seed).normal(size=(1, 1, 3, 3)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])
    t = helper.make_tensor_value_info("t", TensorProto.INT64, ["batch"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1, 4, 4])
    node = helper.make_node("Conv", ["x", "kernel"], ["out"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "linear", [x, t], [out], [numpy_helper.from_array(kernel, "kernel")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), deploy / "denoiser.onnx"
    )
    facts = json.loads((deploy / "sampler.json").read_text())
    facts["denoiser_sha256"] = sha256_of(deploy / "denoiser.onnx")
    (deploy / "sampler.json").write_text(json.dumps(facts))
    return deploy


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> tuple[Path, Fingerprint]:
    """A healthy model and what was recorded of it; not to be written to."""
    deploy = model(tmp_path_factory.mktemp("healthy"), seed=0)
    return deploy, Fingerprint.of(deploy)


def test_a_healthy_model_is_what_was_registered_wherever_it_lies(registered, tmp_path):
    deploy, recorded = registered
    shutil.copytree(deploy, tmp_path / "elsewhere")
    assert find_fault(tmp_path / "elsewhere", recorded) is None


@given(st.integers(0, 35), st.integers(0, 7))
def test_one_flipped_bit_of_the_weights_is_a_damaged_file(registered, tmp_path_factory, position, bit):
    healthy, recorded = registered
    deploy = tmp_path_factory.getbasetemp() / "flipped"
    shutil.copytree(healthy, deploy, dirs_exist_ok=True)
    weights = numpy_helper.to_array(onnx.load(healthy / "denoiser.onnx").graph.initializer[0]).tobytes()
    content = bytearray((healthy / "denoiser.onnx").read_bytes())
    content[content.index(weights) + position] ^= 1 << bit
    (deploy / "denoiser.onnx").write_bytes(content)
    assert find_fault(deploy, recorded).startswith("denoiser.onnx is not the file that was registered: SHA-256 ")


def test_the_weights_of_another_model_are_told_by_what_they_draw_too(registered, tmp_path):
    deploy, other = tmp_path / "deploy", model(tmp_path / "other", seed=1)
    shutil.copytree(registered[0], deploy)
    shutil.copy(other / "denoiser.onnx", deploy)
    fault = find_fault(deploy, registered[1])
    assert fault.startswith("denoiser.onnx is not the file that was registered")
    assert "sampler.json" not in fault
    assert "from the same noise it draws samples that differ by up to" in fault
    # Nor does it help them to come with a description that fits.
    assert "sampler.json is not the file that was registered" in find_fault(other, registered[1])


@pytest.mark.parametrize("name", ["denoiser.onnx", "sampler.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_lost_or_cut_off_file_is_named(registered, tmp_path, name, content):
    deploy = tmp_path / "deploy"
    shutil.copytree(registered[0], deploy)
    (deploy / name).unlink()
    if content is not None:
        (deploy / name).write_bytes(content)
    fault = find_fault(deploy, registered[1])
    assert fault.startswith(f"{name} is ")
    assert "it does not run" in fault
    assert "\n" not in fault


def test_a_runtime_that_draws_other_samples_is_named_with_the_one_there_was(registered):
    deploy, recorded = registered
    slightly = replace(recorded, samples=recorded.samples + TOLERANCE / 2)
    assert find_fault(deploy, slightly) is None
    before = replace(recorded, samples=recorded.samples + 0.5, runtime="onnxruntime 0.1, SomeProvider")
    fault = find_fault(deploy, before)
    assert fault.startswith("from the same noise it draws samples that differ by up to 0.5 (onnxruntime ")
    assert fault.endswith("; at registration onnxruntime 0.1, SomeProvider)")


RECORDED = {"fid": 20.0, "fid_low": 19.0, "fid_high": 22.0, "recall": 0.5}


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"fid": 20.0, "recall": 0.5}, []),
        ({"fid": 22.9, "recall": 0.52}, []),
        ({"fid": 23.1, "recall": 0.5}, ["FID 23.1, recorded 20 [19, 22]"]),
        ({"fid": 17.9}, ["FID 17.9, recorded 20 [19, 22]"]),  # another model, then
        ({"fid": float("nan"), "recall": 0.4}, ["FID nan", "recall 0.4, recorded 0.5"]),
    ],
)
def test_a_figure_drifts_when_it_leaves_its_interval_and_the_tolerance(measured, words):
    found = list(drifts(RECORDED, measured, 0.05, {}))
    assert len(found) == len(words)
    assert all(line.startswith(word) for line, word in zip(found, words, strict=True))

"""What the stages leave behind when all have run: small, made by hand, and with a network that onnxruntime runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from once import made_once
from onnx import TensorProto, helper, numpy_helper

from ddpm import tracking

SHAPE = (4, 4, 1)
VARIANT = "tiny"
FINGERPRINT = "f"  # of the training


def empty_store(factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's tables and nothing in them; they take seconds to make."""

    def make(root: Path) -> None:
        tracking.load_mlflow(root).MlflowClient().search_experiments()

    return made_once(factory, "empty-store", make)


def write_outputs(
    root: Path, *, fid: float = 20.0, samples: int = 2000, passed: bool = True, lock: str = "1", **more: float
) -> None:
    """What prepare, train, evaluate and export leave behind: images of 4×4, and a network that predicts nothing."""
    sampling = {"sampler": "ddim", "steps": 5, "eta": 0.0, "spacing": "trailing", "clip": True}
    process = {"timesteps": 10, "schedule": "linear", "prediction": "epsilon", "variance": "fixed_small"}
    split = {"count": 8, "sha256": "d" * 64}
    sampler = {"shape": SHAPE, "process": process, "sampling": sampling, "training": {"fingerprint": FINGERPRINT}}
    data = {"name": "dots", "shape": SHAPE, "classes": None, "mean": [0.5], "std": [0.5], "train_count": 8}
    trained = {"seed": 0, "precision": "fp32", "device": "cpu", "torch": "2", "images_seen": 40, "final_loss": 1.0}
    trained |= {"fingerprint": FINGERPRINT}
    config = {"network": {"width": 8, "multipliers": [1, 2]}, "training": {"steps": 10}, "sampling": sampling}
    protocol = {"id": f"protocol-{samples}", "samples": samples, "steps": 5}
    metrics = {"protocol": protocol["id"], "model": FINGERPRINT, "same_count": 8}
    metrics |= {"fid": fid, "fid_same_count": fid, "fid_floor": 1.0}
    metrics |= {"inception_score": 1.5, "inception_score_std": 0.1, "inception_score_real": 2.0}
    metrics |= {"inception_score_same_count": 1.4, "samples": samples, **more}
    files = {
        "prepared/manifest.json": {"name": "dots", "source": "folder", "shape": SHAPE, "splits": {"train": split}},
        f"models/{VARIANT}/model.json": {"config": config, "data": data, "training": trained, "parameters": 1},
        f"reports/{VARIANT}/metrics.json": metrics,
        f"reports/{VARIANT}/protocol.json": protocol,
        f"deploy/{VARIANT}/sampler.json": sampler,
        f"deploy/{VARIANT}/parity.json": {"max_abs_difference": 1e-6, "tolerance": 1e-3, "passed": passed},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    (root / f"models/{VARIANT}/loss.csv").write_text(
        "step,loss,grad_norm,learning_rate\n5,1.5,2.0,1e-3\n10,0.5,1.0,1e-3\n"
    )
    for picture in ("samples.png", "denoising.png"):
        (root / f"reports/{VARIANT}/{picture}").write_bytes(b"\x89PNG")
    onnx.save(silent_network(), root / f"deploy/{VARIANT}/denoiser.onnx")
    stages = "".join(f"  {s}:\n    outs: [{{path: x, md5: '{lock}'}}]\n" for s in
                     ("prepare", f"train@{VARIANT}", f"evaluate@{VARIANT}", f"export@{VARIANT}"))  # fmt: skip
    (root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n{stages}")


def silent_network(answer: float = 0.0) -> onnx.ModelProto:
    """A denoiser that answers x with x · `answer`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])
    t = helper.make_tensor_value_info("t", TensorProto.INT64, ["batch"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1, 4, 4])
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [answer])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["out"])], "silent", [x, t], [out], [factor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_guide(deploy: Path, *, classes: Sequence[str], pull: float = 1.0) -> None:
    """Make of a deploy directory of images of 4×4 one that a classifier guides: label k pulls every pixel by k · pull,
    at every timestep with the scale −1 of a model that predicts noise.
    """
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])
    t, label = (helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in ("t", "label"))
    gradient = helper.make_tensor_value_info("gradient", TensorProto.FLOAT, ["batch", 1, 4, 4])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch", 1, 1, 1])
    constants = {
        "pulls": np.float32(np.arange(len(classes)) * pull),
        "scales": np.full(100, -1, np.float32),
        "none": np.float32(0),
        "behind": np.arange(1, 4),
    }
    nodes = [
        helper.make_node("Gather", ["pulls", "label"], ["pull"]),
        helper.make_node("Unsqueeze", ["pull", "behind"], ["each"]),
        helper.make_node("Mul", ["x", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "each"], ["gradient"]),
        helper.make_node("Gather", ["scales", "t"], ["of_t"]),
        helper.make_node("Unsqueeze", ["of_t", "behind"], ["scale"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "guide", [x, t, label], [gradient, scale], initializers)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), deploy / "guide.onnx")
    facts = json.loads((deploy / "sampler.json").read_text())
    facts["sampling"]["guide"] = "models/classifier"
    guide = {"kind": "classifier", "variant": "classifier", "mark": "classifier g", "training": {"fingerprint": "g"}}
    guide |= {"condition": {"label": {"drop": 0}}, "data": {"classes": classes}}
    (deploy / "sampler.json").write_text(json.dumps({**facts, "format": 2, "guide": guide}))

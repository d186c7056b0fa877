"""The exported files as people use them: the loop in the graph, fp16, weights beside the file, the README's example."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import ddpm
from ddpm.cli import main
from ddpm.config.params import load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.deploy import runtime
from ddpm.deploy.runtime import CPU, Sampler, import_onnxruntime
from ddpm.errors import UserError
from ddpm.export.files import MOST_WEIGHTS, activation_bytes, export_denoiser, export_half, export_sampler, write
from ddpm.export.parity import measure_parity
from ddpm.model import Model
from ddpm.serve.models import load_model

onnxruntime = import_onnxruntime()

README = Path(__file__).parents[2] / "README.md"
NOISY = {"sampler": "ancestral", "variance": "fixed_large", "steps": 9}
NOISY_AND_LOOKING_BACK = {"sampler": "dpmpp_2m_sde", "steps": 9}


@pytest.fixture
def deploy(trained: Path) -> Path:
    return trained / "deploy/tiny"


@pytest.fixture
def model(trained: Path) -> Model:
    return ddpm.load(trained / "models/tiny").sampled_by(load_params().variant("tiny").sampling)


def session(path: Path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=[CPU])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "ddim", "eta": 1.0, "steps": 50},
        {"sampler": "ancestral", "steps": 1},
        {"sampler": "unipc", "steps": 6, "spacing": "quadratic", "dynamic_threshold": 0.9},
        NOISY,
    ],
    ids=["default", "every step", "one step", "dynamic", "noisy"],
)
@pytest.mark.parametrize("count", [1, 5])
def test_the_loop_in_the_graph_draws_what_torch_draws(deploy: Path, model: Model, options: dict, count: int):
    inside, outside = Sampler(deploy, in_graph=True), Sampler(deploy)
    assert (inside.in_graph, outside.in_graph) == (True, False)
    drawn = inside.sample(count, seed=7, **options)
    np.testing.assert_allclose(drawn.astype(int), model.sample(count, seed=7, **options).astype(int), atol=1)
    np.testing.assert_array_equal(drawn, outside.sample(count, seed=7, **options))


def test_an_image_is_the_same_to_the_bit_in_any_batch_and_any_piece_of_a_plan(deploy: Path, monkeypatch):
    for in_graph in (False, True):
        sampler = Sampler(deploy, in_graph=in_graph)
        together = sampler.sample(12, seed=3, **NOISY)
        for batch_size in (1, 5):
            np.testing.assert_array_equal(sampler.sample(12, seed=3, batch_size=batch_size, **NOISY), together)
    looking_back = sampler.sample(12, seed=3, **NOISY_AND_LOOKING_BACK)
    # Noise of three rows at a time, then of less than one.
    for limit in (3 * 12 * 64 * 4, 1):
        monkeypatch.setattr(runtime, "NOISE_BYTES", limit)
        np.testing.assert_array_equal(sampler.sample(12, seed=3, **NOISY), together)
        np.testing.assert_array_equal(sampler.sample(12, seed=3, **NOISY_AND_LOOKING_BACK), looking_back)


@pytest.mark.parametrize("options", [NOISY, NOISY_AND_LOOKING_BACK], ids=["noisy", "looking back"])
def test_the_graph_is_never_given_more_noise_than_the_bound(deploy: Path, monkeypatch, options: dict):
    sampler, row = Sampler(deploy, in_graph=True), 12 * 64 * 4
    given: list[int] = []
    bind = sampler._loop.io_binding

    def binding():
        made = bind()
        feed = made.bind_cpu_input
        made.bind_cpu_input = lambda name, array: (
            given.append(array.nbytes) if name == "z" else None,
            feed(name, array),
        )
        return made

    monkeypatch.setattr(type(sampler._loop), "io_binding", lambda session: binding())
    monkeypatch.setattr(runtime, "NOISE_BYTES", 3 * row)
    sampler.sample(12, **options)
    assert max(given, default=0) <= 3 * row


def test_a_batch_is_split_where_its_activations_would_not_fit(deploy: Path):
    of_one = Sampler(deploy).facts["activation_bytes"]
    done: list[int] = []
    sampler = Sampler(deploy, memory=3 * of_one + 1)
    images = sampler.sample(7, seed=1, on_batch=done.append)
    assert (sampler.largest_batch, done) == (3, [3, 6, 7])
    np.testing.assert_array_equal(images, Sampler(deploy).sample(7, seed=1))
    assert Sampler(deploy, memory=1).largest_batch == 1


def test_activations_are_counted_while_they_are_needed():
    """x and a; a and b; b, c and out: the last are most."""
    value = onnx.helper.make_tensor_value_info
    shapes = {"x": 4, "a": 8, "b": 6, "c": 10, "out": 4}
    x, a, b, c, out = (value(name, onnx.TensorProto.FLOAT, ["N", size]) for name, size in shapes.items())
    nodes = [
        onnx.helper.make_node(kind, inputs, outputs)
        for kind, inputs, outputs in [
            ("A", ["x"], ["a"]),
            ("B", ["a", "weight"], ["b"]),
            ("C", ["b"], ["c"]),
            ("D", ["b", "c"], ["out"]),
        ]
    ]
    graph = onnx.helper.make_graph(nodes, "chain", [x], [out], value_info=[a, b, c])
    assert activation_bytes(graph) == 4 * (6 + 10 + 4)


def test_the_file_tells_what_a_caller_must_know(deploy: Path, model: Model):
    about = session(deploy / "sampler.onnx").get_modelmeta().custom_metadata_map
    facts = json.loads((deploy / "sampler.json").read_text())
    del facts["data"]["text"]  # which may be long
    for key in ("process", "data", "training", "sampling", "shape"):
        assert json.loads(about[key]) == facts[key]
    assert about["name"] == "ddpm-digits"
    assert json.loads(about["training"])["fingerprint"] == model.card.training.fingerprint
    plans = json.loads(about["plans"])
    assert list(plans) == ["default", "ddim-50", "dpmpp_2m-20", "unipc-10"]
    for name, options in (("default", {}), ("dpmpp_2m-20", {"sampler": "dpmpp_2m", "steps": 20})):
        expected = model.plan(**options)
        np.testing.assert_array_equal(np.float32(plans[name]["table"]), expected.table.astype(np.float32))
        np.testing.assert_array_equal(plans[name]["timesteps"], expected.timesteps)
    alone = session(deploy / "denoiser.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(alone["process"]) == facts["process"]


@pytest.mark.slow
def test_an_export_leaves_the_network_as_it_was(deploy: Path, model: Model, tmp_path: Path):
    """A copy of it goes to the CPU and to evaluation."""
    model.network.train()
    export_denoiser(model, tmp_path / "denoiser.onnx")
    assert (tmp_path / "denoiser.onnx").read_bytes() == (deploy / "denoiser.onnx").read_bytes()
    assert all(module.training for module in model.network.modules())


@pytest.mark.parametrize("name", ["denoiser", "sampler"])
def test_both_files_keep_onnxs_rules_in_the_opset_that_is_stated(deploy: Path, name: str):
    proto = onnx.load(deploy / f"{name}.onnx")
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    (opset,) = proto.opset_import
    assert (opset.domain, opset.version) == ("", json.loads((deploy / "sampler.json").read_text())["opset"])


WRONG = {
    "a column too few": ("plan", lambda plan: plan[:, :-1]),
    "a row too few": ("plan", lambda plan: plan[:-1]),
    "a timestep too few": ("timesteps", lambda timesteps: timesteps[:-1]),
    "noise of a row too few": ("z", lambda z: z[:-1]),
    "noise of an image too few": ("z", lambda z: z[:, :-1]),
    "no noise": ("z", lambda z: z[:, :0]),
    "another size": ("x", lambda x: x[..., :-1]),
    "no rows": ("plan", lambda plan: plan[:0]),
    "doubles": ("x", lambda x: x.astype(np.float64)),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("count", [1, 2])
def test_inputs_that_do_not_fit_are_an_error_and_no_image(deploy: Path, model: Model, fault: str, count: int):
    plan = model.plan(**NOISY)
    x = np.zeros((count, 1, 8, 8), np.float32)
    z = np.zeros((len(plan), *x.shape), np.float32)
    feed = {"x": x, "plan": plan.table.astype(np.float32), "timesteps": plan.timesteps, "z": z}
    loop = session(deploy / "sampler.onnx")
    assert loop.run(["images"], feed)[0].shape == (count, 8, 8, 1)
    name, spoil = WRONG[fault]
    with pytest.raises(Exception, match=r"[Dd]im|shape|sequence length|data type"):
        loop.run(["images"], {**feed, name: spoil(feed[name])})


def test_weights_beside_the_file_serve_both_models(deploy: Path, model: Model, tmp_path: Path):
    whole = onnx.load(deploy / "denoiser.onnx")
    elsewhere = tmp_path / "large"
    elsewhere.mkdir()
    shutil.copy(deploy / "sampler.json", elsewhere)
    write(whole, elsewhere / "denoiser.onnx", most_weights=10_000)
    export_sampler(model, elsewhere / "denoiser.onnx", elsewhere / "sampler.onnx")
    sizes = {path.name: path.stat().st_size for path in elsewhere.iterdir()}
    assert set(sizes) == {"denoiser.onnx", "denoiser.onnx.data", "sampler.onnx", "sampler.json"}
    assert sizes["denoiser.onnx.data"] > (deploy / "denoiser.onnx").stat().st_size / 2
    assert sizes["sampler.onnx"] < (deploy / "sampler.onnx").stat().st_size
    moved = elsewhere.rename(tmp_path / "moved")
    for in_graph in (False, True):
        drawn = Sampler(moved, in_graph=in_graph).sample(3, **NOISY)
        np.testing.assert_array_equal(drawn, Sampler(deploy).sample(3, **NOISY))
    assert MOST_WEIGHTS < 2**31


def test_half_precision_has_its_own_parity(deploy: Path, model: Model):
    export_half(deploy / "denoiser.onnx", deploy / "denoiser.fp16.onnx")
    export_sampler(model, deploy / "denoiser.fp16.onnx", deploy / "sampler.fp16.onnx")
    tolerances = {"fp32": 1e-3, "fp16": 5e-2}
    parity = measure_parity(model, deploy, samples=4, steps=50, tolerances=tolerances)
    assert parity["passed"]
    for name in ("denoiser", "sampler"):
        half, full = parity["files"][f"{name}.fp16.onnx"], parity["files"][f"{name}.onnx"]
        assert full["max_abs_difference"] <= parity["max_abs_difference"] < half["max_abs_difference"]
        sizes = [(deploy / f"{name}{precision}.onnx").stat().st_size for precision in (".fp16", "")]
        assert sizes[0] < 0.9 * sizes[1]
    strict = measure_parity(model, deploy, samples=4, steps=50, tolerances={**tolerances, "fp16": 1e-9})
    assert (strict["passed"], strict["files"]["sampler.onnx"]["passed"]) == (False, True)
    drawn = Sampler(deploy, precision="fp16", in_graph=True).sample(4, seed=2)
    np.testing.assert_allclose(drawn.astype(int), model.sample(4, seed=2).astype(int), atol=8)


def test_half_precision_is_asked_for_by_name(deploy: Path, capsys):
    command = "sample deploy/tiny --precision fp16 --n 2 --out half.npz"
    assert main(command.split()) == 2
    assert "fp16.onnx is missing; `ddpm export` makes it where `export.fp16` is true" in capsys.readouterr().err
    export_half(deploy / "denoiser.onnx", deploy / "denoiser.fp16.onnx")
    assert main(command.split()) == 0
    assert "sampling with denoiser.fp16.onnx on" in capsys.readouterr().out
    served = load_model(str(deploy), precision="fp16").sampler
    np.testing.assert_array_equal(np.load("half.npz")["images"], served.sample(2))
    assert served.file.name == "denoiser.fp16.onnx"
    assert main(command.replace("deploy/", "models/").split()) == 2
    assert "ddpm sample: precision fp16 is for exported models" in capsys.readouterr().err


def test_a_late_timestep_is_not_rounded_to_half_precision(deploy: Path):
    """fp16 knows no number between 4094 and 4096, and an angle that is 1 off is another angle."""
    export_half(deploy / "denoiser.onnx", deploy / "denoiser.fp16.onnx")
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    feed = {"x": x, "t": np.array([4093, 4095])}
    (half,), (full,) = (session(deploy / f"denoiser{name}.onnx").run(None, feed) for name in (".fp16", ""))
    np.testing.assert_allclose(half, full, atol=5e-3 * np.abs(full).max())


def test_what_it_runs_on_is_said_in_a_line(deploy: Path):
    sampler = Sampler(deploy, threads=2)
    sampler.warm_up(3)
    assert sampler.where == f"denoiser.onnx on CPUExecutionProvider (onnxruntime {onnxruntime.__version__}, 2 threads)"
    with pytest.raises(UserError, match=r"has no AbacusExecutionProvider here; it has: .*CPUExecution"):
        Sampler(deploy, providers=["AbacusExecutionProvider", CPU])
    with pytest.raises(UserError, match=r"denoiser.fp16.onnx is missing"):
        Sampler(deploy, precision="fp16")


def test_the_readmes_example_draws_this_projects_images_without_it(trained: Path, model: Model):
    (example,) = re.findall(r"```python\n(import json\n.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(example.splitlines()) <= 30
    options = {"sampler": "ddim", "eta": 1.0, "steps": 7}
    (trained / "deploy/ddpm").mkdir()
    noisy = model.sampled_by(SamplingConfig(**options))
    export_sampler(noisy, trained / "deploy/tiny/denoiser.onnx", trained / "deploy/ddpm/sampler.onnx")
    alone = "import sys\nfor name in ('ddpm', 'torch', 'onnx'): sys.modules[name] = None\n"
    program = f"{alone}{example}\nnp.save('drawn.npy', images)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    drawn = np.load("drawn.npy")
    np.testing.assert_array_equal(drawn, Sampler(trained / "deploy/tiny").sample(len(drawn), seed=0, **options))

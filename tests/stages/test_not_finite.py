"""NaN and infinity are said wherever they would otherwise become black pictures and figures of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from untrained import ONE_LEVEL, untrained

import ddpm
from ddpm.codecs.scale import PixelCodec, ValueCodec
from ddpm.config.params import load_params
from ddpm.deploy import runtime
from ddpm.deploy.runtime import Sampler
from ddpm.diffusion import sampling
from ddpm.diffusion.plans import sampling_plan
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import NotFiniteError
from ddpm.export.files import export_half
from ddpm.interop.published import Flags
from ddpm.model.card import DataFacts
from ddpm.stages.evaluate import evaluate_variant
from ddpm.stages.export import export_variant
from ddpm.stages.interop import export_diffusers, import_model

KINDS = [PixelCodec((2, 2, 1)), ValueCodec("points", (2,), (0.0, 0.0), (1.0, 1.0))]


@pytest.mark.parametrize("kind", KINDS, ids=["images", "points"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_decoding_refuses_what_is_no_number(kind, value):
    x = np.zeros((3, *kind.network_shape), np.float32)
    kind.decode(x)
    x[1].flat[0] = value
    with pytest.raises(NotFiniteError, match="NaN or infinite in 1 of 3 samples"):
        kind.decode(x)


@pytest.mark.parametrize("dynamic", [None, 0.9])
def test_clipping_does_not_hide_an_infinite_output(dynamic):
    """As fp16 has them beyond 65,504."""
    plan = sampling_plan(
        Schedule.named("linear", 10),
        sampler="ddim",
        steps=3,
        prediction="epsilon",
        variance="fixed_small",
        dynamic_threshold=dynamic,
    )
    x = np.zeros((2, 1, 2, 2), np.float32)
    overflowed = np.zeros_like(x)
    overflowed[1, 0, 0, 0] = np.inf
    by_numpy = runtime.run(lambda x, t: overflowed, plan, x, lambda: x)
    by_torch = sampling.sample(lambda x, t: torch.from_numpy(overflowed.copy()), plan, torch.from_numpy(x), lambda: x)
    for drawn in (by_numpy, by_torch.numpy()):
        assert np.isfinite(drawn[0]).all()
        assert not np.isfinite(drawn[1]).all()


def spoil(directory: Path, value: float) -> str:
    path = directory / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("out_conv.weight"))
    weights[name].flatten()[:2] = value
    save_file(weights, path)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_refused_by_name_and_count(trained: Path, value):
    name = spoil(trained / "models/tiny", value)
    with pytest.raises(NotFiniteError, match=rf"2 of \d+ values of {name} are NaN or infinite$"):
        ddpm.load(trained / "models/tiny")


def test_a_model_that_draws_nan_is_not_measured(trained: Path, monkeypatch: pytest.MonkeyPatch):
    before = (trained / "reports/tiny/metrics.json").read_bytes()
    monkeypatch.setattr(sampling, "sample", lambda denoise, plan, x, draw, known: x * torch.nan)
    with pytest.raises(NotFiniteError, match="models/tiny cannot be measured: the network's output is NaN"):
        evaluate_variant(load_params(trained / "params.yaml"), "tiny", root=trained)
    assert (trained / "reports/tiny/metrics.json").read_bytes() == before


def scaled(project: Path, layer: str, factor: float) -> None:
    """A smaller, untrained model in place of the trained one, with a layer's weights times a factor."""
    shutil.rmtree(project / "models/tiny")
    facts = DataFacts(name="digits", shape=(8, 8, 1), classes=None)
    path = untrained("tiny", project / "models", facts, network=ONE_LEVEL) / "model.safetensors"
    weights = load_file(path)
    weights[f"{layer}.weight"] = factor * (weights[f"{layer}.weight"] + 1)
    save_file(weights, path)


def exported(project: Path, **options) -> None:
    params = load_params(project / "params.yaml")
    options = {"parity_tolerance": 10.0, "fp16_tolerance": 10.0, **options}
    export = params.export.model_copy(update=options)
    export_variant(params.model_copy(update={"export": export}), "tiny", root=project)


def test_an_export_that_draws_nan_is_not_written(trained: Path):
    """Weights of float32, whose products are none."""
    scaled(trained, "out_conv", 1e38)
    before = (trained / "deploy/tiny/parity.json").read_bytes()
    with pytest.raises(
        NotFiniteError, match=r"^tiny: denoiser.onnx draws NaN or infinite values over 5 steps of ddim; n"
    ):
        exported(trained)
    assert (trained / "deploy/tiny/parity.json").read_bytes() == before


def test_where_fp16_alone_overflows_the_advice_is_fp32(trained: Path):
    """Values above 65,504 in the first layer, which the next one's norm would make small again."""
    scaled(trained, "stem", 1e6)
    with pytest.raises(
        NotFiniteError, match=r"denoiser.fp16.onnx draws NaN .*; fp16 overflows with this model: set exp"
    ):
        exported(trained, fp16=True)
    exported(trained)
    deploy = trained / "deploy/tiny"
    export_half(deploy / "denoiser.onnx", deploy / "denoiser.fp16.onnx")
    with pytest.raises(NotFiniteError, match="in 4 of 4 samples; fp16 overflows with this model: use fp32"):
        Sampler(deploy, precision="fp16").sample(4)
    assert Sampler(deploy).sample(4).shape == (4, 8, 8, 1)


def test_an_import_of_nan_writes_nothing(trained: Path, tmp_path: Path):
    export_diffusers(trained / "models/tiny", tmp_path / "theirs")
    (weights,) = (tmp_path / "theirs").rglob("*.safetensors")
    tensors = load_file(weights)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, weights)
    with pytest.raises(NotFiniteError, match=r"theirs: \d+ of \d+ values of .* are NaN or infinite"):
        import_model(tmp_path / "theirs", tmp_path / "ours", Flags())
    assert not (tmp_path / "ours").exists()

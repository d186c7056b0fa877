"""One ONNX file from raw texts to images: of a model, and of a cascade."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny import TINY_PARAMS
from untrained import untrained

import ddpm
from ddpm.conditioning.tokenizers import Words, fit_tokenizer
from ddpm.config.network import AutoencoderConfig
from ddpm.config.params import Params
from ddpm.config.sampling import SamplingConfig
from ddpm.deploy.runtime import CPU, Sampler, import_onnxruntime
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import SamplingPlan
from ddpm.drawer.cascade import Cascade, link_seed
from ddpm.export.cascade_parity import measure_cascade_parity
from ddpm.export.files import export_sampler, write
from ddpm.export.parity import measure_parity
from ddpm.export.text_to_image import Link, export_text_to_image, link_of, links_of, quiet_plan, text_to_image
from ddpm.files import sha256_of
from ddpm.first_stage import LatentFacts
from ddpm.layout import DEPLOY, MODELS
from ddpm.model import Model, save
from ddpm.model.card import DataFacts, TextFacts
from ddpm.stages.compose import compose
from ddpm.stages.export import export_variant

WORDS = Words(("heart", "red", "blue", "cat"), 4)
PROMPTS = ["Red HEART!", "", "purple, 猫 🙂", "cat " * 50]
FACTS = DataFacts(
    name="signs",
    shape=(8, 8, 3),
    classes=None,
    text=TextFacts(tokenizer=WORDS.as_json(), captions=("red heart", "blue cat")),
)
SMALL = {"width": 8, "multipliers": [1], "blocks": 1, "attention_resolutions": [8], "groups": 4}
PROMPT = {"length": 4, "width": 16, "layers": 1, "heads": 2, "drop": 0.1}
PROCESS = {"timesteps": 50, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"}
QUIET = {"sampler": "ddim", "steps": 5}
TOLD = {"network": SMALL, "condition": {"prompt": PROMPT}, "process": PROCESS, "sampling": QUIET}
NOISY = {"sampler": "ancestral", "steps": 4}


def session(proto: onnx.ModelProto) -> Any:
    onnx.checker.check_model(proto, full_check=True)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=[CPU])


def untrained_with_norms(name: str, directory: Path, facts: DataFacts, **sections: Any) -> None:
    """A model directory with random weights. Those of the norms are 1, as in fresh networks: so the text shows."""
    model = ddpm.load(untrained(name, directory, facts, **sections))
    with torch.no_grad():
        for parameter, weights in model.network.named_parameters():
            if "norm" in parameter and parameter.endswith("weight"):
                weights.fill_(1)
    save(model, directory / name)


def export(name: str, directory: Path, facts: DataFacts, sections: dict[str, Any], **options: bool) -> Path:
    """An untrained model through the stage: its deploy directory."""
    sections = {**TINY_PARAMS["models"]["tiny"], **sections}
    untrained_with_norms(name, directory / MODELS, facts, **sections)
    raw = {**TINY_PARAMS, "variants": [name], "models": {name: sections}}
    raw["export"] = {**TINY_PARAMS["export"], **options}
    export_variant(Params.model_validate(raw), name, root=directory)
    return directory / DEPLOY / name


def opened(path: Path) -> Model:
    """With the plan that it is exported with, which is that of its own card here."""
    model = ddpm.load(path)
    return model.sampled_by(model.card.config.sampling)


class Case(NamedTuple):
    """An untrained model, what `ddpm export` made of it, and text_to_image.onnx opened."""

    model: Model
    deploy: Path
    file: Any


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("single")
    deploy = export("text", directory, FACTS, TOLD)
    return Case(opened(directory / MODELS / "text"), deploy, session(onnx.load(deploy / "text_to_image.onnx")))


def test_a_model_in_continuous_time_goes_from_words_to_pixels(tmp_path: Path):
    """The network's time is float32 in every file, and float64 in a plan."""
    process = {"kind": "flow", "prediction": "velocity", "timesteps": 50}
    deploy = export("flow", tmp_path, FACTS, {**TOLD, "process": process})
    assert json.loads((deploy / "parity.json").read_text())["files"]["text_to_image.onnx"]["passed"]


def test_a_model_of_latents_goes_from_words_to_pixels(tmp_path: Path):
    network = AutoencoderConfig(kind="autoencoder", width=8, multipliers=(1, 2), blocks=1, latent_channels=2, groups=4)
    latent = LatentFacts(variant="squeeze", fingerprint="f", sha256="s", network=network, shape=(2, 4, 4), scale=0.5)
    told = {**TOLD, "network": {**SMALL, "attention_resolutions": [4]}}
    deploy = export("latent", tmp_path, FACTS.model_copy(update={"latent": latent}), told)
    assert json.loads((deploy / "parity.json").read_text())["files"]["text_to_image.onnx"]["passed"]
    model = opened(tmp_path / MODELS / "latent")
    noise = ImageNoise(3, 2, (2, 4, 4))
    asked = ["red heart", "blue cat"]
    (images,) = session(onnx.load(deploy / "text_to_image.onnx")).run(
        ["images"], {"prompt": prompts(*asked), "x": noise.draw()}
    )
    np.testing.assert_allclose(images.astype(int), model.sample(2, seed=3, prompt=asked), atol=1)


def prompts(*texts: str) -> np.ndarray:
    return np.array(texts, object)


def noise(model: Model, *steps: int, count: int = 2) -> np.ndarray:
    """x_T, or with a number of steps z too: [1 + steps, N, C, H, W]."""
    draw = ImageNoise(0, count, model.codec.network_shape).draw
    return np.stack([draw() for _ in range(1 + steps[0])]) if steps else draw()


def as_inputs(plan: SamplingPlan) -> dict[str, np.ndarray]:
    return {"plan": plan.table.astype(np.float32), "timesteps": plan.timesteps}


def test_what_must_be_given_and_what_may_be(single: Case):
    required = [(each.name, each.type, each.shape) for each in single.file.get_inputs()]
    assert required == [("prompt", "tensor(string)", ["N"]), ("x", "tensor(float)", ["N", 3, 8, 8])]
    optional = {each.name: each.type for each in single.file.get_overridable_initializers()}
    assert set(optional) == {"plan", "timesteps", "z", "guidance_scale"}
    assert [each.name for each in single.file.get_outputs()] == ["images", "x0"]
    about = single.file.get_modelmeta().custom_metadata_map
    assert json.loads(about["shape"]) == [8, 8, 3]


@pytest.mark.parametrize("count", [1, 4])
def test_a_text_and_noise_are_an_image(single: Case, count: int):
    feed = {"prompt": prompts(*PROMPTS[:count]), "x": noise(single.model, count=count)}
    (images,) = single.file.run(["images"], feed)
    assert (images.shape, images.dtype) == ((count, 8, 8, 3), np.uint8)
    assert np.abs(images - single.model.sample(count, prompt=PROMPTS).astype(int)).max() <= 1
    (others,) = single.file.run(["images"], feed | {"prompt": prompts(*["blue"] * count)})
    assert (np.abs(others - images.astype(int)).max(axis=(1, 2, 3)) > 1).all()


def test_it_is_sampler_onnx_to_the_bit(single: Case):
    plan = single.model.plan()
    loop = Sampler(single.deploy, in_graph=True)
    given = loop.given(2, prompt=PROMPTS)
    x = noise(single.model)
    (x0,) = single.file.run(["x0"], {"prompt": prompts(*PROMPTS[:2]), "x": x})
    np.testing.assert_array_equal(x0, loop.run(plan, x, lambda: x, given))


@pytest.mark.parametrize("options", [NOISY, {"sampler": "ddim", "steps": 3}, {"sampler": "dpmpp_2m", "steps": 7}])
def test_another_plan(single: Case, options: dict):
    plan = single.model.plan(**options)
    x, *z = noise(single.model, len(plan))
    feed = {"prompt": prompts(*PROMPTS[:2]), "x": x, **as_inputs(plan)}
    noisy = plan.column("to_noise").any()
    (images,) = single.file.run(["images"], feed | ({"z": np.stack(z)} if noisy else {}))
    assert np.abs(images - single.model.sample(2, prompt=PROMPTS, **options).astype(int)).max() <= 1
    if noisy:
        with pytest.raises(Exception, match="shape"):
            single.file.run(["images"], feed)
    with pytest.raises(Exception, match="sequence length"):
        single.file.run(["images"], feed | {"timesteps": plan.timesteps[1:]})


@pytest.mark.parametrize("options", [{}, {"guidance_interval": (0.0, 0.5)}], ids=["all rows", "some"])
def test_the_guidance_scale_is_of_the_rows_that_the_plan_guides(single: Case, options: dict):
    feed = {"prompt": prompts(*PROMPTS[:2]), "x": noise(single.model)}
    feed |= as_inputs(single.model.plan(guidance_scale=1.5, **options))
    drawn = []
    for scale in (1.5, 4.0, 0.0):
        asked = {} if scale == 1.5 else {"guidance_scale": np.array(scale, np.float32)}
        (images,) = single.file.run(["images"], feed | asked)
        expected = single.model.sample(2, prompt=PROMPTS, guidance_scale=scale, **options).astype(int)
        assert np.abs(images - expected).max() <= 1
        drawn.append(expected)
    assert np.abs(drawn[1] - drawn[0]).max() > 1
    assert np.abs(drawn[2] - drawn[0]).max() > 1


def test_the_guidance_scale_is_of_all_rows_where_the_plan_guides_none(single: Case):
    feed = {"prompt": prompts(*PROMPTS[:2]), "x": noise(single.model)}
    for scale in (1.0, 4.0):
        (images,) = single.file.run(["images"], feed | {"guidance_scale": np.array(scale, np.float32)})
        expected = single.model.sample(2, prompt=PROMPTS, guidance_scale=scale).astype(int)
        assert np.abs(images - expected).max() <= 1


def test_a_model_whose_own_plan_adds_noise_has_another_by_default(single: Case):
    assert not quiet_plan(single.model).column("to_noise").any()
    np.testing.assert_array_equal(quiet_plan(single.model).table, single.model.plan().table)
    noisy = single.model.sampled_by(SamplingConfig(**NOISY, guidance_scale=2.0))
    expected = noisy.plan(sampler="dpmpp_2m", steps=20)
    np.testing.assert_array_equal(quiet_plan(noisy).table, expected.table)
    assert (expected.column("guidance") == 1).all()


def test_a_model_of_few_timesteps_takes_no_more_steps(tmp_path: Path):
    sections = {**TOLD, "process": {**PROCESS, "timesteps": 6}, "sampling": {"sampler": "ancestral", "steps": 6}}
    model = ddpm.load(untrained("short", tmp_path, FACTS, **sections))
    assert len(quiet_plan(model)) == 6


def test_the_export_holds_it_against_torch_from_raw_prompts(single: Case):
    parity = json.loads((single.deploy / "parity.json").read_text())["files"]
    assert set(parity) == {"denoiser.onnx", "sampler.onnx", "text_to_image.onnx"}
    assert parity["text_to_image.onnx"]["passed"]
    assert 0 < parity["text_to_image.onnx"]["max_abs_difference"] <= 1e-3
    assert parity["text_to_image.onnx"]["sha256"] == sha256_of(single.deploy / "text_to_image.onnx")


def test_a_file_that_reads_prompts_otherwise_fails_parity(single: Case, tmp_path: Path):
    deploy = tmp_path / "deploy"
    shutil.copytree(single.deploy, deploy)
    link = link_of(single.model, deploy / "sampler.onnx")
    column = link.columns["prompt"]
    other = replace(column, tokenizer=replace(WORDS, words=WORDS.words[::-1]))
    export_text_to_image({"text": link._replace(columns={"prompt": other})}, deploy / "text_to_image.onnx")
    parity = measure_parity(single.model, deploy, samples=5, steps=5, tolerances={"fp32": 1e-3})
    assert {name for name, file in parity["files"].items() if not file["passed"]} == {"text_to_image.onnx"}
    assert not parity["passed"]


@pytest.mark.slow
def test_in_half_precision(tmp_path: Path):
    deploy = export("text", tmp_path, FACTS, TOLD, fp16=True)
    parity = json.loads((deploy / "parity.json").read_text())["files"]
    assert parity["text_to_image.fp16.onnx"]["max_abs_difference"] > parity["text_to_image.onnx"]["max_abs_difference"]
    sizes = [(deploy / f"text_to_image{precision}.onnx").stat().st_size for precision in (".fp16", "")]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_with_another_tokenizer_the_file_is_left_out_and_the_export_says_so(tmp_path: Path, capsys):
    tokenizer = fit_tokenizer(("red heart",), {"tokenizer": "bpe", "length": 4, "vocabulary_size": 520})
    text = TextFacts(tokenizer=tokenizer.as_json(), captions=("red heart",))
    deploy = export("text", tmp_path, FACTS.model_copy(update={"text": text}), TOLD)
    said = "text: text_to_image.onnx is left out: standard ONNX has no operators for the tokenizer bpe"
    assert said in capsys.readouterr().out.splitlines()
    assert not (deploy / "text_to_image.onnx").exists()
    assert json.loads((deploy / "parity.json").read_text())["passed"]


def test_weights_that_do_not_fit_into_a_file(single: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sampler = single.deploy / "sampler.onnx"
    link = link_of(single.model, sampler)
    write(onnx.load(single.deploy / "denoiser.onnx"), tmp_path / "denoiser.onnx", most_weights=10_000)
    export_sampler(single.model, tmp_path / "denoiser.onnx", tmp_path / "sampler.onnx")
    beside = link_of(single.model, tmp_path / "sampler.onnx")
    with pytest.raises(ValueError, match="at most 2 GiB"):
        export_text_to_image({"text": beside}, tmp_path / "one.onnx")
    size = (single.deploy / "denoiser.onnx").stat().st_size  # of its weights, and more
    monkeypatch.setattr("ddpm.export.text_to_image.MOST_WEIGHTS", size)
    export_text_to_image({"one": link}, tmp_path / "one.onnx")
    with pytest.raises(ValueError, match="at most 2 GiB"):
        export_text_to_image({"one": link, "two": link}, tmp_path / "two.onnx")
    assert not (tmp_path / "two.onnx").exists()


# --- cascades


LARGER = FACTS.model_copy(update={"shape": (16, 16, 3)})
UPSAMPLING = {
    **TOLD,
    "network": SMALL | {"attention_resolutions": [16]},
    "condition": {"prompt": PROMPT, "low": {"side": 8, "noise": 0.5}},
    "sampling": NOISY,
}


class TwoLinks(NamedTuple):
    """Two untrained models, what `ddpm export` made of them, and the file of both opened."""

    base: Model
    upsampler: Model
    links: dict[str, Link]
    path: Path
    file: Any


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> TwoLinks:
    directory = tmp_path_factory.mktemp("cascade")
    models = {"text": {**TOLD, "codec": {"side": 8}}, "larger": UPSAMPLING}
    models = {name: {**TINY_PARAMS["models"]["tiny"], **sections} for name, sections in models.items()}
    for (name, sections), facts in zip(models.items(), (FACTS, LARGER), strict=True):
        untrained_with_norms(name, directory / MODELS, facts, **sections)
    glide = {"base": "text", "upsampler": "larger", "low_noise": 0.1}
    params = Params.model_validate({**TINY_PARAMS, "variants": [], "models": models, "cascades": {"glide": glide}})
    compose(params, "glide", root=directory)
    export_variant(params, "glide", root=directory)
    deploy = directory / DEPLOY / "glide"
    exported = ddpm.load(deploy)
    file = deploy / "text_to_image.onnx"
    trained = [opened(directory / MODELS / name) for name in models]
    return TwoLinks(*trained, links_of(exported, deploy), file, session(onnx.load(file)))


def test_the_inputs_and_outputs_of_two_links(cascade: TwoLinks):
    required = {each.name: (each.type, each.shape) for each in cascade.file.get_inputs()}
    assert required == {
        "prompt": ("tensor(string)", ["N"]),
        "base_x": ("tensor(float)", ["N", 3, 8, 8]),
        "upsampler_x": ("tensor(float)", ["N", 3, 16, 16]),
    }
    optional = {each.name for each in cascade.file.get_overridable_initializers()}
    of_both = {f"{link}_{name}" for link in cascade.links for name in ("plan", "timesteps", "z", "guidance_scale")}
    assert optional == of_both | {"upsampler_low_noise", "upsampler_low_gauss"}
    assert [each.name for each in cascade.file.get_outputs()] == ["images", "x0", "base_images", "base_x0"]
    about = cascade.file.get_modelmeta().custom_metadata_map
    assert [json.loads(about[f"{link}_shape"]) for link in cascade.links] == [[8, 8, 3], [16, 16, 3]]


def asked_of_both(case: TwoLinks, rows: int) -> dict[str, np.ndarray]:
    """Prompts with the noise of a cascade's first two images of seed 0, for a plan of the upsampler of so many rows."""
    seed = link_seed(0, 1)
    draw = ImageNoise(seed, 2, case.upsampler.codec.network_shape).draw
    x, *z = (draw() for _ in range(1 + rows))
    noise_of_low = next(column for column in case.upsampler.columns if column.name == "low_gauss").draw(2, seed=seed)
    return {
        "prompt": prompts(*PROMPTS[:2]),
        "base_x": noise(case.base),
        "base_guidance_scale": np.array(2, np.float32),
        "upsampler_x": x,
        "upsampler_low_gauss": noise_of_low,
        **({"upsampler_z": np.stack(z)} if z else {}),
    }


@pytest.mark.parametrize("low_noise", [None, 0.0, 0.4])
def test_two_links_draw_what_the_cascade_draws(cascade: TwoLinks, low_noise: float | None):
    """By the upsampler's default plan, and with the cascade's own noise in the low image or with another."""
    feed = asked_of_both(cascade, 0)
    if low_noise is not None:
        feed["upsampler_low_noise"] = np.full(2, low_noise, np.float32)
    (images,) = cascade.file.run(["images"], feed)
    upsampler = cascade.upsampler.sampled_by(SamplingConfig(sampler="dpmpp_2m", steps=20))
    expected = Cascade.of(cascade.base, upsampler, low_noise=0.1 if low_noise is None else low_noise)
    drawn = expected.sample(2, prompt=PROMPTS, guidance_scale=2.0).astype(int)
    assert (images.shape, images.dtype) == ((2, 16, 16, 3), np.uint8)
    assert np.abs(images - drawn).max() <= 1
    for other in ({"guidance_scale": 5.0, "prompt": PROMPTS}, {"guidance_scale": 2.0, "prompt": "blue"}):
        assert np.abs(expected.sample(2, **other) - drawn).max() > 1


def test_a_plan_of_one_link_that_adds_noise(cascade: TwoLinks):
    plan = cascade.upsampler.plan()
    feed = asked_of_both(cascade, len(plan))
    feed |= {f"upsampler_{name}": values for name, values in as_inputs(plan).items()}
    (images,) = cascade.file.run(["images"], feed)
    drawn = Cascade.of(cascade.base, cascade.upsampler, low_noise=0.1).sample(2, prompt=PROMPTS, guidance_scale=2.0)
    assert np.abs(images - drawn.astype(int)).max() <= 1


def test_both_loops_are_held_against_torch(cascade: TwoLinks):
    parity = partial(measure_cascade_parity, file=cascade.path, samples=5, steps=5, tolerance=1e-3)
    right = parity(Cascade.of(cascade.base, cascade.upsampler, low_noise=0.2))
    assert right["passed"]
    assert 0 < right["max_abs_difference"] <= 1e-3
    others = []
    for model in (cascade.base, cascade.upsampler):
        network = copy.deepcopy(model.network)
        with torch.no_grad():
            next(network.parameters()).mul_(1.1)
        others.append(replace(model, network=network))
    for links in ((others[0], cascade.upsampler), (cascade.base, others[1])):
        assert not parity(Cascade.of(*links, low_noise=0.2))["passed"]


def test_what_a_link_hands_on_is_held_against_its_codec(cascade: TwoLinks, monkeypatch: pytest.MonkeyPatch):
    codec = type(cascade.base.codec)
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda self, x: decode(self, x) // 2)
    links = Cascade.of(cascade.base, cascade.upsampler, low_noise=0.2)
    parity = measure_cascade_parity(links, cascade.path, samples=2, steps=2, tolerance=1e-3)
    assert not parity["passed"]


def test_the_export_of_a_cascade_writes_one_file_of_both_links(cascade: TwoLinks):
    parity = json.loads((cascade.path.parent / "parity.json").read_text())
    assert parity["passed"]
    found = parity["files"]["text_to_image.onnx"]
    assert 0 < found["max_abs_difference"] <= found["tolerance"] == 1e-3
    assert found["sha256"] == sha256_of(cascade.path)
    assert {path.name for path in cascade.path.parent.rglob("text_to_image*")} == {"text_to_image.onnx"}


def test_weights_are_in_the_file_once(cascade: TwoLinks):
    whole = text_to_image(cascade.links).SerializeToString()
    loops = [link.loop.SerializeToString() for link in cascade.links.values()]
    for link in cascade.links.values():
        (scan,) = (node for node in link.loop.graph.node if node.op_type == "Scan")
        body = next(attribute.g for attribute in scan.attribute if attribute.HasField("g"))
        large = [tensor.raw_data for tensor in body.initializer if len(tensor.raw_data) > 1000]
        assert large
        assert all(whole.count(data) == sum(loop.count(data) for loop in loops) for data in large)


def test_the_readmes_example_runs_with_numpy_onnxruntime_and_pillow_alone(cascade: TwoLinks, tmp_path: Path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n([^`]*text_to_image\.onnx.*?)```", readme, flags=re.DOTALL)
    assert len(example.splitlines()) <= 12
    shutil.copytree(cascade.path.parent, tmp_path / "deploy/glide")
    alone = "import sys\nfor name in ('ddpm', 'torch', 'onnx'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", alone + example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))

    asked, draw = ["Red heart", "blue heart", "grinning cat with sunglasses"], np.random.default_rng(0).standard_normal
    base, upsampler = (Sampler(cascade.path.parent / link) for link in cascade.links)
    x = draw((3, 3, 8, 8), np.float32)
    low = base.decode(base.run(base.plan(), x, lambda: x, base.given(3, prompt=asked)))
    gauss = next(column for column in upsampler.columns if column.name == "low_gauss").draw(1, seed=0)
    given = upsampler.given(3, prompt=asked, low=low, low_noise=0.1, low_gauss=gauss)
    x = draw((3, 3, 16, 16), np.float32)
    expected = upsampler.decode(upsampler.run(quiet_plan(upsampler), x, lambda: x, given))
    assert np.abs(drawn - np.concatenate(expected, axis=1).astype(int)).max() <= 1

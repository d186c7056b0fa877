import re
from pathlib import Path

import pytest
import yaml

from ddpm.cli.explain import explain
from ddpm.cli.main import _parser
from ddpm.config.model import VariantConfig
from ddpm.config.params import Params, load_params
from ddpm.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_shipped_parameters_are_valid_and_explained():
    params = load_params(ROOT / "params.yaml")
    assert params.variants == ("ddpm",)
    again = Params.model_validate(yaml.safe_load(explain(params)))
    assert again == params


def test_every_shipped_model_has_the_sections_that_dvc_tracks():
    models = yaml.safe_load((ROOT / "params.yaml").read_text())["models"]
    for name, sections in models.items():
        assert set(sections) == set(VariantConfig.model_fields), name


def test_the_cifar10_preset_is_the_papers():
    cifar = load_params(ROOT / "params.yaml").models["ddpm-cifar10"]
    assert (cifar.network.width, cifar.network.multipliers, cifar.network.blocks) == (128, (1, 2, 2, 2), 2)
    assert cifar.network.attention_resolutions == (16,)
    training = cifar.training
    assert (training.steps, training.batch_size, training.learning_rate) == (800_000, 128, 2e-4)
    assert (training.ema_decay, training.grad_clip, training.horizontal_flip) == (0.9999, 1.0, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {}}\nvariants: [a]\nsed: 1", "unknown key `sed`"),
        ("models: {a: {trainng: {}}}\nvariants: [a]", "unknown key `models.a.trainng`"),
        (
            "models: {a: {training: {steps: 0}}}\nvariants: [a]",
            "`models.a.training.steps`: input should be greater than 0, found 0",
        ),
        ("models: {a: {network: {dropout: 1.5}}}\nvariants: [a]", "`models.a.network.dropout`.*found 1.5"),
        (
            "models: {a: {process: {schedule: quadratic}}}\nvariants: [a]",
            "`models.a.process.schedule`.*'linear'.*found 'quadratic'",
        ),
        ("models: {a: {process: {timesteps: 10}}}\nvariants: [a]", "sampling.steps is 50, but the process has only 10"),
        (
            "models: {a: {sampling: {clip_range: 5, dynamic_threshold: 0.9}}}\nvariants: [a]",
            "models.a.sampling.clip_range is 5, but dynamic_threshold takes the place of clipping",
        ),
        (
            "models: {a: {sampling: {clip_range: 5, clip: false}}}\nvariants: [a]",
            "models.a.sampling.clip_range is 5, but clip is false",
        ),
        (
            "models: {a: {}}\nvariants: [a]\nevaluation: {sampling: {clip_range: 2, clip: false}}",
            "evaluation.sampling.clip_range is 2, but clip is false",
        ),
        ("models: {a: {}}\nvariants: [b]", "`variants` names 'b', but `models` has only: a"),
        ("models: {a: {}}", "`variants` is not written, which means 'ddpm', but `models` has only: a"),
        ("variants: [a]", "the key `models` is missing"),
        ("data: {source: folder}\nmodels: {a: {}}\nvariants: [a]", "data: `path` goes with `source: folder`"),
        ("data: {path: x}\nmodels: {a: {}}\nvariants: [a]", "data: `path` goes with `source: folder`"),
        ("models: {a.b: {}}\nvariants: [a.b]", "models.a.b"),
        ("models: {a: {}}\nvariants: [a, a]", "`variants` names a model twice: a, a"),
        ("models: [", "not valid YAML"),
        ("42", "expected keys such as"),
    ],
)
def test_wrong_parameters_are_answered_in_one_line(tmp_path: Path, text: str, words: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_no_parameters_here(tmp_path: Path):
    with pytest.raises(UserError, match="run ddpm in the project's folder"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({}, "digits"),
        ({"source": "cifar10"}, "cifar10"),
        ({"source": "folder", "path": "my/Cat Photos!"}, "cat-photos"),
        ({"source": "folder", "path": "my/x", "name": "cats"}, "cats"),
    ],
)
def test_the_data_sets_name(data: dict, name: str):
    assert Params.model_validate({"data": data, "models": {"ddpm": {}}}).data.dataset_name == name


def test_networks_are_told_apart_by_their_kind(tmp_path: Path):
    network = (
        Params.model_validate({"models": {"ddpm": {"network": {"kind": "linear-attention"}}}}).models["ddpm"].network
    )
    assert (network.kind, network.width) == ("linear-attention", 64)
    path = tmp_path / "params.yaml"
    for text, words in [
        ("{kind: linear-attention, groups: 4}", "unknown key `models.ddpm.network.groups`"),
        ("{kind: transformer}", "`models.ddpm.network`: expected `kind` to be one of unet, linear-attention"),
    ]:
        path.write_text(f"models: {{ddpm: {{network: {text}}}}}")
        with pytest.raises(UserError, match=words):
            load_params(path)


def test_the_readmes_command_for_own_images_is_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    ddpm (init .*)$", readme, flags=re.MULTILINE)
    arguments = _parser().parse_args(line.split())
    assert (arguments.directory, arguments.images, arguments.size) == (
        Path("pictures"),
        Path("/home/me/pictures"),
        32,
    )

"""params.yaml as others read and change it: DVC's `-S`, hands that err, and `ddpm config`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError

from ddpm import cli
from ddpm.cli.explain import explain
from ddpm.config.base import Section
from ddpm.config.data import DataConfig
from ddpm.config.evaluation import EvaluationConfig
from ddpm.config.export import ExportConfig
from ddpm.config.extractor import ExtractorConfig
from ddpm.config.model import VariantConfig
from ddpm.config.network import NETWORKS
from ddpm.config.objective import ObjectiveConfig
from ddpm.config.params import Params, load_params
from ddpm.config.process import ProcessConfig
from ddpm.config.promotion import PromotionConfig, Tolerances
from ddpm.config.sampling import SamplingConfig
from ddpm.config.training import TrainingConfig
from ddpm.config.yaml_file import aliases, read_yaml
from ddpm.errors import UserError

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def written(section: dict, prefix: str = "") -> dict[str, object]:
    """Every key that has a value, by its dotted name."""
    found = {}
    for key, value in section.items():
        found |= written(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_each_key_of_each_model_is_changed_alone_by_dvcs_set_param(tmp_path: Path):
    """DVC stores what a YAML alias names as one object: a key set in one model would change in all that share it."""
    path = tmp_path / "params.yaml"
    path.write_bytes(SHIPPED.read_bytes())
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    keys = written(shipped)
    changed = {key: f"new-{number}" for number, key in enumerate(keys)}
    assert {section for model in shipped["models"].values() for section in model} == set(VariantConfig.model_fields)
    apply_overrides(path, [f"{key}={value}" for key, value in changed.items()])
    assert written(yaml.safe_load(path.read_text(encoding="utf-8"))) == changed


def test_one_key_is_changed_and_nothing_else(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_bytes(SHIPPED.read_bytes())
    before = written(yaml.safe_load(path.read_text(encoding="utf-8")))
    # `+` is for a key that is not written; `++` is for both.
    apply_overrides(path, ["models.ddpm.training.steps=4000", "++models.adm.training.grad_clip=0.5"])
    after = written(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert after == before | {"models.ddpm.training.steps": 4000, "models.adm.training.grad_clip": 0.5}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_dvc_exp_run_trains_with_the_key_that_is_set(tmp_path: Path):
    """The command itself, in a clone without a git identity."""
    stages = {"copy": {"cmd": "cp params.yaml copy.yaml", "params": ["models.ddpm.training"], "outs": ["copy.yaml"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "params.yaml").write_bytes(SHIPPED.read_bytes())
    (tmp_path / "home").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "DVC_NO_ANALYTICS": "1"}
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first"],
        ["dvc", "exp", "run", "-S", "models.ddpm.training.steps=4000"],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    before, after = (written(yaml.safe_load(file.read_text())) for file in (SHIPPED, tmp_path / "copy.yaml"))
    assert after == before | {"models.ddpm.training.steps": 4000}


def test_what_ships_has_no_alias_and_one_in_a_users_file_is_warned_of(tmp_path: Path, capsys):
    assert aliases(SHIPPED) == []
    path = tmp_path / "params.yaml"
    path.write_text("models: {ddpm: {training: &t {steps: 5}}, adm: {training: {<<: *t, batch_size: 8}}}")
    assert load_params(path).models["adm"].training.steps == 5
    assert "`*t` is a YAML alias" in capsys.readouterr().err


def test_sections_may_be_left_out_but_where_dvc_tracks_them(tmp_path: Path, monkeypatch):
    path = tmp_path / "params.yaml"
    path.write_text("models: {ddpm: {network: {width: 64}, training: {steps: 5}}, other: {}}")
    assert load_params(path).models["other"] == Params.model_validate({"models": {"ddpm": {}}}).models["ddpm"]
    monkeypatch.setenv("DVC_STAGE", "fetch")
    missing = "`condition: {}`, `codec: {}`, `process: {}`, `objective: {}`, `sampling: {}`"
    tops = "`seed: 0`, `data: {}`, `extractor: {}`, `evaluation: {}`, `export: {}` beside `models`"
    with pytest.raises(UserError, match=rf"add {tops}; {missing} under models\.ddpm$"):
        load_params(path)
    sections = ", ".join(f"{name}: {{}}" for name in VariantConfig.model_fields)
    path.write_text(
        f"seed: 0\ndata: {{}}\nextractor: {{}}\nevaluation: {{}}\nexport: {{}}\n"
        f"models: {{ddpm: {{{sections}}}, other: {{}}}}"
    )
    assert set(load_params(path).models) == {"ddpm", "other"}


HUGE = "0x" + "f" * 5000
MODEL = "models: {ddpm: {training: {steps: %s}}}"
WRONG = {
    "5,000 digits": (MODEL % ("9" * 5000), r"'9+\.\.\.9+' cannot be read as int at line 1"),
    "hexadecimal": (MODEL % HUGE, r"`models.ddpm.training.steps`: .*found a number of 20000 bits"),
    "hexadecimal in a list": (f"models: {{ddpm: {{network: {{multipliers: [{HUGE}]}}}}}}", "a number of 20000 bits"),
    "hexadecimal as a key": (f"models: {{ddpm: {{? {HUGE} : 1}}}}", "a number of 20000 bits"),
    "hexadecimal in a choice": (f"models: {{ddpm: {{training: {{micro_batch_size: {HUGE}}}}}}}", "auto or null, found"),
    "more than an int": (MODEL % 2**31, "less than or equal to 2147483647, found 2147483648"),
    "infinity": ("models: {ddpm: {training: {learning_rate: .inf}}}", "finite number, found inf"),
    "no character": ('seed: "\\U00110000"', "invalid Unicode character"),
    "nested lists": ("[" * 1_000_000, "nested more than 30 levels deep"),
    "nested keys": ("{a: " * 200_000, "nested more than 30 levels deep"),
    "a large file": (f"# {'x' * 10_000_000}\n{MODEL % 5}", "larger than 1 MiB"),
    "a date": ("seed: 2001-13-45", "'2001-13-45' cannot be read as timestamp at line 1"),
    "a tag": ("seed: !!bool maybe", "'maybe' cannot be read as bool"),
    "an object": ("seed: !!python/object:os.system {}", "could not determine a constructor"),
    "two documents": ("seed: 1\n---\nseed: 2", "expected a single document"),
    "a key twice": ("models:\n  a: {}\nmodels:\n  b: {}", "the key 'models' is there twice at line 3"),
    "a list as kind": ("models: {ddpm: {network: {kind: [1]}}}", "expected `kind` to be one of unet"),
    "a word as section": ("models: {ddpm: {network: {}, training: fast}}", "expected keys below it, found 'fast'"),
    "a key of two lines": ('models: {ddpm: {"a\\nb": 1}}', r"unknown key `models.ddpm.a\\nb`"),
    "an endless text": (f"variants: [{'x' * 100_000}]\nmodels: {{ddpm: {{}}}}", "`variants` names 'x{10,}"),
    "no such user": ("data: {source: folder, path: ~nosuch/x}\nmodels: {a: {}}", "data.path: .* no user 'nosuch'"),
    "NUL": ('data: {source: folder, path: "a\\0b"}\nmodels: {ddpm: {}}', "data.path: a path has no NUL character"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_whatever_is_in_the_file_the_answer_is_one_line(tmp_path: Path, case: str):
    text, words = WRONG[case]
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(path))) < 400


SECTIONS = [
    *(DataConfig, *NETWORKS.values(), ProcessConfig, ObjectiveConfig, TrainingConfig, SamplingConfig),
    *(ExtractorConfig, EvaluationConfig, ExportConfig, Tolerances, PromotionConfig, Params),
]
NEEDED = {section: {"kind": kind} for kind, section in NETWORKS.items()} | {Params: {"models": {"ddpm": {}}}}


OTHERS = [True, False, 1, 0, 10.0, "10", "0.5", "1e-3", "yes", "true", [True], ["8"]]


@pytest.mark.parametrize("value", OTHERS, ids=repr)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_value_is_taken_as_it_is_or_not_at_all(section: type[Section], value):
    """`steps: true` is not one step, "10" is text, and 1 does not switch anything on. Whole floats are whole numbers,
    since YAML reads 1e5 as one.
    """
    needed = NEEDED.get(section, {})
    for key in section.model_fields.keys() - needed.keys():
        try:
            taken = getattr(section.model_validate({**needed, key: value}), key)
        except ValidationError:
            continue
        taken = list(taken) if isinstance(taken, tuple) else taken
        assert taken == value, key
        assert type(taken) is type(value) or {type(taken), type(value)} == {int, float}, f"{key}: {taken!r}"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("steps: true", "`models.ddpm.training.steps`: input should be a valid integer, found True"),
        ('steps: "10"', "`models.ddpm.training.steps`: input should be a valid integer, found '10'"),
        ("steps: 10.5", "`models.ddpm.training.steps`: input should be a valid integer.*, found 10.5"),
        ("learning_rate: true", "`models.ddpm.training.learning_rate`: input should be a valid number, found True"),
        ("ema_warmup: 1", "`models.ddpm.training.ema_warmup`: input should be a valid boolean, found 1"),
        ("micro_batch_size: true", "expected a number above 0, auto or null, found True"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, written: str, words: str):
    path = tmp_path / "params.yaml"
    path.write_text(f"models: {{ddpm: {{training: {{{written}}}}}}}")
    with pytest.raises(UserError, match=words):
        load_params(path)


def test_numbers_are_read_however_dvc_and_people_write_them(tmp_path: Path):
    """DVC writes 0.00001 as 1e-05, which YAML 1.1 takes for text."""
    path = tmp_path / "params.yaml"
    path.write_text("models: {ddpm: {training: {steps: 5, learning_rate: 0.1}}}")
    apply_overrides(path, ["models.ddpm.training.learning_rate=0.00001", "+models.ddpm.training.gamma_=1E+2"])
    assert "learning_rate: 1e-05" in path.read_text()
    path.write_text(path.read_text().replace("steps: 5", "steps: 1e5").replace("gamma_", "grad_clip"))
    training = load_params(path).models["ddpm"].training
    assert (training.steps, training.learning_rate, training.grad_clip) == (100_000, 1e-5, 100.0)
    assert type(training.steps) is int


def test_three_thousand_models_are_read(tmp_path: Path):
    path = tmp_path / "params.yaml"
    names = [f"m{number}" for number in range(3000)]
    path.write_text(yaml.safe_dump({"variants": names[:1], "models": {name: {"process": {}} for name in names}}))
    assert len(load_params(path).models) == 3000
    with pytest.raises(UserError, match=r"there is no model 'x' in params.yaml; it has: m0, m1, .*, and 2988 more"):
        load_params(path).variant("x")


def test_merge_keys_and_aliases_of_an_older_file_are_read(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {b: 1}\nc: {<<: *a, d: 2}\ne: [*a]\n")
    assert read_yaml(path) == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": [{"b": 1}]}


# --- ddpm config ------------------------------------------------------------------------------------------------------


def test_what_is_shown_as_changed_is_the_whole_of_it():
    params = load_params(SHIPPED)
    shown = yaml.safe_load(explain(params, changed=True))
    assert Params.model_validate(shown) == params
    assert shown["models"]["ddpm-cifar10"]["sampling"] == {"sampler": "ancestral", "steps": 1000}
    quick = Params.model_validate({"evaluation": {"protocol": "quick", "splits": 3}, "models": {"ddpm": {}}})
    assert yaml.safe_load(explain(quick, changed=True)) == {
        "evaluation": {"protocol": "quick", "splits": 3},
        "models": {"ddpm": {}},
    }


def test_one_model_is_shown_with_the_values_its_keys_take():
    params = load_params(SHIPPED)
    text = explain(params, "linear-attention")
    assert list(yaml.safe_load(text)["models"]) == ["linear-attention"]
    for line in (
        f"kind: linear-attention  # [{' | '.join(NETWORKS)}]",
        "dropout: 0.0  # [a number ≥ 0, < 1]",
        "downsample: unshuffle  # conv: kernel 4, stride 2; unshuffle, of images: 2x2 squares into the channels "
        "[conv | unshuffle]",
        "[an integer > 0 | auto | null]",
        "[true | false | auto]",
    ):
        assert line in text
    with pytest.raises(UserError, match=r"there is no model 'none'"):
        explain(params, "none")


# --- The command line -------------------------------------------------------------------------------------------------


def test_the_help_is_printed_in_a_narrow_encoding(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    sys.stdout.flush()
    assert left.value.code == 0
    assert b"checked against data.dvc     ? data/" in written.getvalue()


def test_the_shell_completes_commands(tmp_path: Path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "ddpm.bash"
    script.write_text(capsys.readouterr().out)
    asked = f"source {script}; COMP_WORDS=(ddpm com); COMP_CWORD=1; _shtab_ddpm; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["compare", "completion", "compose"]

"""docker/: what can be known of images and stack without an engine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils import exclude_paths
from dockerfile import parse, sources
from dotenv import dotenv_values
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
LOCKS = sorted(DOCKER.glob("*.lock"))

# ${NAME}, ${NAME:?message} or ${NAME:-default}; in a shell's script compose would need $$.
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(stack: dict[str, Any]) -> dict[str, Any]:
    return stack["services"]


def in_context() -> set[str]:
    """The files and folders that .dockerignore lets through, by the rules of Docker's own client."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return exclude_paths(str(ROOT), patterns) - {".dockerignore"}


# --- Images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_in_the_build_context(path: Path):
    context = in_context()
    wanted = sources(parse(path))
    assert wanted
    for source in wanted:
        assert (ROOT / source).exists(), source
        assert source in context, f".dockerignore leaves {source} out"


def test_nothing_else_is_in_the_build_context():
    """No data, no model, no secret, no history is sent to a builder."""
    wanted = {source for path in DOCKERFILES for source in sources(parse(path))}
    files = {name for name in in_context() if (ROOT / name).is_file()}
    assert {name for name in files if not any(name == w or name.startswith(f"{w}/") for w in wanted)} == set()
    assert not any("__pycache__" in name for name in files)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_stage_stands_on_something_named(path: Path):
    steps = parse(path)
    defaults = dict(step.rest.split("=", 1) for step in steps if step.keyword == "ARG" and "=" in step.rest)
    stages: list[str] = []
    for step in steps:
        if step.keyword == "FROM":
            base, *alias = re.split(r"\s+AS\s+", step.rest)
            base = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base)
            assert re.fullmatch(r"[\w./-]+:[\w.-]+", base), f"{base}: a tag is expected"
            assert not base.endswith(":latest")
            stages += alias
        for flag in step.flags:
            if taken := re.search(r"(?:^|,)from=(\w+)", flag):
                assert taken[1] in stages


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_nobody_in_particular_and_installs_nothing_unpinned(path: Path):
    steps = parse(path)
    last = max(index for index, step in enumerate(steps) if step.keyword == "FROM")
    users = [step.rest for step in steps[last:] if step.keyword == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    for step in steps:
        if step.keyword == "RUN":
            for command in re.findall(r"pip install [^&]*", step.rest):
                assert "--require-hashes" in command or "--no-deps" in command, command


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_says_what_it_is(path: Path):
    (label,) = (step.rest for step in parse(path) if step.keyword == "LABEL")
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', label))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert labels.pop("description")
    assert labels == {
        "title": f"ddpm-{path.name.split('.')[0]}",
        "version": project["version"],
        "licenses": project["license"],
        "revision": "${REVISION}",
    }


def test_the_packages_of_the_serve_image_are_a_layer_without_its_code():
    """Code that changes leaves them as they are: neither installed nor transferred anew."""
    steps = parse(DOCKER / "serve.Dockerfile")
    stages = [step.rest.split(" AS ")[-1] for step in steps if step.keyword == "FROM"]
    packages = steps[[step.rest.endswith(" AS packages") for step in steps].index(True) :]
    packages = packages[: [step.keyword == "FROM" for step in packages[1:]].index(True) + 1]
    assert "packages" in stages
    assert sources(packages) == ["docker/serve.lock"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_built_from_a_file_is_built_anew_when_it_changes(path: Path):
    """podman and buildah keep a layer whose bind mount has changed, and would ship the old code."""
    assert [flag for step in parse(path) for flag in step.flags if flag.startswith("mount=type=bind")] == []


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_by_hash_and_agrees_with_the_projects(path: Path):
    pins, project = pinned(path), pinned(ROOT / "requirements.lock")
    assert pins
    entries = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in path.read_text(encoding="utf-8")
    assert {name: version for name, version in pins.items() if project.get(name, version) != version} == {}


def test_the_serve_lock_is_the_serve_extra():
    """Every requirement is met, the runtime is onnxruntime's CPU build, and what comes along is little."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = pinned(DOCKER / "serve.lock")
    for text in [*project["dependencies"], *project["optional-dependencies"]["serve"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(Version(pins[requirement.name])), text
    assert len(pins) <= 25


def pinned(lock: Path) -> dict[str, str]:
    """Name → version."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash(path: Path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- The stack ------------------------------------------------------------------------------------------------------


def test_every_variable_is_in_the_example_and_no_secret_has_a_value():
    example = dotenv_values(DOCKER / ".env.example")
    used = VARIABLE.findall((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    assert {name for name, _, _ in used} == set(example)
    for name, kind, default in used:
        # Either it has to be given, or the example shows the default.
        assert kind, name
        assert example[name] == (default if kind == "-" else ""), name
        if re.search("PASSWORD|SECRET|KEY", name):
            assert kind == "?", f"{name} has a default"


def test_a_password_of_any_characters_reaches_its_server_when_filled_in_as_the_example_shows(tmp_path: Path):
    """Quoted. `docker compose config` reads .env the same way; without quotes it replaces `$x` and cuts at ` #`."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    quoted = [line for line in lines if line.endswith("=''")]
    secret = re.compile("PASSWORD|SECRET|KEY|AUTH")
    assert {line for line in lines if line[:1] != "#" and secret.search(line)} == set(quoted)
    password = 'a$b ${HOME} #c"d'
    (tmp_path / ".env").write_text("\n".join(line.replace("''", f"'{password}'") for line in quoted))
    # Compose takes what is in single quotes as it is; this library would replace ${…} there too.
    assert set(dotenv_values(tmp_path / ".env", interpolate=False).values()) == {password}


def test_no_secret_is_written_down(services: dict[str, Any]):
    for name, service in services.items():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY_ID", key):
                assert VARIABLE.fullmatch(value), f"{name}: {key}"


def test_what_a_service_names_is_there(stack: dict[str, Any], services: dict[str, Any]):
    for name, service in services.items():
        assert set(service["networks"]) <= set(stack["networks"]), name
        if build := service.get("build"):
            assert (DOCKER / build["context"]).resolve() == ROOT
            assert ROOT / build["dockerfile"] in DOCKERFILES
        else:
            assert not service["image"].endswith(":latest"), name
            assert ":" in service["image"], name
        for volume in service.get("volumes", []):
            source, _, _ = volume.partition(":")
            assert (DOCKER / source).exists() if source.startswith(".") else source in stack["volumes"], source


def test_nothing_waits_for_what_never_comes(services: dict[str, Any]):
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
            else:
                assert condition["condition"] == "service_completed_successfully"
                assert "restart" not in services[other], f"{name} waits for {other}"
    assert all("healthcheck" in service for service in services.values() if "restart" in service)


def test_only_the_two_pages_are_published_and_only_here(stack: dict[str, Any], services: dict[str, Any]):
    assert {name for name, service in services.items() if "ports" in service} == {"mlflow", "prefect"}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert stack["networks"]["stores"]["internal"]
    assert services["postgres"]["networks"] == services["store"]["networks"] == ["stores"]
    assert services["worker"]["networks"] == ["pages"]


def test_the_bucket_that_is_made_is_the_one_that_is_used(services: dict[str, Any]):
    bucket = services["bucket"]["environment"]["S3_BUCKET"]
    assert f"--artifacts-destination=proxied-s3://{bucket}" in services["mlflow"]["command"]


def test_mlflow_has_no_address_of_the_store_to_offer(monkeypatch: pytest.MonkeyPatch):
    """Its server offers its clients what a repository with these bases gives out."""
    from mlflow.store.artifact.artifact_repo import ArtifactRepository, MultipartDownloadMixin, MultipartUploadMixin

    project = tomllib.loads((DOCKER / "mlflow_plugin/pyproject.toml").read_text(encoding="utf-8"))["project"]
    (entry,) = project["entry-points"]["mlflow.artifact_repository"].items()
    monkeypatch.syspath_prepend(DOCKER / "mlflow_plugin")
    plugin = EntryPoint(*entry, group="mlflow.artifact_repository").load()
    assert entry[0] == "proxied-s3"
    assert issubclass(plugin, ArtifactRepository)
    assert not issubclass(plugin, (MultipartDownloadMixin, MultipartUploadMixin))
    repository = plugin("proxied-s3://mlflow", tracking_uri=None, registry_uri=None)
    assert repository._s3.artifact_uri == "s3://mlflow"


def test_a_service_writes_to_its_volumes_alone_and_takes_a_bounded_part_of_the_machine(services: dict[str, Any]):
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
    assert {name for name, service in services.items() if "cap_add" in service} == {"postgres"}


def test_prefects_server_answers_the_stacks_own_names_and_no_others(services: dict[str, Any]):
    command = [VARIABLE.sub(lambda match: match[3], word) for word in services["prefect"]["command"]]
    assert command[:2] == ["python", "/opt/prefect_server.py"]
    (names,) = (word.partition("=")[2].split(",") for word in command if word.startswith("--allowed-hosts="))
    assert set(names) == {"127.0.0.1:4200", "localhost:4200", "prefect:4200"}
    assert services["worker"]["environment"]["PREFECT_API_URL"] == "http://prefect:4200/api"
    # The pages' own address is the first.
    assert names[0] == "127.0.0.1:4200"
    assert "flows/work-pool.json" in services["worker"]["command"][-1]
    for name, variable in (("prefect", "PREFECT_SERVER_API_AUTH_STRING"), ("worker", "PREFECT_API_AUTH_STRING")):
        assert services[name]["environment"][variable] == "${PREFECT_AUTH_STRING:-}"


def test_both_databases_are_made_with_the_passwords_that_the_servers_have(services: dict[str, Any]):
    script = (DOCKER / "postgres-init.sh").read_text(encoding="utf-8")
    (names,) = re.findall(r"for name in (.*); do", script)
    for name in names.split():
        password = services["postgres"]["environment"][f"{name.upper()}_DB_PASSWORD"]
        assert services[name]["environment"]["PGPASSWORD"] == password
        uri = next(value for value in services[name]["environment"].values() if value.startswith("postgresql"))
        assert re.fullmatch(rf"postgresql\+\w+://{name}@postgres/{name}", uri)


@pytest.mark.parametrize("name", ["prefect", "worker"])
def test_prefect_takes_its_settings(services: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch):
    """A variable that Prefect does not know is passed over in silence."""
    from prefect.settings import Settings

    given = {key: value for key, value in services[name]["environment"].items() if key.startswith("PREFECT_")}
    for key, value in given.items():
        monkeypatch.setenv(key, VARIABLE.sub(lambda match: match[3], value))
    assert given.keys() <= Settings().to_environment_variables(exclude_unset=True).keys()


def test_mlflow_takes_its_settings_and_options(services: dict[str, Any]):
    import mlflow.environment_variables
    from mlflow.cli import server

    options = {name for parameter in server.params for name in parameter.opts}
    given = {word.partition("=")[0] for word in services["mlflow"]["command"] if word.startswith("--")}
    assert given
    assert given <= options
    of_options = {parameter.envvar for parameter in server.params}
    for key in services["mlflow"]["environment"]:
        if key.startswith("MLFLOW_"):
            assert key in of_options or hasattr(mlflow.environment_variables, key), key


def test_nothing_reports_home(services: dict[str, Any]):
    assert services["mlflow"]["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert services["prefect"]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    image = " ".join(step.rest for step in parse(DOCKER / "train.Dockerfile") if step.keyword == "ENV")
    for setting in (
        "DO_NOT_TRACK=true",
        "DVC_NO_ANALYTICS=true",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "ORT_DISABLE_TELEMETRY=1",
    ):
        assert setting in image


def test_the_gpu_is_given_to_a_service_that_exists(services: dict[str, Any]):
    extra = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(extra["services"]) == {"worker"} <= set(services)

"""Servers to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from denoisers import write_conditional, write_decoder, write_deploy, write_unclip
from once import made_once
from service import Server
from untrained import ONE_LEVEL, export, untrained

import ddpm
from ddpm.conditioning.tokenizers import Words
from ddpm.model.card import DataFacts


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deploy(tmp_path_factory.mktemp("serve") / "dots")


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conditional(tmp_path_factory.mktemp("serve") / "classes")


def exported(folder: Path, facts: DataFacts, condition: dict[str, Any]) -> None:
    """An untrained model with a condition, in `folder`, and exported below it."""
    model = untrained("model", folder, facts, network=ONE_LEVEL, condition=condition)
    export(ddpm.load(model), folder / "deploy")


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upsampler that is conditioned on a prompt too, with noise on its small image."""
    words = Words(("blue", "heart", "red"), 4)
    text = {"tokenizer": words.as_json(), "captions": ("red heart", "blue heart")}
    facts = DataFacts(name="dots", shape=(8, 8, 3), classes=None, text=text)
    prompt = {"length": 4, "width": 16, "layers": 1, "heads": 2}
    condition = {"prompt": prompt, "low": {"side": 4, "noise": 0.5}}
    return made_once(tmp_path_factory, "told", lambda folder: exported(folder, facts, condition)) / "deploy"


@pytest.fixture(scope="session")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a control that follows edges."""
    facts = DataFacts(name="dots", shape=(8, 8, 1), classes=None)
    condition = {"control": {"of": "models/base", "hint": "edges", "widths": [4, 8]}}
    return made_once(tmp_path_factory, "hinted", lambda folder: exported(folder, facts, condition)) / "deploy"


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("serve") / "decoder")


@pytest.fixture(scope="session")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported prior, of several candidates, and such a decoder as one model."""
    return write_unclip(tmp_path_factory.mktemp("serve") / "unclip", candidates=3)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of the test's own; those that still run at its end are killed."""
    servers: list[Server] = []

    def start(*arguments: Any, **environment: str) -> Server:
        servers.append(Server(tmp_path, *arguments, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers for every test that leaves them as they were; at the end all of them end well."""
    servers: list[Server] = []

    def serve(model: Path, *options: str) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), model, *options))
        return servers[-1]

    yield serve
    assert [server.stop() for server in servers] == [0] * len(servers)


@pytest.fixture(scope="session")
def server(deploy: Path, serve: Callable[..., Server]) -> Server:
    return serve(deploy)


@pytest.fixture(scope="session")
def conditional_server(conditional: Path, serve: Callable[..., Server]) -> Server:
    """Of a model with classes that can be guided."""
    return serve(conditional, "--max-evaluations", "1000")


@pytest.fixture(scope="session")
def told_server(told: Path, serve: Callable[..., Server]) -> Server:
    return serve(told)


@pytest.fixture(scope="session")
def hinted_server(hinted: Path, serve: Callable[..., Server]) -> Server:
    return serve(hinted)


@pytest.fixture(scope="session")
def alike_server(decoder: Path, serve: Callable[..., Server]) -> Server:
    return serve(decoder, "--window", "0.3", "--max-images", "64")


@pytest.fixture(scope="session")
def unclip_server(unclip: Path, serve: Callable[..., Server]) -> Server:
    return serve(unclip)

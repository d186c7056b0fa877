"""Servers to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from denoisers import write_conditional, write_decoder, write_deploy, write_unclip
from service import Server
from untrained import export, untrained


@pytest.fixture(scope="session")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deploy(tmp_path_factory.mktemp("serve") / "dots")


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conditional(tmp_path_factory.mktemp("serve") / "classes")


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upsampler that is conditioned on a prompt too, with noise on its small image."""
    import ddpm
    from ddpm.conditioning.tokenizers import Words
    from ddpm.model.card import DataFacts

    words = Words(("blue", "heart", "red"), 4)
    text = {"tokenizer": words.as_json(), "captions": ("red heart", "blue heart")}
    facts = DataFacts(name="dots", shape=(8, 8, 3), classes=None, text=text)
    prompt = {"length": 4, "width": 16, "layers": 1, "heads": 2}
    folder = tmp_path_factory.mktemp("told")
    condition = {"prompt": prompt, "low": {"side": 4, "noise": 0.5}}
    return export(ddpm.load(untrained("told", folder, facts, condition=condition)), folder / "deploy")


@pytest.fixture(scope="session")
def told_server(told: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, of that model."""
    server = Server(tmp_path_factory.mktemp("told-server"), told)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a control that follows edges."""
    import ddpm
    from ddpm.model.card import DataFacts

    facts, folder = DataFacts(name="dots", shape=(8, 8, 1), classes=None), tmp_path_factory.mktemp("hinted")
    condition = {"control": {"of": "models/base", "hint": "edges", "widths": [4, 8]}}
    return export(ddpm.load(untrained("hinted", folder, facts, condition=condition)), folder / "deploy")


@pytest.fixture(scope="session")
def hinted_server(hinted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, of that model."""
    server = Server(tmp_path_factory.mktemp("hinted-server"), hinted)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported prior, of several candidates, and such a decoder as one model."""
    return write_unclip(tmp_path_factory.mktemp("serve") / "unclip", candidates=3)


@pytest.fixture(scope="session")
def unclip_server(unclip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, of that model."""
    server = Server(tmp_path_factory.mktemp("unclip-server"), unclip)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("serve") / "decoder")


@pytest.fixture(scope="session")
def alike_server(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, of that model."""
    server = Server(tmp_path_factory.mktemp("alike-server"), decoder, "--window", "0.3", "--max-images", "64")
    yield server
    assert server.stop() == 0


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
def server(deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for every test that leaves it as it was."""
    server = Server(tmp_path_factory.mktemp("server"), deploy)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def conditional_server(conditional: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, of a model with classes that can be guided."""
    server = Server(tmp_path_factory.mktemp("conditional-server"), conditional, "--max-evaluations", "1000")
    yield server
    assert server.stop() == 0

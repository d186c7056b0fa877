"""A project in a temporary folder, images to fill folders with, and an upstream on the loopback interface."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm.config.params import Params
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def params() -> Callable[..., Params]:
    """Make params with the given keys below `data:`."""

    def make(*, seed: int = 0, **data: Any) -> Params:
        return Params.model_validate({"seed": seed, "data": data, "models": {"ddpm": {}}})

    return make


@pytest.fixture
def photos(root: Path) -> Callable[..., Path]:
    """Fill a folder beside the project with images: a mapping of names to (mode, size), content by seeded noise."""

    def make(files: dict[str, tuple[str, tuple[int, int]]]) -> Path:
        folder = root.parent / "photos"
        random = np.random.RandomState(len(files))
        for name, (mode, (width, height)) in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            noise = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(noise).convert(mode).save(folder / name)
        return folder

    return make


@pytest.fixture
def prepared(root: Path, params: Callable[..., Params]) -> Callable[..., Any]:
    """Fetch and prepare, with the given keys below `data:`; the manifest."""

    def run(**data: Any) -> Any:
        fetch(params(**data), root=root)
        return prepare(params(**data), root=root)

    return run


@pytest.fixture
def upstream() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server on this machine: its address, and the files it has."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", files
        server.shutdown()

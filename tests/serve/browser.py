"""Chromium without a window, steered over its DevTools protocol."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page.

    Args:
        online: resolve names of other machines.
    """

    def __init__(self, profile: Path, *, online: bool = True) -> None:
        assert CHROMIUM is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        options += ["about:blank"] if online else ["--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"]
        self._process = subprocess.Popen([CHROMIUM, *options], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        address = next(line.split()[-1] for line in self._process.stderr if line.startswith("DevTools listening"))
        with urllib.request.urlopen(f"http://{urlsplit(address).netloc}/json/list") as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self._numbers = itertools.count()

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(timeout=120))).get("id") != number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def open(self, url: str, *, width: int = 1100, height: int = 900, scheme: str = "light") -> None:
        """Go there in a window of that size, on a system of that colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        before = self.run("performance.timeOrigin")
        self.call("Page.navigate", url=url)
        while self.run("performance.timeOrigin") == before:
            time.sleep(0.01)

    def run(self, script: str) -> Any:
        """The value of an expression; of a promise, what it comes to."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screen(self) -> np.ndarray:
        """What is seen, in grey [H, W]."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.array(Image.open(io.BytesIO(png)).convert("L"))

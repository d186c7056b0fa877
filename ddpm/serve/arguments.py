"""The command line of `ddpm serve`. Standard library alone, as all of the command line's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields

from ddpm.serve.settings import Settings

MANUAL = """\
Draw images over HTTP from an exported model. Needs ddpm[serve]; for a registered model ddpm[pipeline] too.

  ddpm serve deploy/ddpm
  ddpm serve models:/ddpm-digits@champion     follow the alias: a new champion takes over without a failed request

  POST /v1/images   {"n": 16, "seed": 0, "sampler": "ddim", "steps": 50, "eta": 0.0, "format": "png"}
                    every key is optional; png, npy or json. Image i of a seed is always the same
                    conditional models: "label": a name, a number or a list of them, "guidance_scale": 3.0,
                    "guidance_interval": [0.1, 0.8]
                    models of captions: "prompt": a text or a list of them
                    models with a control: "control", "control_scale", "control_interval", "guess"
                    upsamplers: "low"; all models of images: "image" and "mask", of which white is kept;
                    models of CLIP embeddings: "like": a picture to draw variations of, or a list of them;
                    "mix": 9 draws 9 images, in place of "n", on the way from the first of two pictures to the second;
                    "from": "man", "to": "woman" change one picture by the difference of the two texts, and
                    "strength": 0.4, above 0 and at most 1, says how far; "mix" is then on the way to the changed one
                    each picture is a PNG in base64, in the size that GET /v1/model has in its "columns"
  GET  /            a page with the pictures and sliders
  GET  /v1/model    the model, its classes, what a request may ask for, and its limits
  GET  /docs        the API; as OpenAPI: /openapi.json
  GET  /health      the process is alive
  GET  /ready       503 until the model is loaded, and after the signal to stop
  GET  /metrics     for Prometheus

Requests that wait at the same time for the same plan are drawn together. After SIGTERM or Ctrl-C accepted requests
finish; a second signal ends them. The log goes to standard error, one JSON object per line. There is no authentication:
to serve other machines, put a proxy in front that provides it.
"""


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """Describe the command, and its options with the defaults of `Settings`."""
    serve.description, serve.formatter_class = MANUAL, argparse.RawDescriptionHelpFormatter
    serve.add_argument("model", metavar="MODEL", help="deploy/V, or a URI such as models:/ddpm-digits@champion")
    serve.add_argument(
        "--host", type=_host, default="127.0.0.1", help="the address to listen on (default: %(default)s)"
    )
    serve.add_argument("--port", type=int, default=8000, help="0: any free port (default: %(default)s)")

    serve.add_argument(
        "--allowed-hosts",
        type=_names,
        default=(),
        metavar="NAME,…",
        help="names allowed in the Host header, without port; '*' allows any "
        "(default: localhost and 127.0.0.1 when listening on the loopback interface, else any)",
    )

    def bound(name: str, kind: Callable[[str], float], least: float, text: str) -> None:
        default = getattr(Settings, name)
        serve.add_argument(
            "--" + name.replace("_", "-"),
            type=_at_least(least, kind),
            default=default,
            metavar="SECONDS" if kind is float else "N",
            help=f"{text} (default: {default})",
        )

    bound("threads", int, 0, "threads of onnxruntime on the CPU; 0: one per core")
    add_precision(serve)
    bound("batch_size", int, 1, "images drawn at once; memory grows with it")
    bound("window", float, 0, "how long a batch that is not full waits for more requests")
    bound("queue", int, 1, "requests that may wait; further ones get 429 and a time to retry")
    bound(
        "queue_bytes",
        int,
        1,
        "bytes of all accepted requests: what they draw and the pictures that they sent; further ones get 429",
    )
    bound("max_images", int, 1, "images per request")
    bound("max_bytes", int, 1, "bytes of a request's images, before PNG or JSON; a single image is always drawn")
    bound("max_evaluations", int, 1, "images times steps per request; a step with guidance counts twice")
    bound("max_body", int, 2, "bytes of a request's body, with its pictures")
    bound(
        "body_seconds",
        float,
        0.001,
        "limit for a request's head, then the connection is closed; and for its body, then 408",
    )
    bound("timeout", float, 0.001, "limit from a request to its images; then 504, and the images are dropped")
    bound("grace", float, 0, "time for accepted requests to finish after the signal to stop")
    bound("poll", float, 0, "time between two look-ups of the alias; 0: only at the start")


def add_precision(command: argparse.ArgumentParser) -> None:
    """The option of every command that runs an exported model."""
    command.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default=Settings.precision,
        help="fp16: half the size, for GPUs; needs a model exported with export.fp16 (default: %(default)s)",
    )


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    """The settings that a command line comes to."""
    return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})


def _host(text: str) -> str:
    if not text.isprintable():  # socket raises errors of several types for others
        raise argparse.ArgumentTypeError(f"expected a name or an address, found {text!r:.50}")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _at_least(least: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number from {least} up, found {text}")
        return value

    return number

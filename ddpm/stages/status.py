"""`ddpm status`: which stages have run, what is registered, and how much disk space the project uses.

DVC's answer is most of the time, so it is kept in .ddpm/status.json together with a digest of the files it depends on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from ddpm import tracking
from ddpm.config.params import Params
from ddpm.errors import UpstreamError, UserError
from ddpm.figures.figure import Reading, headline
from ddpm.files import read_json, write_json
from ddpm.layout import (
    CASCADE,
    COMPARISON,
    DEPLOY,
    EMBEDDINGS,
    EXTRACTOR,
    LATENTS,
    MODELS,
    PREPARED,
    REPORTS,
    TRAINING_STATES,
)
from ddpm.stages.guide import JUDGED

# Of each stage that builds no variant the file that is there once it has run, and likewise of those that do.
_COMMON = {"fetch": Path("fetched.json"), "prepare": PREPARED / "manifest.json"}
_COMMON |= {"fit-extractor": EXTRACTOR / "extractor.json"}
_OF_VARIANT = {"train": MODELS / "{}/model.json", "evaluate": REPORTS / "{}/metrics.json"}
_OF_VARIANT |= {"export": DEPLOY / "{}/sampler.json"}
_OF_GUIDE = {"train-guide": MODELS / "{}/model.json"}
_OF_CONTROL = {f"{stage}-control": file for stage, file in _OF_VARIANT.items()}
_OF_AUTOENCODER = {"train-autoencoder": MODELS / "{}/model.json", "encode": LATENTS / "{}/manifest.json"}
_OF_AUTOENCODER |= {"evaluate-autoencoder": REPORTS / "{}/metrics.json"}
_OF_ENCODER = {"train-encoder": MODELS / "{}/model.json", "embed": EMBEDDINGS / "{}/manifest.json"}
_OF_ENCODER |= {"evaluate-encoder": REPORTS / "{}/metrics.json"}
_OF_LATENT = {"train-latent": MODELS / "{}/model.json", "evaluate-latent": REPORTS / "{}/metrics.json"}
_OF_LATENT |= {"export-latent": DEPLOY / "{}/sampler.json"}
_OF_PAIR = {"guide": MODELS / "{}/guides/{}.json"}  # of a variant and a guide
_JUDGE = MODELS / "{}/judges/{}.json"  # of a model and a CLIP

_FOLDERS = (
    *("data", PREPARED, EXTRACTOR, LATENTS, EMBEDDINGS, MODELS, REPORTS, DEPLOY, COMPARISON),
    "mlflow",
    ".ddpm",
    ".dvc",
    ".prefect",
)

_DVC_SECONDS = 60
_ANSWER = Path(".ddpm/status.json")  # DVC's latest; may be deleted at any time
_DVC_FILES = ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvc/config.local", "*.dvc")


def status(params: Params, root: Path = Path()) -> dict[str, Any]:
    """Everything that `ddpm status --json` prints. Nothing is written but `.ddpm/status.json`, and that only with DVC.

    Where DVC is in use it says which stages are up to date, which takes it a second or two unless no file has changed
    since it was last asked. Elsewhere a stage counts as run if its output is there.
    """
    with ThreadPoolExecutor(1) as pool:
        changes = pool.submit(_changed_by_dvc, root)  # beside what follows
        versions, problem = _versions(root)
        found = {
            "project": str(root.absolute()),
            "stages": {},
            "asked": "",
            "models": {name: _figure(root / REPORTS / name) for name in params.built},
            "unfinished": list(_unfinished(params, root)),
            "versions": versions,
            "champion": next((each["uri"] for each in versions if "champion" in each["aliases"]), None),
            "store": {"problem": problem},
            "disk": {str(folder): size for folder in _FOLDERS if (size := _size(root / folder)) is not None},
        }
        changed = changes.result()
    found["asked"] = "files" if changed is None else "dvc"
    found["stages"] = {name: _state(name, file, changed, root) for name, file in _stages(params).items()}
    return found


def _stages(params: Params) -> dict[str, Path]:
    """All stages by the names that DVC gives them, each with its file."""
    pairs = list(itertools.product(params.variants, params.guides))
    found = dict(_COMMON)
    for files, groups in (
        (_OF_GUIDE, [(name,) for name in params.guides]),
        (_OF_PAIR, pairs),
        (_OF_VARIANT, [(name,) for name in params.variants]),
        (_OF_CONTROL, [(name,) for name in params.controls]),
        (_OF_AUTOENCODER, [(name,) for name in params.autoencoders]),
        (_OF_ENCODER, [(name,) for name in params.encoders]),
        (_OF_LATENT, [(name,) for name in params.latents]),
    ):
        for names in groups:
            found |= {f"{stage}@{'-'.join(names)}": Path(str(file).format(*names)) for stage, file in files.items()}
    for stage, key in JUDGED.items():
        for names in itertools.product(getattr(params, key), params.encoders):
            found[f"{stage}@{'-'.join(names)}"] = Path(str(_JUDGE).format(*names))
    for cascade, config in params.composed.items():
        trained = (MODELS / name / "model.json" for name in config.links.values())
        whole = (MODELS / cascade / CASCADE, REPORTS / cascade / "metrics.json", DEPLOY / cascade / CASCADE)
        found |= dict(zip(config.stages.of(cascade), [*trained, *whole], strict=True))
    return found


def _state(stage: str, file: Path, changed: set[str] | None, root: Path) -> str:
    if not (root / file).is_file():
        return "not run"
    if changed is None:
        return "done"
    return "changed" if stage in changed else "up to date"


def _changed_by_dvc(root: Path) -> set[str] | None:
    """The stages that DVC would run again, besides those that always run; None where there is no DVC, or no answer."""
    if not (root / ".dvc").is_dir() or importlib.util.find_spec("dvc") is None:
        return None
    before = _digest(root)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = read_json(root / _ANSWER)
        if before is not None and kept["digest"] == before:
            return set(kept["changed"])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DVC_SECONDS,
        )
        changed = {name for name, why in json.loads(done.stdout).items() if why != ["always changed"]}
    except (OSError, ValueError, subprocess.TimeoutExpired):  # such as another process that runs a stage
        return None
    if before is not None and _digest(root) == before:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            (root / _ANSWER).parent.mkdir(exist_ok=True)
            write_json(root / _ANSWER, {"digest": before, "changed": sorted(changed)})
    return changed


def _digest(root: Path) -> str | None:
    """Of name, size, time and inode of all files that DVC's answer depends on, which is how DVC itself notices changes.

    None where they are unknown, such as from a dvc.lock that is damaged.
    """
    files = [path for pattern in _DVC_FILES for path in sorted(root.glob(pattern)) if path.is_file()]
    named: set[str] = set()
    try:
        for path in files:
            if path.suffix in (".lock", ".dvc"):
                found = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                for stage in (found or {}).get("stages", {"": found}).values():
                    named |= {each["path"] for kind in ("deps", "outs") for each in stage.get(kind, [])}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None
    digest = hashlib.sha256()
    for path in (*files, *(root / name for name in sorted(named))):
        for file in _files_below(path):
            with contextlib.suppress(OSError):  # removed; that it is not in the digest says so
                stat = file.stat()
                digest.update(f"{file}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n".encode(errors="replace"))
    return digest.hexdigest()


def _files_below(path: Path) -> Iterator[Path]:
    """A file itself; of a folder all files in it, in a fixed order."""
    if not path.is_dir():
        yield path
        return
    for place, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        yield from (Path(place) / name for name in sorted(names))


def _versions(root: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The registered versions; none, and why, where the store cannot be read."""
    try:
        found = tracking.registered_versions(root)
    except (UserError, UpstreamError) as error:
        return [], str(error)
    return [
        {
            "uri": version.uri,
            "variant": version.variant,
            "aliases": list(version.aliases),
            **_headline(version.metrics, {"extractor": version.extractor} if version.extractor else {}),
        }
        for version in found
    ], None


def _figure(reports: Path) -> dict[str, Any]:
    """The figure that models are ranked by, of a reports directory; empty where there is none."""
    try:
        return _headline(read_json(reports / "metrics.json"), read_json(reports / "protocol.json"))
    except (OSError, TypeError, ValueError):  # TypeError: a figure that is no number
        return {}


def _headline(metrics: Any, protocol: Any) -> dict[str, Any]:
    try:
        figure = headline(metrics)
    except KeyError:
        return {}
    return {
        "figure": figure.named(protocol),
        "value": metrics[figure.key],
        "text": str(Reading.of(metrics, figure.key)),
    }


def _unfinished(params: Params, root: Path) -> Iterator[dict[str, Any]]:
    """Trainings that have a checkpoint of another training than the finished model's, or that are running."""
    for name, config in params.models.items():
        states = root / TRAINING_STATES / name
        newest = max(states.glob("*/step-*"), key=lambda path: path.stat().st_mtime, default=None)
        running = _is_locked(states / "lock")
        if newest is None and not running:
            continue
        if newest is not None and not running and _trained(root / MODELS / name).startswith(newest.parent.name):
            continue
        step = 0 if newest is None else int(newest.name.removeprefix("step-"))
        yield {"variant": name, "step": step, "steps": config.training.steps, "running": running}


def _trained(directory: Path) -> str:
    """The fingerprint of a model's training; empty where there is no model."""
    try:
        return str(read_json(directory / "model.json")["training"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a training."""
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _size(folder: Path) -> int | None:
    """Bytes that a folder takes on the disk, each file once; None where there is none."""
    if not folder.is_dir():
        return None
    seen, total = set(), 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(place) / name).lstat()
            except OSError:  # removed since
                continue
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield found["project"]
    yield f"\nstages, as {'DVC says' if found['asked'] == 'dvc' else 'their files say'}"
    width = max(map(len, found["stages"]))
    for stage, state in found["stages"].items():
        yield f"  {stage:<{width}}  {state}"
    yield "\nmodels"
    for name, figure in found["models"].items():
        yield f"  {name}  {_said(figure) or 'not evaluated'}"
    for training in found["unfinished"]:
        state = "running" if training["running"] else f"stopped; `ddpm train {training['variant']}` continues it"
        yield f"  {training['variant']}  training at step {training['step']} of {training['steps']}, {state}"
    yield "\nregistered versions"
    if found["store"]["problem"]:
        yield f"  {found['store']['problem']}"
    elif not found["versions"]:
        yield "  none"
    for version in found["versions"]:
        aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        yield f"  {version['uri']}{aliases}  {version['variant'] or ''}  {_said(version)}".rstrip()
    yield f"\nchampion\n  {found['champion'] or 'none'}"
    yield "\non the disk"
    for folder, size in found["disk"].items():
        yield f"  {folder:<10}  {size / 1e6:,.1f} MB"


def _said(figure: dict[str, Any]) -> str:
    return f"{figure['figure']} {figure['text']}" if "figure" in figure else ""

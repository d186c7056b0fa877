"""The real graph's stages, each of which does next to nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from ddpm.config.model import VariantConfig

SCRIPT = "stage.py"

STAGE = '''
"""Stand-in for `ddpm`: `stage.py NAME [VARIANT [GUIDE]]` brings what is in finished/ to where the stage would write it.

A file on/NAME or on/NAME@VARIANT holds Python to run before.
"""
import pathlib, shutil, sys, time
name, *variant = sys.argv[1:]
address = "@".join([name, *(["-".join(variant)] if variant else [])])
with open("calls", "a") as calls:
    print(address, file=calls)
first = pathlib.Path("on", address)
if first.exists():
    exec(first.read_text())
folders = {"prepare": "prepared", "train": "models", "evaluate": "reports", "export": "deploy"}
folder = folders.get(name.removesuffix("-guide"))
if folder:
    shutil.copytree(pathlib.Path("finished", folder, *(["tiny"] if variant else [])), pathlib.Path(folder, *variant))
copy = {"fetch": "fetched.json", "prepare": "prepared/content", "fit-extractor": "extractor/content"}.get(name)
if name == "guide":
    copy = "guides/" + "-".join(variant)
if copy:
    pathlib.Path(copy).parent.mkdir(exist_ok=True)
    shutil.copy("content", copy)
print("done with", address)
'''


def write_graph(root: Path, variants: tuple[str, ...] = ("one",), guides: tuple[str, ...] = ()) -> None:
    """dvc.yaml with the names and the order of the real one."""

    def stage(name: str, deps: list[str], out: str, **more) -> dict:
        return {"cmd": f"{sys.executable} {SCRIPT} {name}", "deps": deps, "outs": [{out: {"cache": False}}], **more}

    def per_variant(name: str, deps: list[str], out: str, names: tuple[str, ...] = variants) -> dict:
        matrix = {"matrix": {"variant": list(names)}}
        return matrix | stage(f"{name} ${{item.variant}}", deps, f"{out}/${{item.variant}}")

    stages = {
        "fetch": stage("fetch", ["content"], "fetched.json", always_changed=True),
        "prepare": stage("prepare", ["fetched.json"], "prepared"),
        "fit-extractor": stage("fit-extractor", ["prepared"], "extractor"),
        "train": per_variant("train", ["prepared"], "models"),
        "train-guide": per_variant("train-guide", ["prepared"], "models", guides),
        "guide": {
            "matrix": {"variant": list(variants), "guide": list(guides)},
            **stage(
                "guide ${item.variant} ${item.guide}",
                ["models/${item.variant}", "models/${item.guide}"],
                "guides/${item.variant}-${item.guide}",
            ),
        },
        "evaluate": per_variant("evaluate", ["extractor", "models/${item.variant}"], "reports"),
        "export": per_variant("export", ["models/${item.variant}"], "deploy"),
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    sections: dict[str, dict] = {section: {} for section in VariantConfig.model_fields}
    models = dict.fromkeys([*variants, *guides], sections)
    (root / "params.yaml").write_text(
        yaml.safe_dump({"variants": list(variants), "guides": list(guides), "models": models})
    )

"""A Dockerfile as a list of instructions: as much of the format as ours use."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """`KEYWORD --flag=value … rest`; `words` is the JSON array where the rest is one, else what blanks separate."""

    keyword: str
    rest: str
    flags: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        array = re.search(r"\[.*\]$", self.rest)
        return json.loads(array[0]) if array else self.rest.split()


def parse(path: Path) -> list[Instruction]:
    """The instructions in order; comments dropped, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        keyword, rest = line.split(maxsplit=1)
        flags = []
        while flag := re.match(r"--(\S+)\s+", rest):
            flags.append(flag[1])
            rest = rest[flag.end() :]
        found.append(Instruction(keyword, rest.strip(), flags))
    return found


def sources(instructions: list[Instruction]) -> list[str]:
    """What the build takes from its context: by COPY, and by bind mounts."""
    taken = []
    for step in instructions:
        if step.keyword == "COPY" and not any(flag.startswith("from=") for flag in step.flags):
            taken += step.words[:-1]
        for flag in step.flags:
            mount = dict(part.split("=", 1) for part in flag.removeprefix("mount=").split(",") if "=" in part)
            if flag.startswith("mount=type=bind") and "from" not in mount:
                taken.append(mount["source"])
    return taken

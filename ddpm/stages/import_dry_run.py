"""`ddpm import SOURCE --out DIR --dry-run`: what drawing an image with a published model would cost on this machine.

Nothing is written.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.compute.device import pick_device
from ddpm.interop.published import Flags
from ddpm.model import Model
from ddpm.stages.dry_run import duration
from ddpm.stages.interop import imported
from ddpm.stages.memory import mib

REPEATED_BELOW = 1.0  # seconds that a first evaluation may take to be repeated, since it is slower than those after it


def import_dry_run(
    source: Path, out: Path, flags: Flags, *, data_name: str | None = None, classes: Sequence[str] | None = None
) -> list[str]:
    """The lines that say parameters, memory and the time of an image.

    Args:
        source: and the others: as of `stages.interop.import_model`.

    Raises:
        UserError: as `import_model`.
    """
    model, notes = imported(source, out, flags, data_name=data_name, classes=classes)
    device = pick_device()
    parts = {"network": model.network}
    if model.autoencoder is not None:
        parts["autoencoder"] = model.autoencoder.network
    counts = {name: sum(p.numel() for p in part.to(device).parameters()) for name, part in parts.items()}
    listed = ", ".join(f"{count:,} of the {name}" for name, count in counts.items())
    weights = sum(p.nbytes for part in parts.values() for p in part.parameters())
    lines = [
        f"{source} on {device.type}; nothing is written{''.join(f'; {note}' for note in notes)}",
        f"  parameters     {sum(counts.values()):,}{f': {listed}' if len(counts) > 1 else ''}",
    ]
    if model.card.config.draws_nothing is not None:
        return [*lines, f"  memory         {mib(weights)} for the weights"]
    said = _time(model, device)
    return [*lines, f"  memory         {mib(weights)} for the weights; {mib(_peak(device))} at most in this run", said]


@torch.inference_mode()
def _time(model: Model, device: torch.device) -> str:
    """How long an image takes by the model's own plan."""
    plan, shape = model.plan(), model.codec.network_shape
    denoise = model.denoiser(model.given(1))
    x, t = torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    each = _seconds(lambda: denoise(x, t), device)
    total = each * plan.evaluations
    decoding = _seconds(lambda: model.codec.decode(np.zeros((1, *shape), np.float32)), device)
    steps = f"{len(plan)} steps, {plan.evaluations} evaluations of the network of {each:.3g} s"
    return f"  an image       {duration(total + decoding)}: {steps}, and {decoding:.3g} s to decode it"


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of one run; of a short one, of the second."""
    for _ in range(2):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - begin
        if taken > REPEATED_BELOW:
            break
    return taken


def _peak(device: torch.device) -> int:
    """Bytes that this process has held at most, on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

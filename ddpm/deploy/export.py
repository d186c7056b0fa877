"""From a model directory to ONNX, and the proof that both are the same model."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ddpm.deploy.runtime import Sampler
from ddpm.diffusion import sampling
from ddpm.diffusion.noise import ImageNoise
from ddpm.files import sha256_of, write_json
from ddpm.model import Model

OPSET = 20


def export_denoiser(model: Model, path: Path) -> None:
    """Write one evaluation of the network as ONNX: (x float32 [N, C, ...], t int64 [N]) → out [N, C, ...].

    N is free. The file's bytes depend on the model alone.
    """
    network = model.network.to("cpu").eval()
    example = (torch.zeros(2, *model.kind.network_shape), torch.zeros(2, dtype=torch.int64))
    batch = torch.export.Dim("N", min=1)
    # The exporter reports its progress and torch's own deprecations; neither is the user's business.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["x", "t"],
            output_names=["out"],
            dynamic_shapes={"x": {0: batch}, "t": {0: batch}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _drop_provenance(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def _drop_provenance(proto: onnx.ModelProto) -> None:
    """Remove where in which source file each node came from: paths differ between machines, the model does not."""
    del proto.metadata_props[:]
    graphs: list[Any] = [proto.graph, *proto.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        graph.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in getattr(graph, "value_info", []):
            del value.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]


def describe_sampler(model: Model, directory: Path) -> None:
    """Write sampler.json: what the runtime needs beside denoiser.onnx."""
    card = model.card
    write_json(
        directory / "sampler.json",
        {
            "format": 1,
            "name": f"ddpm-{card.data.name}",
            "variant": card.variant,
            "shape": list(card.data.shape),
            "process": card.config.process.model_dump(mode="json"),
            "sampling": card.config.sampling.model_dump(mode="json"),
            "data": card.data.model_dump(mode="json"),
            "fingerprint": card.training.fingerprint,
            "weights": card.training.weights,
            "opset": OPSET,
            "denoiser_sha256": sha256_of(directory / "denoiser.onnx"),
        },
    )


def measure_parity(model: Model, directory: Path, *, samples: int, steps: int, tolerance: float) -> dict[str, Any]:
    """Hold the exported model against the trained one on the same noise over a full run: by DDIM, or where the network
    has a variance to be wrong about, by the ancestral sampler.

    Returns:
        What parity.json says: the largest absolute difference in [−1, 1] and whether it is within `tolerance`.
    """
    # CPU against CPU: what is compared is the export, not two devices' arithmetic.
    runtime = Sampler(directory, providers=["CPUExecutionProvider"])
    model = Model(model.network.to("cpu"), model.card)
    learned = model.card.config.process.variance == "learned_range"
    sampler, variance = ("ancestral", "learned_range") if learned else ("ddim", None)
    plan = model.plan(sampler=sampler, variance=variance, steps=steps, eta=0.0)
    noise, same_noise = (ImageNoise(0, samples, model.kind.network_shape) for _ in range(2))
    x = torch.from_numpy(noise.draw())
    trained = sampling.sample(model.network, plan, x, lambda: torch.from_numpy(noise.draw()))
    exported = runtime.run(plan, same_noise.draw(), same_noise.draw)
    difference = float(np.abs(trained.numpy() - exported).max())
    return {
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "passed": bool(difference <= tolerance),
        "samples": samples,
        "sampler": sampler,
        "steps": steps,
        "denoiser_sha256": sha256_of(directory / "denoiser.onnx"),
    }

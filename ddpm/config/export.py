"""params.yaml, `export`: the ONNX files and the check that they are the trained model."""

from __future__ import annotations

from pydantic import (
    Field,
)

from ddpm.config.base import Bool, Float, Positive, Section


class ExportConfig(Section):
    """The ONNX files and the check that they are the trained model."""

    parity_samples: Positive = Field(16, description="images drawn by both sides")
    parity_steps: Positive = Field(50, description="steps of the run that both sides make on the same noise")
    parity_tolerance: Float = Field(1e-3, gt=0, description="largest absolute difference allowed, in [-1, 1]")
    fp16: Bool = Field(False, description="write both files in fp16 too, for GPUs: half the bytes")
    fp16_tolerance: Float = Field(5e-2, gt=0, description="as parity_tolerance, of the fp16 files")

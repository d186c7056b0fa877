"""params.yaml, `models.V.training`: the optimiser, speed, memory, logging and recovery."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from ddpm.config.base import LARGEST, Bool, FilePath, Float, Incidental, Int, Later, Positive, Section, Switch, _whole
from ddpm.errors import brief


def _positive_auto_or_none(value: Any) -> Any:
    value = _whole(value)
    if value is None or value == "auto" or (type(value) is int and 0 < value <= LARGEST):
        return value
    raise ValueError(f"expected a number above 0, auto or null, found {brief(value)}")


# Of a union's members pydantic complains one by one.
MicroBatchSize = Annotated[Positive | Literal["auto"] | None, BeforeValidator(_positive_auto_or_none)]


class TrainingConfig(Section):
    """Algorithm 1 of Ho et al. 2020 and its optimiser."""

    start_from: FilePath | None = Field(
        None,
        description="the model whose weights training starts from, such as models/base; weights for maps that it does "
        "not have are zero. null: random weights",
    )
    steps: Positive = Field(800_000, description="optimiser steps")
    batch_size: Positive = Field(128, description="images a step, of all devices together")
    micro_batch_size: Incidental[MicroBatchSize] = Field(
        None, description="images at once on a device, to save memory; auto: halved whenever it runs out; null: all"
    )
    devices: Incidental[Positive] = Field(
        1, description="processes that train together on this machine: a GPU each, or the CPU"
    )
    learning_rate: Float = Field(2e-4, gt=0, description="of Adam, at its peak")
    warmup_steps: Int = Field(5000, ge=0, description="linear rise of the learning rate")
    decay: Literal["constant", "cosine"] = Field("constant", description="learning rate after the rise")
    weight_decay: Float = Field(
        0.0, ge=0, description="of AdamW: a step multiplies all weights by 1 - learning_rate x weight_decay; 0: Adam"
    )
    grad_clip: Float | None = Field(1.0, gt=0, description="largest gradient norm; null: gradients are not clipped")
    ema_decay: Float = Field(0.9999, ge=0, lt=1, description="of the averaged weights, which are the model")
    ema_warmup: Bool = Field(
        True,
        description="decay at step k: min(ema_decay, (1+k)/(10+k)), which is below 0.998 until step 4490 and below "
        "0.9999 until step 89990; false: ema_decay from the start, as in the papers",
    )
    ema_snapshots: Later[Int] = Field(
        0,
        ge=0,
        le=1000,
        description="times to keep two averages of other lengths beside the model, each as large as it twice, so that "
        "ddpm tune-ema can choose a length after the training; 0: none",
    )
    horizontal_flip: Bool = Field(False, description="mirror each image with probability 1/2")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast of the forward pass. auto: bf16 where the GPU has it, else fp32"
    )
    checkpoint_every: Incidental[Positive] = Field(1000, description="steps between resumable states")
    rewind: Incidental[Int] = Field(
        0, ge=0, description="times to go back to the last checkpoint, and on with other noise, if the loss is NaN"
    )
    log_every: Incidental[Positive] = Field(100, description="steps a point of the loss curve averages over")
    sample_every: Incidental[Int] = Field(
        0, ge=0, description="steps between samples of fixed noise, seen in MLflow; 0: none"
    )
    compile: Incidental[Switch] = Field(
        "auto", description="torch.compile of the blocks, minutes before the first step. auto: on a GPU"
    )
    cuda_graphs: Incidental[Bool] = Field(
        False, description="replay the network's kernels from a recording; needs CUDA"
    )
    prefetch: Incidental[Annotated[Int, Field(ge=0)] | Literal["auto"]] = Field(
        "auto", description="batches gathered ahead by a thread; the same ones. auto: 2 for a GPU, else 0"
    )

    @model_validator(mode="after")
    def _devices_share_a_batch(self) -> TrainingConfig:
        if self.devices > self.batch_size:
            raise ValueError(f"a batch_size of {self.batch_size} cannot be shared by {self.devices} devices")
        if self.devices > 1 and self.micro_batch_size == "auto":
            raise ValueError("micro_batch_size: auto is for one device; name a number")
        if self.cuda_graphs and not self._parts_are_of_one_size():
            raise ValueError("cuda_graphs records one size: devices and micro_batch_size must divide batch_size")
        return self

    def _parts_are_of_one_size(self) -> bool:
        if self.micro_batch_size == "auto" or self.batch_size % self.devices:
            return False
        return self.batch_size // self.devices % (self.micro_batch_size or 1) == 0

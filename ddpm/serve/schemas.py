"""What is asked and answered over HTTP, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ddpm.diffusion.plans import SAMPLERS

Format = Literal["png", "npy", "json"]

_SAMPLER_NAMES: dict[str, Any] = {"enum": [*SAMPLERS, None]}


class ImageRequest(BaseModel):
    """What to draw. Without any key: one image of seed 0, by the model's own sampling plan."""

    # Strict: the number 4 is not the text "4", nor true.
    model_config = ConfigDict(extra="forbid", strict=True)

    n: Annotated[int, Field(ge=1)] = Field(1, description="how many images")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="image i of a seed is always the same, whatever else is drawn beside it"
    )
    sampler: str | None = Field(None, description="null: the model's own", json_schema_extra=_SAMPLER_NAMES)
    steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="evaluations of the network an image, at most the process's timesteps; null: the model's own"
    )
    eta: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="DDIM's share of noise, with the sampler ddim alone; null: the model's own"
    )
    format: Format | None = Field(
        None,
        description="png: one image as it is, more of them as a grid on white; npy: NumPy's array file; json: see the "
        "answer. null: png, and json of points and sequences, which no PNG can hold",
    )


EXAMPLES: dict[str, Any] = {
    "grid": {"summary": "A grid of sixteen, as a PNG", "value": {"n": 16, "seed": 0}},
    "chosen": {
        "summary": "Another sampler, and images one by one",
        "value": {"n": 4, "seed": 7, "sampler": "ancestral", "steps": 5, "format": "json"},
    },
    "array": {
        "summary": "NumPy's array file",
        "value": {"n": 2, "sampler": "ddim", "eta": 0.5, "format": "npy"},
    },
}


class Drawn(BaseModel):
    """The answer in JSON."""

    model: str = Field(description="the version that drew", examples=["models:/ddpm-digits/3"])
    kind: Literal["images", "points", "sequences"]
    shape: list[int] = Field(description="of one: images [H, W, C], points [C], sequences [C, L]")
    seed: int
    sampler: str
    steps: int
    eta: float
    data: list[Any] = Field(
        description="one entry a datum: of images a PNG in base64; of points and sequences nested lists of numbers"
    )


class Limits(BaseModel):
    """What one request may ask for."""

    max_images: int
    max_evaluations: int = Field(description="of images × steps")


class ModelCard(BaseModel):
    """The model that the next request gets."""

    model: str
    kind: Literal["images", "points", "sequences"]
    shape: list[int]
    timesteps: int = Field(description="of the process: the most steps there are")
    sampling: dict[str, Any] = Field(description="the model's own sampling plan")
    samplers: list[str]
    limits: Limits


class State(BaseModel):
    """How the service is."""

    status: Literal["alive", "ready"]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="the reason, in one line")
    request_id: str = Field(description="as in the header X-Request-ID and in the service's log")

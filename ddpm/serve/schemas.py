"""What is asked and answered over HTTP, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ddpm.conditioning.columns import NAMES, PICTURE_NAMES, Column
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.data.given import from_base64
from ddpm.diffusion.plans import INPAINTING, MOST_CONTROL, MOST_GUIDANCE, MOST_JUMP, MOST_RESAMPLES
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.drawer import Drawer
from ddpm.drawer.likeness import MOST_MIXED, STRENGTH
from ddpm.serve.alike import alike

Format = Literal["png", "npy", "json"]

_SAMPLER_NAMES: dict[str, Any] = {"enum": [*SAMPLERS, None]}

# What a label may be depends on the model, which says itself what is wrong with one.
_CLASS: list[dict[str, Any]] = [{"type": "string"}, {"type": "integer"}]
_LABEL: dict[str, Any] = {"anyOf": [*_CLASS, {"type": "array", "items": {"anyOf": _CLASS}}, {"type": "null"}]}
_PROMPT: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
}

_PNG = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
_PICTURES: dict[str, Any] = {"anyOf": [_PNG, {"type": "array", "items": _PNG}, {"type": "null"}]}

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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
        None, description="evaluations of the network an image, at most about the timesteps; null: the model's own"
    )
    eta: Share | None = Field(
        None, description="DDIM's share of noise, with the sampler ddim alone; null: the model's own"
    )
    label: Any = Field(
        None,
        description="the class, by name or number, or a list of at most n of them: image i gets the one at i modulo "
        "their number; null: drawn as often as in the training data. Of conditional models alone",
        json_schema_extra=_LABEL,
    )
    prompt: Any = Field(
        None,
        description="what to draw, a text or a list of at most n of them: image i gets the one at i modulo their "
        "number; null: a training caption for each image. Of models that were trained on captions, or that a CLIP "
        "guides",
        json_schema_extra=_PROMPT,
    )
    low: Any = Field(
        None,
        description="the small image of an upsampler, a PNG in base64 or as a data URL, or a list of at most n of "
        "them: image i gets the one at i modulo their number. Of upsamplers alone, which need it",
        json_schema_extra=_PICTURES,
    )
    low_noise: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="standard deviation of the noise to add to `low`; null: 0. Of upsamplers that were trained with it",
    )
    image: Any = Field(
        None,
        description="an image of which a part is kept, in the size that the model draws; as `low`. Of models of images",
        json_schema_extra=_PICTURES,
    )
    mask: Any = Field(
        None,
        description="which part of `image` is kept, in the same size: white is kept, black is drawn again, and a grey "
        "is the nearer of the two",
        json_schema_extra=_PICTURES,
    )
    control: Any = Field(
        None,
        description="the hint of a model with a control, such as edges in white on black, in the size that the model's "
        "card says; as `low`. Of models with a control alone, which need it",
        json_schema_extra=_PICTURES,
    )
    control_2: Any = Field(
        None, description="of a model with several controls, the second hint; as `control`", json_schema_extra=_PICTURES
    )
    control_3: Any = Field(
        None, description="of a model with several controls, the third hint; as `control`", json_schema_extra=_PICTURES
    )
    control_scale: Annotated[float, Field(ge=0, le=MOST_CONTROL, allow_inf_nan=False)] | None = Field(
        None,
        description="the weight of what the control adds, 0: none; null: the model's own. Of models with a control",
    )
    control_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="[low, high], the part of the process that has a control: 0 is data, 1 is noise; null: the model's "
        "own",
    )
    guess: bool | None = Field(
        None,
        description="guess mode, in which the hint counts more than the label or the prompt; null: the model's own. Of "
        "models with a control",
    )
    like: Any = Field(
        None,
        description="a picture to draw variations of, in place of `prompt`, in the size that the model's card says; as "
        "`low`. Of models that draw pictures of CLIP embeddings alone",
        json_schema_extra=_PICTURES,
    )
    mix: Annotated[int, Field(ge=1, le=MOST_MIXED)] | None = Field(
        None,
        description="draw so many images, in place of `n`, on the way from the first of the two pictures in `like` to "
        "the second, all of the same noise; with `from` and `to` on the way from the one picture to the changed one",
    )
    change_from: str | None = Field(
        None,
        alias="from",
        description="what the picture in `like` shows, such as man; with `to` the picture is changed by the difference "
        "of the texts, and without `mix` one image is drawn, the changed one",
    )
    change_to: str | None = Field(None, alias="to", description="what it is to become, such as woman")
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="how far `from` and `to` change the picture; at 1 only the difference of the texts is left; "
        f"null: {STRENGTH:g}",
    )
    inpainting: str | None = Field(
        None,
        description="how the rest of `image` is made to fit: replace denoises it beside the kept part; repaint also "
        "goes back into the noise, with the samplers ancestral and ddim, and evaluates the network far more often; "
        "null: replace",
        json_schema_extra={"enum": [*INPAINTING, None]},
    )
    resamples: Annotated[int, Field(ge=1, le=MOST_RESAMPLES)] | None = Field(
        None, description="of repaint: how many times each group of `jump` steps is run; null: 10"
    )
    jump: Annotated[int, Field(ge=1, le=MOST_JUMP)] | None = Field(
        None,
        description="of repaint: the steps in a group, fewer than `steps`; of a cascade only the base repaints; "
        "null: 10",
    )
    guidance_scale: Annotated[float, Field(ge=0, le=MOST_GUIDANCE, allow_inf_nan=False)] | None = Field(
        None,
        description="how strongly the images follow their class; 1: no guidance, 0: the class is ignored; of a model "
        "that a classifier or a CLIP guides, what multiplies the gradient, 0: no guidance; a step with guidance "
        "evaluates the network twice, or the network and its guide; null: the model's own. Of models that can be "
        "guided alone",
    )
    guidance_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="[low, high], the part of the process that is guided: 0 is data, 1 is noise; null: the model's own",
    )
    format: Format | None = Field(
        None,
        description="png: one image as it is, more of them as a grid on white; npy: NumPy's array file; json: see the "
        "answer. null: png, and json of points and sequences, which no PNG can hold",
    )

    @property
    def one_noise(self) -> bool:
        """Whether all images are drawn of the noise of image 0, as those between two pictures are."""
        return self.mix is not None or self.change_from is not None or self.change_to is not None

    @property
    def count(self) -> int:
        """How many images are drawn."""
        return self.mix or 1 if self.one_noise else self.n

    @property
    def counted_by(self) -> str:
        """The key that says so."""
        return "n" if self.mix is None else "mix"

    def given(self, model: Drawer) -> dict[str, Any]:
        """What is asked of the model's columns, by their names; pictures as arrays.

        Raises:
            ValueError: a list has more entries than there are images, a picture cannot be read or has another size, or
                the model has no such column.
        """
        self._refuse_long_lists()
        found = alike(self, model)
        asked = {name: getattr(self, name) for name in (*NAMES, *PICTURE_NAMES)}
        asked = {name: value for name, value in asked.items() if value is not None}
        if EmbeddingColumn.name in found:
            model.refuse_unread(asked)
        return found | {
            name: from_base64(model.column(name), value) if name in PICTURE_NAMES else value
            for name, value in asked.items()
        }

    def _refuse_long_lists(self) -> None:
        """
        Raises:
            ValueError: a list has more entries than are used.
        """
        for name in (*NAMES, *PICTURE_NAMES, "like"):
            value, most, why = getattr(self, name), self.n, "`n`"
            if self.one_noise:
                why = "with `mix`, or `from` and `to`"
                most, why = (2, why) if name == "like" else (1, f"{why}, all images have the same")
            if isinstance(value, list) and len(value) > most:
                entries = "entry" if most == 1 else "entries"
                raise ValueError(f"{name}: the list must have at most {most} {entries} ({why}), found {len(value)}")


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
    "classes": {
        "summary": "Two classes in turn, with guidance: of a conditional model",
        "value": {"n": 4, "label": [0, 1], "guidance_scale": 2.0, "guidance_interval": [0.0, 0.8]},
    },
    "prompt": {
        "summary": "Images of a text: of a model that was trained on captions",
        "value": {"n": 4, "prompt": "red heart", "guidance_scale": 3.0},
    },
    "control": {
        "summary": "Images of a hint: of a model with a control; HINT is a PNG file in base64",
        "value": {"n": 4, "control": "HINT", "control_scale": 1.0},
    },
    "alike": {
        "summary": "Images between two: of a model of CLIP embeddings; LIKE is a PNG file in base64",
        "value": {"like": ["LIKE", "LIKE"], "mix": 9},
    },
    "inpainting": {
        "summary": "A part of an image drawn again: IMAGE and MASK are PNG files in base64",
        "value": {"n": 4, "image": "IMAGE", "mask": "MASK"},
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
    guidance_scale: float
    guidance_interval: list[float] | None = Field(description="null: everywhere, or no guidance")
    inpainting: str | None = Field(description="as asked for; so are the next five")
    resamples: int | None
    jump: int | None
    control_scale: float | None
    control_interval: list[float] | None
    guess: bool | None
    labels: list[str] | None = Field(description="the class of each, asked for or drawn; null: not conditional")
    data: list[Any] = Field(
        description="one entry a datum: of images a PNG in base64; of points and sequences nested lists of numbers"
    )


class Limits(BaseModel):
    """What one request may ask for."""

    max_images: int
    max_evaluations: int = Field(description="of images × steps; a step with guidance counts twice")


class ColumnCard(BaseModel):
    """Something that a request may ask for beside the sampling plan."""

    name: str = Field(description="the key of the request")
    dtype: str = Field(examples=["uint8"], description="of one value inside the model; pictures have uint8 or bool")
    shape: list[int] = Field(description="of one value: of a picture [H, W, C], of a mask [H, W]")
    most: float | None = Field(description="the largest value; null: not a number, or no bound")
    kind: str | None = Field(description="of a hint what it shows, such as edges; null: it is none")

    @classmethod
    def of(cls, column: Column) -> Self:
        return cls(
            name=column.name,
            dtype=column.dtype.name,
            shape=list(column.shape),
            most=getattr(column, "most", None),
            kind=getattr(column, "kind", None),
        )


class ModelCard(BaseModel):
    """The model that the next request gets."""

    model: str
    kind: Literal["images", "points", "sequences"]
    shape: list[int]
    timesteps: int = Field(description="of the process: the most steps of samplers that visit a timestep once")
    sampling: dict[str, Any] = Field(description="the model's own sampling plan, guidance included")
    samplers: list[str]
    classes: list[str] | None = Field(description="what `label` may be, in the order of the numbers; null: no label")
    columns: list[ColumnCard] = Field(description="what a request may ask for beside the sampling plan")
    attribution: str | None = Field(description="credit for the training images; null: none is asked for")
    guidable: bool = Field(description="whether there can be guidance")
    unguided_scale: float = Field(
        description="the `guidance_scale` that is no guidance: 1, or 0 of a model that a classifier guides"
    )
    limits: Limits


class State(BaseModel):
    """How the service is."""

    status: Literal["alive", "ready"]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="the reason, in one line")
    request_id: str = Field(description="as in the header X-Request-ID and in the service's log")

"""An exported model as an MLflow model, written as code: MLflow runs this file when it loads a registered version.

It stands outside the package's layers: nothing here imports it, and it runs where mlflow is installed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray
from pandas.api.types import is_scalar  # type: ignore[import-untyped]

from ddpm.conditioning.columns import PICTURE_NAMES
from ddpm.data.given import from_base64
from ddpm.deploy.runtime import MAX_IMAGES, open_exported
from ddpm.errors import NotFiniteError

_WHOLE = ("n", "seed", "steps", "resamples", "jump")


class ImageSampler(PythonModel):
    """Answers each row of a request with what it asks for."""

    def load_context(self, context: PythonModelContext) -> None:
        self.sampler = open_exported(context.artifacts["deploy"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[Any]:
        """Draw what the rows ask for, one row after the other.

        Args:
            context: unused, part of MLflow's interface.
            model_input: a DataFrame of requests: `n`, how many, 1 to 1024 in all rows together; and, if it has these
                columns, `seed`, `sampler`, `steps` and `eta`, for which the model has its own values. Of a conditional
                model also `label`, a name, a number or a list of them, `prompt`, a text or a list of them, and
                `guidance_scale` and `guidance_interval`; of an upsampler `low` and perhaps `low_noise`; of any model of
                images `image` and `mask`, of which white is kept, and with them `inpainting`, `resamples` and `jump`;
                of a model with a control `control`, the hint, `control_scale`, `control_interval` and `guess`.
                Pictures are PNG files in base64, or lists of them.
            params: unused, part of MLflow's interface.

        Returns:
            Images uint8 [sum of all n, H, W, C], or points or sequences float32 [sum of all n, C, ...]; over HTTP the
            same as nested lists.

        Raises:
            MlflowException: a name or a number that nothing can be drawn by, or an option that the sampler does not
                use; over HTTP status 400. Or the model draws NaN or infinite values; status 500.
        """
        try:
            requests = [self._options(row) for row in model_input.to_dict(orient="records")]
            count = sum(options["count"] for options in requests)
            if count > MAX_IMAGES:
                raise ValueError(f"`n` must be at most {MAX_IMAGES} in all rows together, found {count}")
            return np.concatenate([self.sampler.sample(**options) for options in requests])
        except NotFiniteError as error:
            raise MlflowException(str(error), INTERNAL_ERROR) from None
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _options(self, row: Mapping[Hashable, Any]) -> dict[str, Any]:
        """The arguments of `Sampler.sample` that a row comes to.

        Raises:
            ValueError: one of them is not of its type, or is of a column that the model does not have.
        """
        options = _options(row)
        pictures = {name: options[name] for name in PICTURE_NAMES if name in options}
        return options | {name: from_base64(self.sampler.column(name), value) for name, value in pictures.items()}


def _options(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """The options of a row in Python's types.

    Raises:
        ValueError: one of them is not of its type.
    """
    given = {key: value for key, value in row.items() if not (is_scalar(value) and pd.isna(value))}
    options: dict[str, Any] = {key: _whole(key, given[key]) for key in _WHOLE if key in given}
    readers = {
        "sampler": _text,
        "eta": _real,
        "label": _label,
        "prompt": _as_it_is,
        **dict.fromkeys(PICTURE_NAMES, _as_it_is),
        "low_noise": _as_it_is,
        "guidance_scale": _real,
        "guidance_interval": _interval,
        "inpainting": _text,
        "control_scale": _real,
        "control_interval": _interval,
        "guess": _truth,
    }
    for key, read in readers.items():
        if key in given:
            options[key] = read(key, given[key])
    if options.get("n", 0) < 1:
        raise ValueError(f"`n` must be at least 1, found {options.get('n')}")
    options["count"] = options.pop("n")
    return options


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"`{key}` must be text, found {value!r:.50}")


def _truth(key: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"`{key}` must be true or false, found {value!r:.50}")


def _real(key: str, value: Any) -> float:
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        return float(value)
    raise ValueError(f"`{key}` must be a number, found {value!r:.50}")


def _label(key: str, value: Any) -> Any:
    """As the model's column reads it. A column that some rows lack comes as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_it_is(key: str, value: Any) -> Any:
    """The model's column says what is wrong with it."""
    return value


def _interval(key: str, value: Any) -> list[float]:
    if isinstance(value, list | tuple | np.ndarray) and len(value) == 2:
        return [_real(key, end) for end in value]
    raise ValueError(f"`{key}` must be two numbers, found {value!r:.50}")


def _whole(key: str, value: Any) -> int:
    """A number without a fraction. A column that some rows lack comes as floats, which cannot hold every large one."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    raise ValueError(f"`{key}` must be an exact whole number, found {value!r:.50}")


set_model(ImageSampler())

"""An exported model as an MLflow model, written as code: MLflow runs this file when it loads a registered version.

It stands outside the package's layers: nothing here imports it, and it runs where mlflow is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from ddpm.deploy.runtime import Sampler


class ImageSampler(PythonModel):
    """Answers each row of a request with images."""

    def load_context(self, context: PythonModelContext) -> None:
        self.sampler = Sampler(context.artifacts["deploy"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[np.uint8]:
        """Draw the images that the rows ask for, one row after the other.

        Args:
            context: unused, part of MLflow's interface.
            model_input: a DataFrame of requests: `n`, how many images; and, if it has these columns, `seed`, `sampler`,
                `steps` and `eta`, for which the model has its own values.
            params: unused, part of MLflow's interface.

        Returns:
            uint8 [sum of all n, H, W, C]; over HTTP the same as nested lists.

        Raises:
            MlflowException: a name or a number that no sampling plan can be made of; over HTTP status 400.
        """
        return np.concatenate([self._images(row) for row in model_input.to_dict(orient="records")])

    def _images(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        given = {key: value for key, value in request.items() if not pd.isna(value)}
        options: dict[str, Any] = {
            key: kind(given[key])
            for key, kind in {"seed": int, "sampler": str, "steps": int, "eta": float}.items()
            if key in given
        }
        try:
            return self.sampler.sample(int(given["n"]), **options)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(ImageSampler())

"""What an evaluation needs of the data, so that it can be checked before a training. Imports nothing heavy."""

from __future__ import annotations

from ddpm.config.evaluation import EvaluationConfig
from ddpm.errors import UserError

NEIGHBOURHOOD = 3  # k of precision and recall


def score_splits(options: EvaluationConfig, validation: int) -> int:
    """The parts that the Inception Score is computed over: evaluation.splits, or as many as leave two images in each.

    Args:
        validation: the number of validation images, whose score stands beside that of the samples.
    """
    return max(1, min(options.splits, validation // 2, options.samples // 2))


def check_enough(options: EvaluationConfig, train: int, validation: int, *, published: bool = False) -> None:
    """Check that there are images enough for every figure.

    Args:
        train, validation: the numbers of images.
        published: whether the split is the one that the data's source publishes, which has no share to change.

    Raises:
        UserError: there are not; it names the key that helps.
    """
    needed = NEIGHBOURHOOD + 1
    more_train, more_validation = "lower data.validation_fraction", "raise data.validation_fraction"
    if published:
        more_train = more_validation = (
            "set data.validation_fraction to a share such as 0.2, instead of the published split"
        )
    for count, what, help in (
        (options.samples, "evaluation.samples", "raise it"),
        (train, "the number of training images", f"add images, or {more_train}"),
        (validation, "the number of validation images", f"add images, or {more_validation}"),
    ):
        if count < needed:
            raise UserError(f"{what} is {count}, but precision and recall need at least {needed}: {help}")


def check_extractor(kind: str, *, labelled: bool, channels: int) -> None:
    """Check that an extractor of a kind can be made for the data.

    Args:
        kind: extractor.kind.

    Raises:
        UserError: it cannot; it names the kind that can.
    """
    if kind == "inception" and channels != 3:
        raise UserError("extractor.kind is `inception`, which needs colour images; the data is grey: use `classifier`")
    if kind == "classifier" and not labelled:
        raise UserError(
            "extractor.kind is `classifier`, but labels are missing: sort the images into class folders, "
            "or use `rotation`"
        )

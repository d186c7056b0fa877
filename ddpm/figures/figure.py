"""The figures of metrics.json: what people call them, which way is better, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """A figure of metrics.json as people read it. What belongs to it has its key with an ending, see `Reading`."""

    key: str
    name: str
    better: Literal["lower", "higher"]
    short: str = ""
    """Its name within a sentence; by default the same."""
    real: str | None = None
    """The key of what held-out real data score, measured alike. FID and IS depend on how many there are, so that only
    those of the same count have one."""

    in_features: bool = False
    """Whether it is computed in an extractor's features: its value says nothing without the extractor's name."""

    chance: str | None = None
    """The key of what guesses score."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", self.short or self.name)

    def named(self, *protocols: Mapping[str, Any], short: bool = False) -> str:
        """Its name with the extractor's, as people read it: `FID (InceptionV3)`, `FID (small CNN), same count`.

        Args:
            protocols: that its values were measured under; those that say nothing of an extractor add nothing.
            short: its name within a sentence.
        """
        name = self.short if short else self.name
        extractors = dict.fromkeys(extractor_name(protocol) for protocol in protocols if protocol.get("extractor"))
        if not self.in_features or not extractors:
            return name
        head, comma, rest = name.partition(",")
        return f"{head} ({' / '.join(extractors)}){comma}{rest}"


# What people call the kinds of extractors; the two small networks are fitted to the project's own data.
_EXTRACTORS = {"inception": "InceptionV3", "classifier": "small CNN", "rotation": "small CNN on rotations"}


def extractor_name(protocol: Mapping[str, Any]) -> str:
    """The extractor of a protocol, as people call it."""
    kind = str(protocol.get("extractor", "unknown extractor"))
    return _EXTRACTORS.get(kind, kind)


# Beside the extractor's features, in pixels; of the training captions and of captions held out.
_RETRIEVAL = tuple(
    Figure(
        f"{of}_{place}_{space}",
        f"R@{place}{' (pixels)' if space == 'pixels' else ''}{ending}",
        "higher",
        in_features=space == "features",
        chance=f"{of}_{place}_chance",
    )
    for of, ending in (("retrieval", ""), ("held_out_retrieval", ", held-out captions"))
    for place in (1, 5)
    for space in ("pixels", "features")
)

# How well what is drawn agrees with the hint of each control, by the kind of hint: its name and which way is better.
_KINDS_OF_HINTS: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "edges": ("F1 of edges against the {}", "higher"),
    "silhouette": ("IoU of silhouette and {}", "higher"),
    "colour": ("Error of colours against the {}, levels", "lower"),
}
_AGREEMENTS = tuple(
    Figure(f"{column}_{kind}", name.format(which), better, chance=f"{column}_{kind}_chance")
    for column, which in (("control", "hint"), ("control_2", "second hint"), ("control_3", "third hint"))
    for kind, (name, better) in _KINDS_OF_HINTS.items()
)

FIGURES = {
    figure.key: figure
    for figure in (
        Figure("fid", "FID", "lower", in_features=True),
        Figure("fid_same_count", "FID, same count", "lower", real="fid_floor", in_features=True),
        Figure("sfid", "sFID", "lower", in_features=True),
        Figure("kid", "KID", "lower", real="kid_floor", in_features=True),
        Figure("inception_score", "Inception Score", "higher", short="IS", in_features=True),
        Figure(
            "inception_score_same_count",
            "Inception Score, same count",
            "higher",
            real="inception_score_real",
            in_features=True,
        ),
        Figure("precision", "Precision", "higher", short="precision", in_features=True),
        Figure("recall", "Recall", "higher", short="recall", in_features=True),
        Figure(
            "class_accuracy",
            "Class accuracy",
            "higher",
            short="class accuracy",
            real="class_accuracy_real",
            in_features=True,
        ),
        Figure("fid_within_classes", "FID within classes", "lower", in_features=True),
        *_RETRIEVAL,
        Figure("clip_score", "CLIP score", "higher", real="clip_score_real"),
        Figure("clip_score_held_out", "CLIP score, held-out captions", "higher", real="clip_score_real"),
        Figure("r_precision", "R-precision", "higher", real="r_precision_real", chance="r_precision_chance"),
        Figure(
            "r_precision_held_out",
            "R-precision, held-out captions",
            "higher",
            real="r_precision_real",
            chance="r_precision_held_out_chance",
        ),
        *_AGREEMENTS,
        Figure("psnr", "PSNR of enlarged images, dB", "higher", short="PSNR"),
        Figure("inpainting_fid", "FID of images with a part drawn again", "lower", in_features=True),
        Figure("inpainting_rmse", "Error of the part drawn again, levels", "lower"),
        Figure("inpainting_known_error", "Error of the known part, levels", "lower"),
        Figure("wasserstein", "Wasserstein distance", "lower", real="wasserstein_floor"),
        Figure("mmd", "MMD", "lower", real="mmd_floor"),
        Figure("nll_validation", "NLL of validation images, bits/dim", "lower", short="NLL"),
        Figure("nll_train", "NLL of training images, bits/dim", "lower"),
        Figure("nll_ode_validation", "NLL by the ODE of validation data, bits/dim", "lower", short="NLL by the ODE"),
        Figure("nll_ode_train", "NLL by the ODE of training data, bits/dim", "lower"),
        Figure("gflops_per_image", "GFLOP an image", "lower"),
    )
}

# Of a cascade, the part of `gflops_per_image` that its plan does not change: that of the links with plans of their own.
OTHER_LINKS = "gflops_other_links"
# The figures that models are ranked by, of images and of other data.
_HEADLINES = ("fid", "wasserstein")


def headline(metrics: Mapping[str, Any]) -> Figure:
    """The figure that models with these metrics are ranked by.

    Raises:
        KeyError: there is none.
    """
    for key in _HEADLINES:
        if key in metrics:
            return FIGURES[key]
    raise KeyError(f"none of {', '.join(_HEADLINES)} among the metrics")


@dataclass(frozen=True)
class Reading:
    """A figure's value with what metrics.json says around it, each None where it says nothing."""

    value: float
    interval: tuple[float, float] | None
    """`…_low` and `…_high`."""
    deviation: float | None
    """`…_std`, over parts of the data."""
    real: float | None
    """What held-out real data score."""
    chance: float | None = None
    """What guesses score."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], key: str) -> Reading | None:
        """The figure of that key of `FIGURES`, if it was measured."""
        figure = FIGURES[key]
        if key not in metrics:
            return None
        low, high = (metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return cls(
            value=metrics[key],
            interval=None if low is None or high is None else (min(low, high), max(low, high)),
            deviation=metrics.get(f"{key}_std"),
            real=None if figure.real is None else metrics.get(figure.real),
            chance=None if figure.chance is None else metrics.get(figure.chance),
        )

    def __str__(self) -> str:
        """As `57.3 [55.1, 59.8]`, or `0.28 ± 0.03` where there is no interval."""
        if self.interval is not None:
            return f"{number(self.value)} [{', '.join(map(number, self.interval))}]"
        return number(self.value) + ("" if self.deviation is None else f" ± {number(self.deviation)}")

    @property
    def beside(self) -> dict[str, float]:
        """What it is to be seen beside, by its name: what real data or guesses score."""
        known = {"real data": self.real, "chance": self.chance}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def column(self) -> str:
        """What stands in the column for real data, which says so where it is of something else."""
        others = [f"{name} {number(value)}" for name, value in self.beside.items()]
        return " ".join(others).removeprefix("real data ")

    def overlaps(self, other: Reading) -> bool:
        """Whether the two may well be the same: their intervals, or deviations to each side, have a value in common."""
        return self.low <= other.high and other.low <= self.high

    @property
    def low(self) -> float:
        """The least that it may well be."""
        return self.interval[0] if self.interval else self.value - self.noise

    @property
    def high(self) -> float:
        """The most that it may well be."""
        return self.interval[1] if self.interval else self.value + self.noise

    @property
    def noise(self) -> float:
        """Its deviation, where no interval says better how far to trust it."""
        return 0.0 if self.interval else self.deviation or 0.0


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


# The figures in the table of a model, as far as they were measured.
_SHOWN = (
    *("fid", "fid_same_count", "inception_score", "inception_score_same_count"),
    *("retrieval_1_pixels", "retrieval_5_pixels", "held_out_retrieval_5_pixels"),
    *("clip_score", "r_precision", "r_precision_held_out"),
    *(figure.key for figure in _AGREEMENTS),
    *("wasserstein", "mmd", "nll_validation", "nll_ode_validation"),
)


def readings(metrics: Mapping[str, Any]) -> Iterator[tuple[Figure, Reading]]:
    """The figures in the table of a model."""
    for key in _SHOWN:
        if reading := Reading.of(metrics, key):
            yield FIGURES[key], reading


def rows(metrics: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, str]:
    """Label and value of each line of the table: of how many samples the figures are, and the figures.

    Args:
        metrics: as in metrics.json.
        protocol: as in protocol.json.
    """
    figures = {
        figure.named(protocol): "; ".join([str(reading), *(f"{k}: {number(v)}" for k, v in reading.beside.items())])
        for figure, reading in readings(metrics)
    }
    return {"samples": _counts(metrics), **figures}


def _counts(metrics: Mapping[str, Any]) -> str:
    count = metrics["same_count"]
    if "fid_same_count" not in metrics:
        return f"{count}, held against as many real data"
    return (
        f'{metrics["samples"]} generated; of the figures with "same count" only {count}, as many as there are '
        "held-out real images, because FID and Inception Score depend on the number: these compare with real data"
    )


def aligned(table: Mapping[str, str]) -> str:
    """The lines of a table for a terminal."""
    width = max(map(len, table))
    return "\n".join(f"  {label:<{width}}  {value}" for label, value in table.items())

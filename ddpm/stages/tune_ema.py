"""`ddpm tune-ema V`: the length of the weights' average that a trained model draws best with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.evaluation.measure import Measurement, asked_for, check_fit, facts_of, measure
from ddpm.evaluation.scores import scores_of
from ddpm.figures.figure import FIGURES, Reading
from ddpm.figures.seeds import seeds_of
from ddpm.files import atomic_directory
from ddpm.layout import MODELS, PREPARED
from ddpm.model import Model, load, save
from ddpm.stages.progress import bar, counted, show
from ddpm.training.power_ema import exponent, reconstructed

LENGTHS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.22)


@dataclass(frozen=True)
class TunedEma:
    """What a search found.

    Attributes:
        lengths: the lengths, shares of the training, and `scores`: what the search found of each.
        best: the length that scored best.
        search_seed, fresh_seed: of the data that the search drew, and of those that the figures are of.
        measured: of the model with the best length, and with its own average, on the fresh seed.
    """

    lengths: tuple[float, ...]
    scores: tuple[float, ...]
    best: float
    search_seed: int
    fresh_seed: int
    measured: tuple[Measurement, Measurement]

    def lines(self, variant: str) -> list[str]:
        """As it is printed."""
        key = next(key for key in ("fid", "wasserstein") if key in self.measured[0].metrics)
        name, samples = FIGURES[key].name, self.measured[0].protocol.samples
        tried = ", ".join(f"{length:g}: {score:.4g}" for length, score in zip(self.lengths, self.scores, strict=True))
        best, own = (Reading.of(each.metrics, key) for each in self.measured)
        assert best is not None
        assert own is not None
        better = "better" if best.value < own.value else "worse"
        verdict = "their intervals overlap" if best.overlaps(own) else f"the length found is {better}"
        return [
            f"{variant}: {name} by length of the average, with seed {self.search_seed}: {tried}",
            f"of {samples} other samples, of seed {self.fresh_seed}:",
            f"length {self.best:g}: {name} {best}",
            f"the model's own average: {name} {own} ({verdict}; protocol {self.measured[0].protocol.id})",
        ]


def tune_ema(
    params: Params,
    variant: str,
    *,
    lengths: Sequence[float] = LENGTHS,
    samples: int | None = None,
    out: Path | None = None,
    root: Path = Path(),
) -> TunedEma:
    """Search the length of the average by the figure that models are ranked by, then measure the best and the model's
    own on other samples.

    As of `tune_guidance`, no figure is of samples that the length was chosen by.

    Args:
        lengths: standard deviations of the averages, as shares of the training.
        samples: of each length; None: `evaluation.samples`.
        out: where to write the model with the best length; None: nowhere.

    Raises:
        UserError: no such model, one without snapshots, or a number that is no length.
    """
    lengths = tuple(dict.fromkeys(lengths))
    for length in lengths:
        try:
            exponent(length)
        except ValueError as error:
            raise UserError(f"--lengths: {error}") from None
    count = params.evaluation.samples if samples is None else samples
    options = params.evaluation.model_copy(update={"samples": count, "sampling": None})
    params = params.model_copy(update={"evaluation": options})
    device, data, directory = pick_device(), PreparedData.open(root / PREPARED), root / MODELS / variant
    model = load(directory, device).sampled_by(params.variant(variant).sampling, root=root)
    reconstructed(directory, lengths[0])
    check_fit(model, data, f"models/{variant}", "its plan")
    scores, seeds = scores_of(params, data, root, device, show), seeds_of(params.seed)
    if options.samples < scores.least:
        raise UserError(f"--samples must be at least {scores.least}, found {options.samples}")
    asked = asked_for(options, model.columns, data)
    found = []
    with bar(count * len(lengths), "samples", "search of the length") as progress:
        for length in lengths:
            drawn = averaged(model, directory, length).batches(
                count, seed=seeds.search, batch_size=options.batch_size, **asked
            )
            found.append(scores.distance(counted(drawn, progress), count))
    best = lengths[found.index(min(found))]
    chosen = averaged(model, directory, best)
    fresh = params.model_copy(update={"seed": seeds.tuned})
    measured = [
        measure(each, fresh, facts_of(each), data=data, root=root, device=device, name=f"models/{variant}", show=show)
        for each in (chosen, load(directory, device).sampled_by(params.variant(variant).sampling, root=root))
    ]
    if out is not None:
        with atomic_directory(out) as temporary:
            save(chosen, temporary)
    return TunedEma(lengths, tuple(found), best, seeds.search, seeds.tuned, (measured[0], measured[1]))


def averaged(model: Model, directory: Path, length: float) -> Model:
    """The model with the average of another length for weights; the network is the same one, filled anew.

    Args:
        directory: of the model, with its snapshots.

    Raises:
        UserError: as `reconstructed`.
    """
    weights = reconstructed(directory, length)
    known = dict(model.network.named_parameters())
    if not weights.keys() <= known.keys():  # what was frozen has no averages
        raise UserError(f"{directory}: damaged: its snapshots are of another network")
    for name, average in weights.items():
        known[name].data.copy_(average)
    training = model.card.training
    mark = hashlib.sha256(f"{training.fingerprint} {length:g}".encode()).hexdigest()
    facts = training.model_copy(update={"ema_length": length, "fingerprint": mark})
    return replace(model, card=model.card.model_copy(update={"training": facts}))

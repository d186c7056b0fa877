"""Figures that need the trained network itself: its bound on the likelihood, and what an image costs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.conditioning.columns import stored
from ddpm.conditioning.network import columns_in, tensors
from ddpm.config.evaluation import EvaluationConfig
from ddpm.data.shown import shown_of
from ddpm.data.store import SPLITS, PreparedData, Split, SplitName
from ddpm.diffusion.likelihood import LikelihoodBound, likelihood_bounds
from ddpm.diffusion.ode_likelihood import OdeLikelihood, ode_likelihood
from ddpm.diffusion.plans import SamplingPlan
from ddpm.evaluation.distances import chosen
from ddpm.evaluation.progress import Show, unseen
from ddpm.evaluation.tables import csv_table
from ddpm.model import Model
from ddpm.nets.autoencoder import AutoencoderKL


def gigaflops_per_image(model: Model, plan: SamplingPlan | None = None) -> float:
    """10⁹ floating-point operations of an image under a plan, its decoder's and those of all its candidates among them:
    convolutions and matrix products, a multiplication and an addition each, as torch counts them.

    Args:
        plan: of the model's; None: its own.
    """
    plan, shape = model.plan() if plan is None else plan, model.codec.network_shape
    once = _operations(model.network, shape)
    guiding = once if model.guide is None else _operations(model.guide.network, shape, gradient=model.by_classifier)
    # Rows that go back into the noise evaluate nothing.
    evaluations, guided = (np.count_nonzero(plan.column(name)) for name in ("x0_from_out", "guidance"))
    decoding = 0 if model.autoencoder is None else _operations(_Decoding(model.autoencoder.network), shape)
    return float(model.candidates * (evaluations * once + guided * guiding) + decoding) / 1e9


class _Decoding(nn.Module):
    """An autoencoder's decoder, called as a network is."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.autoencoder.decode(z)


def _operations(network: nn.Module, shape: tuple[int, ...], *, gradient: bool = False) -> int:
    """Of an evaluation for one datum, as the network sees it [C, ...]; with the gradient of its output if asked."""
    # On no device, where only shapes are computed: on the CPU torch does not count attention.
    network = copy.deepcopy(network).to("meta")
    x, t = torch.zeros(1, *shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.set_grad_enabled(gradient), FlopCounterMode(display=False) as counter:
        out = network(x.requires_grad_(gradient), t)
        if gradient:
            out.sum().backward()
    return counter.get_total_flops()


def split_bounds(
    model: Model, data: PreparedData, options: EvaluationConfig, *, seed: int, show: Show = unseen
) -> dict[SplitName, LikelihoodBound]:
    """The bound of `nll_samples` images of each split, chosen at random, or of all if there are fewer, from
    `nll_timesteps` timesteps; the splits share each batch.

    Empty where `nll_samples` is 0; of points, sequences and latents, which are not on 256 levels; of a process in
    continuous time, which has no steps; and of a process of one step, a VAE's, whose bound with z from the prior says
    nothing.

    Args:
        options: params.yaml's section `evaluation`.
        seed: of the choice of images, of timesteps and of the noise.
        show: the progress, in evaluations of the network.
    """
    process = model.process()
    evaluations = likelihood_evaluations(data, options, process.timesteps, process.coordinates.continuous)
    if not evaluations or model.autoencoder is not None:
        return {}
    some = _Chosen(model, data, options, seed)
    with show(evaluations, "evaluations", f"likelihood of {model.card.variant}") as done:
        bounds = likelihood_bounds(
            model.network,
            process,
            *map(some.batches, SPLITS),
            given=[some.given(name) for name in SPLITS] if columns_in(model.network) else (),
            seed=seed,
            timesteps=options.nll_timesteps,
            on_evaluations=done,
        )
    return dict(zip(SPLITS, bounds, strict=True))


def split_ode_likelihoods(
    model: Model, data: PreparedData, options: EvaluationConfig, *, seed: int, show: Show = unseen
) -> dict[SplitName, OdeLikelihood]:
    """The likelihood of the same data by the probability-flow ODE, where `nll_ode` asks for it; not of latents, whose
    density is not that of the images.

    Args:
        options, seed, show: as for `split_bounds`.
    """
    process = model.process()
    evaluations = ode_evaluations(data, options, process.timesteps, process.coordinates.continuous)
    if not evaluations or model.autoencoder is not None:
        return {}
    some = _Chosen(model, data, options, seed)
    steps = min(options.nll_ode_steps, process.timesteps - 1)
    found = {}
    with show(2 * steps * some.count, "evaluations", f"likelihood of {model.card.variant} by the ODE") as done:
        for name in SPLITS:
            found[name] = ode_likelihood(
                model.network,
                model.schedule,
                process.prediction,
                some.batches(name),
                given=some.given(name) if columns_in(model.network) else None,
                levels=model.codec.levels,
                steps=options.nll_ode_steps,
                seed=seed,
                on_evaluations=done,
            )
    return found


class _Chosen:
    """The data of each split whose likelihood is computed."""

    def __init__(self, model: Model, data: PreparedData, options: EvaluationConfig, seed: int) -> None:
        self._model, self._data, self._options, self._seed = model, data, options, seed

    @property
    def count(self) -> int:
        """Of both splits."""
        return sum(min(self._options.nll_samples, len(self._data.split(name))) for name in SPLITS)

    def _rows(self, split: Split) -> Iterator[NDArray[np.int64]]:
        whole = np.sort(chosen(len(split), self._options.nll_samples, self._seed))
        at_once = max(1, self._options.batch_size // len(SPLITS))
        for first in range(0, len(whole), at_once):
            yield whole[first : first + at_once]

    def batches(self, name: SplitName) -> Iterator[Tensor]:
        split = self._data.split(name)
        for some in self._rows(split):
            yield self._model.codec.encode(torch.from_numpy(split.rows(some)).to(self._model.device))

    def given(self, name: SplitName) -> Iterator[dict[str, Tensor]]:
        """What the network is conditioned on, for each batch."""
        model, split = self._model, self._data.split(name)
        columns = columns_in(model.network)
        held = {column.name: column.of_data(split) for column in stored(columns)}
        for some in self._rows(split):
            # The rest is what it is if nobody asks, such as an image of which nothing is known.
            values = {name: column.at(some) for name, column in held.items()}
            values |= shown_of(columns, model.codec, split.rows(some))
            rest = [column for column in columns if column.name not in values]
            values |= {column.name: column.draw(len(some), seed=self._seed) for column in rest}
            yield tensors(values, model.device)


def likelihood_evaluations(data: PreparedData, options: EvaluationConfig, total: int, continuous: bool) -> int:
    """How often `split_bounds` evaluates the network for an image; 0 where there is no bound.

    Args:
        options: as for `split_bounds`.
        total: T of the process.
        continuous: whether it is in continuous time.
    """
    if data.codec.levels is None or total == 1 or continuous:
        return 0
    images = sum(min(options.nll_samples, len(data.split(name))) for name in SPLITS)
    return min(total, options.nll_timesteps or total) * images


def ode_evaluations(data: PreparedData, options: EvaluationConfig, total: int, continuous: bool) -> int:
    """How often `split_ode_likelihoods` evaluates the network for a datum, gradients included; 0 if it does not.

    Args:
        options, total, continuous: as for `likelihood_evaluations`.
    """
    images = sum(min(options.nll_samples, len(data.split(name))) for name in SPLITS)
    if total == 1 or not (continuous if options.nll_ode == "auto" else options.nll_ode):
        return 0
    # The gradient of each of two estimates takes about two evaluations.
    return 2 * min(options.nll_ode_steps, total - 1) * 5 * images


def likelihood_figures(
    bounds: Mapping[SplitName, LikelihoodBound], by_ode: Mapping[SplitName, OdeLikelihood] | None = None
) -> dict[str, float]:
    """`nll_train` and `nll_validation`, in bits per dimension, and `nll_ode_…`; estimates with their standard errors as
    `…_std`.
    """
    named: dict[str, LikelihoodBound | OdeLikelihood] = {f"nll_{name}": bound for name, bound in bounds.items()}
    named |= {f"nll_ode_{name}": found for name, found in (by_ode or {}).items()}
    figures: dict[str, float] = {}
    for name, found in named.items():
        figures[name] = found.bits_per_dim
        if found.standard_error:
            figures[f"{name}_std"] = found.standard_error
    return figures


def likelihood_table(bounds: Mapping[SplitName, LikelihoodBound]) -> str:
    """The bound's terms as CSV, in bits per dimension: the decoder's at t = 0, the prior's at t = T (Nichol & Dhariwal
    2021, figure 2, shows those between). Only of the timesteps that were computed, and a heading alone where there are
    no bounds.
    """
    rows: list[tuple[float, ...]] = []
    columns = [[*bound.terms.tolist(), bound.prior] for bound in bounds.values()]
    for bound in list(bounds.values())[:1]:
        steps = [*bound.timesteps, sum(stratum.size for stratum in bound.strata)]
        rows = list(zip(steps, *columns, strict=True))
    return csv_table(("t", "train", "validation"), rows)

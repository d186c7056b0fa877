"""A classifier of noisy data, its gradient as guidance, and guidance by a weaker model; the sizes and formulas of
Dhariwal & Nichol 2021 and Karras et al. 2024."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.guidance import Autoguidance, ClassifierGradient
from ddpm.diffusion import sampling
from ddpm.diffusion.plans import SAMPLERS, decisive_choices, plan_for, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.nets.classifier import AttentionPool, Classifier
from ddpm.nets.condition import Shapes
from ddpm.training.adam import Adam
from ddpm.training.tasks import Batch, Classify

ADM = {"attention_resolutions": (32, 16, 8), "scale_shift": True, "resample": "residual", "dropout": 0.0}
TINY = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_channels": 8, "groups": 8}
PREDICTIONS = ("epsilon", "x0", "v")


# --- the network


@pytest.mark.parametrize(
    ("side", "multipliers", "blocks", "parameters"),
    [
        (64, (1, 2, 3, 4), 4, 65_438_568),
        (128, (1, 1, 2, 3, 4), 2, 42_568_040),
        (256, (1, 1, 2, 2, 4, 4), 2, 54_096_360),
        (512, (0.5, 1, 1, 2, 2, 4, 4), 2, 54_448_360),
    ],
)
def test_the_papers_classifiers_have_their_parameters(side, multipliers, blocks, parameters):
    with torch.device("meta"):
        network = Classifier(Shapes((3, side, side), 1000), multipliers=multipliers, blocks=blocks, **ADM)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("dims", [1, 2])
def test_logits_are_of_each_datum_and_know_the_time(dims):
    torch.manual_seed(0)
    network = Classifier(Shapes((3, *[8] * dims), 5), **TINY).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(4, 3, *[8] * dims), torch.tensor([0, 10, 500, 999])
    logits = network(x, t)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(network(x[1:2], t[1:2]), logits[1:2])
    assert not torch.allclose(network(x, t.flip(0)), logits)


def test_attention_pooling_is_the_query_of_the_mean():
    torch.manual_seed(0)
    pool, x = AttentionPool(12, 16, 7, heads=3), torch.randn(2, 12, 4, 4)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = pool.qkv.weight.data[..., 0], pool.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = torch.eye(12), torch.zeros(12)
    tokens = x.flatten(2)
    tokens = (torch.cat([tokens.mean(2, keepdim=True), tokens], 2) + pool.position).transpose(1, 2)
    attended, _ = theirs(tokens[:, :1], tokens, tokens)
    torch.testing.assert_close(pool(x), pool.out(attended.transpose(1, 2))[..., 0])


def test_a_classifier_learns_by_cross_entropy_of_noisy_data():
    process, column = GaussianProcess(Schedule.named("cosine", 20)), LabelColumn(("a", "b", "c"))

    class Fixed(nn.Module):
        def forward(self, x, t):
            return torch.stack([x.flatten(1).sum(1), t.float(), torch.zeros(len(x))], 1)

    x0, noise = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    t, label = torch.tensor([0, 3, 7, 19]), torch.tensor([0, 1, 2, 0])
    losses = Classify(process, (column,)).losses(Fixed(), Batch(x0, {"label": label}), t, noise)
    logits = Fixed()(process.q_sample(x0, t, noise), t)
    torch.testing.assert_close(losses, -logits.log_softmax(1)[range(4), label])


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_weights_decay_as_adamws(weight_decay):
    weights = [torch.linspace(-1, 1, 5, requires_grad=True) for _ in range(2)]
    ours = Adam([weights[0]], weight_decay=weight_decay)
    theirs = torch.optim.AdamW([weights[1]], lr=0.01, weight_decay=weight_decay)
    for _ in range(5):
        for each in weights:
            each.grad = torch.cos(each.detach() * 3)
        ours.step(0.01)
        theirs.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-7)


# --- guidance where everything is known: a mixture of Gaussians, whose noisy score and classifier are exact


CENTRES = torch.tensor([[-0.6, -0.4], [0.5, 0.7], [0.6, -0.5]], dtype=torch.float64)
SPREAD = 0.15


class Mixture:
    """x_0 ~ 1/3 Σ N(centre, SPREAD² I), so x_t of class k ~ N(√ᾱ centre_k, (ᾱ SPREAD² + 1 − ᾱ) I)."""

    def __init__(self, process: GaussianProcess) -> None:
        self.process = process

    def logits(self, x, t):
        signal, variance = self._moments(t)
        return -((x[:, None] - signal[:, None, None] * CENTRES) ** 2).sum(2) / (2 * variance[:, None])

    def out(self, x, t, weights):
        """What a perfect network says of x_t, where the classes have weights [N, K]."""
        signal, variance = self._moments(t)
        own = torch.softmax(self.logits(x, t) + weights.log(), 1)
        score = (own @ CENTRES * signal[:, None] - x) / variance[:, None]
        noise = self.process.noise[t][:, None]
        epsilon = -noise * score
        x0 = (x - noise * epsilon) / signal[:, None]
        v = signal[:, None] * epsilon - noise * x0
        return {"epsilon": epsilon, "x0": x0, "v": v}[self.process.prediction]

    def _moments(self, t):
        signal, noise = self.process.signal[t], self.process.noise[t]
        return signal, signal**2 * SPREAD**2 + noise**2


class Perfect(nn.Module):
    """The exact classifier."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x, t):
        return self.mixture.logits(x, t)


def guided_mixture(schedule, label, **process):
    known = GaussianProcess(schedule, dtype=torch.float64, **process)
    mixture = Mixture(known)
    learned = process.get("variance") == "learned_range"

    def network(weights):
        def denoise(x, t):
            out = mixture.out(x, t, weights)
            return torch.cat([out, torch.tanh(x)], 1) if learned else out

        return denoise

    uniform = torch.full((len(label), 3), 1 / 3, dtype=torch.float64)
    classes = torch.nn.functional.one_hot(label, 3).double()
    guide = ClassifierGradient(network(uniform), Perfect(mixture), label, known)
    return known, guide, network(classes)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bayes_rule(prediction):
    """With scale 1 the unconditional score and the classifier's gradient are the conditional score."""
    label, generator = torch.arange(60) % 3, torch.Generator().manual_seed(0)
    _, guide, told = guided_mixture(Schedule.named("cosine", 100), label, prediction=prediction)
    x, t = torch.randn(60, 2, dtype=torch.float64, generator=generator), torch.arange(60)
    torch.testing.assert_close(guide.guided(x, t, 1.0), told(x, t), rtol=0, atol=1e-9)
    # And at any scale the output moves in proportion.
    moved = (guide.guided(x, t, 3.0) - guide(x, t)) / 3
    torch.testing.assert_close(moved, guide.guided(x, t, 1.0) - guide(x, t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_output_moves_the_noise_as_algorithm_2_says(prediction):
    label = torch.arange(30) % 3
    process, guide, _ = guided_mixture(Schedule.named("cosine", 100), label, prediction=prediction)
    x, t = torch.randn(30, 2, dtype=torch.float64), 10 + torch.arange(30)
    signal, noise = process.signal[t][:, None], process.noise[t][:, None]

    def epsilon(out):
        return (x - signal * process.predict_x0(out, x, t)) / noise

    expected = epsilon(guide(x, t)) - 2.5 * noise * guide.gradient(x, t)
    torch.testing.assert_close(epsilon(guide.guided(x, t, 2.5)), expected)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ancestral"])
def test_every_solver_guided_by_the_exact_classifier_draws_the_class(sampler):
    schedule, label = Schedule.named("cosine", 100), torch.arange(48) % 3
    _, guide, told = guided_mixture(schedule, label)
    choices = {"sampler": sampler, "steps": 20, "prediction": "epsilon", "variance": "fixed_small", "clip": False}
    noise = [torch.randn(48, 2, dtype=torch.float64) for _ in range(21)]
    plan = sampling_plan(schedule, **choices, guidance_scale=1.0, by_classifier=True)
    ours = sampling.sample(guide, plan, noise[0], iter(noise[1:]).__next__)
    theirs = sampling.sample(told, sampling_plan(schedule, **choices), noise[0], iter(noise[1:]).__next__)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (torch.cdist(ours, CENTRES).argmin(1) == label).all()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned_range"])
def test_ancestral_sampling_is_algorithm_1(variance, clip):
    """μ + s Σ ∇ log p(y | x_t), against the algorithm written out with the process's own moments."""
    schedule, label, scale = Schedule.named("cosine", 30), torch.arange(24) % 3, 2.0
    process, guide, _ = guided_mixture(schedule, label, variance=variance)
    noise = [torch.randn(24, 2, dtype=torch.float64) for _ in range(31)]
    plan = sampling_plan(
        schedule,
        sampler="ancestral",
        steps=30,
        prediction="epsilon",
        variance=variance,
        clip=clip,
        guidance_scale=scale,
        by_classifier=True,
    )
    ours = sampling.sample(guide, plan, noise[0], iter(noise[1:]).__next__)

    x, draws = noise[0], iter(noise[1:])
    for step in reversed(range(30)):
        t = torch.full((24,), step)
        mean, log_variance, _ = process.p_mean_variance(guide(x, t), x, t, clip=clip)
        mean = mean + scale * log_variance.exp() * guide.gradient(x, t)
        x = mean + (torch.exp(log_variance / 2) * next(draws) if step else 0)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_a_larger_scale_draws_nearer_to_what_tells_the_class_apart():
    schedule, label = Schedule.named("cosine", 100), torch.zeros(200, dtype=torch.int64)
    _, guide, _ = guided_mixture(schedule, label)
    others = CENTRES[1:].mean(0) - CENTRES[0]
    far = []
    for scale in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        choices = {"sampler": "ancestral", "steps": 50, "prediction": "epsilon", "variance": "fixed_small"}
        plan = sampling_plan(schedule, **choices, guidance_scale=scale, by_classifier=True)
        drawn = sampling.sample(guide, plan, torch.randn(200, 2).double(), lambda: torch.randn(200, 2).double())
        far.append(-(drawn @ others).mean().item())
    assert far[0] < far[1] < far[2]


def test_the_gradient_is_there_where_gradients_are_off_and_leaves_none_behind():
    label = torch.arange(6) % 3
    _, guide, _ = guided_mixture(Schedule.named("cosine", 100), label)
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.arange(6)
    with torch.no_grad():
        gradient = guide.gradient(x, t)
    assert gradient.abs().sum() > 0
    assert not gradient.requires_grad
    assert x.grad is None
    assert not x.requires_grad


# --- the plan


PROCESS = {"schedule": "cosine", "timesteps": 50, "prediction": "epsilon", "variance": "fixed_small", "betas": None}


def section(**given):
    return {"sampler": "ancestral", "steps": 10, "variance": None, "dynamic_threshold": None, **given}


def test_a_classifiers_scale_is_its_weight_and_a_weaker_models_is_one_more():
    by_model = plan_for(PROCESS, section(guidance_scale=3.0, guide="models/weak"))
    by_classifier = plan_for(PROCESS, section(guidance_scale=3.0, guide="models/classifier"), by_classifier=True)
    assert (by_model.column("guidance") == 2).all()
    assert (by_classifier.column("guidance") == 3).all()
    assert not by_model.column("mean_shift").any()
    assert by_classifier.evaluations == 20
    # 1 is no guidance away from a model, 0 none along a gradient.
    assert not plan_for(PROCESS, section(guidance_scale=1.0)).column("guidance").any()
    none = plan_for(PROCESS, section(guidance_scale=0.0), by_classifier=True)
    assert not none.column("guidance").any()
    assert not none.column("mean_shift").any()


def test_only_the_ancestral_sampler_moves_its_mean_and_only_within_the_interval():
    plan = plan_for(PROCESS, section(guidance_scale=2.0, guidance_interval=(0.2, 0.6)), by_classifier=True)
    np.testing.assert_array_equal(plan.column("mean_shift") != 0, plan.column("guidance") != 0)
    assert 0 < np.count_nonzero(plan.column("guidance")) < 10
    for sampler in set(SAMPLERS) - {"ancestral"}:
        assert not plan_for(PROCESS, section(sampler=sampler), by_classifier=True).column("mean_shift").any()


def test_a_guide_is_part_of_what_decides_a_plan():
    alone = decisive_choices(section(guidance_scale=1.0, guide=None), variance="fixed_small")
    guided = decisive_choices(section(guidance_scale=1.0, guide="models/classifier"), variance="fixed_small")
    assert not {"guide", "guidance_scale"} & alone.keys()
    assert (guided["guide"], guided["guidance_scale"]) == ("models/classifier", 1.0)


def test_autoguidance_moves_away_from_the_weaker_model_and_leaves_the_variance():
    def strong(x, t):
        return torch.cat([2 * x, x + 5], 1)

    def weak(x, t):
        return x

    x, t = torch.randn(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    out = Autoguidance(strong, weak).guided(x, t, 1.5)
    torch.testing.assert_close(out, torch.cat([2 * x + 1.5 * x, x + 5], 1))

"""The variational autoencoder: its bound against torch's distributions, what it learns, and that it is a one-step
process to all that samples."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loops import train_with
from scipy.stats import gamma, norm
from torch.distributions import Normal, kl_divergence

from ddpm.codecs.scale import PixelCodec, ValueCodec
from ddpm.config.params import Params, load_params
from ddpm.data.loader import InMemoryImages
from ddpm.diffusion.plans import SAMPLERS, sampling_plan
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import SCHEDULES, Schedule
from ddpm.errors import UserError
from ddpm.model.network import build_network
from ddpm.model.process import build_process
from ddpm.nets import build
from ddpm.nets.condition import Shapes
from ddpm.nets.vae import VAE
from ddpm.training.speed import accelerate
from ddpm.training.tasks import Batch, Reconstruct

CONFIG = {
    "network": {"kind": "vae", "latent": 2, "hidden": [32]},
    "process": {"timesteps": 1, "prediction": "x0"},
    "objective": {"loss": "elbo", "reconstruction_weight": 50.0},
    "sampling": {"steps": 1},
}


def variant(**changes):
    """CONFIG with keys of its sections changed, validated as in params.yaml."""
    sections = {name: {**CONFIG.get(name, {}), **changes.get(name, {})} for name in {*CONFIG, *changes}}
    return Params.model_validate({"models": {"vae": sections}, "variants": ["vae"]}).variant("vae")


@given(
    weight=st.floats(0.1, 100),
    dims=st.integers(0, 2),
    channels=st.integers(1, 3),
    latent=st.integers(1, 3),
    seed=st.integers(0, 100),
)
@example(weight=30.5, dims=0, channels=2, latent=1, seed=0)
@settings(deadline=None, max_examples=30)
def test_the_loss_is_the_bound(weight, dims, channels, latent, seed):
    """E_q[−log p(x_0 | z)] with the one z, plus the KL, less log p's constant."""
    torch.manual_seed(seed)
    network = VAE(Shapes((channels, *[3] * dims)), latent=min(latent, channels), hidden=(8,)).double()
    x0 = torch.rand(4, channels, *[3] * dims).double() * 2 - 1
    noise, t = torch.randn_like(x0), torch.zeros(4, dtype=torch.int64)
    losses = Reconstruct(weight).losses(network, Batch(x0, {}), t, noise)

    mean, log_variance = network.encode(x0)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    z = posterior.loc + posterior.scale * noise.flatten(1)[:, : network.latent]
    decoder = Normal(network.decode(z), torch.tensor((2 * weight) ** -0.5, dtype=torch.float64))
    constant = Normal(x0, decoder.scale).log_prob(x0).flatten(1).sum(1)
    reconstruction = constant - decoder.log_prob(x0).flatten(1).sum(1)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(losses, reconstruction + kl_divergence(posterior, prior).sum(1))


@given(st.sampled_from(sorted(SAMPLERS)), st.sampled_from(sorted(SCHEDULES)))
@settings(deadline=None)
def test_every_plan_of_its_process_is_one_decoding(sampler, schedule):
    torch.manual_seed(0)
    network = VAE(Shapes((1, 4, 4)), latent=3, hidden=(8,)).eval()
    options = {"prediction": "x0", "variance": "fixed_small", "clip": False}
    plan = sampling_plan(Schedule.named(schedule, 1), sampler=sampler, steps=1, **options)
    noise = torch.randn(5, 1, 4, 4)
    drawn = sample(network, plan, noise, lambda: torch.full_like(noise, torch.nan))
    with torch.no_grad():
        torch.testing.assert_close(drawn, network.decode(noise.flatten(1)[:, :3]))


def test_the_shapes_are_the_seeds():
    """d → 512 → 256 → (μ, log σ²), and the same backwards."""
    network = VAE(Shapes((1, 28, 28)), latent=20)
    layers = [
        [m.weight.shape[::-1] for m in half if hasattr(m, "weight")] for half in (network.encoder, network.decoder)
    ]
    assert layers == [[(784, 512), (512, 256), (256, 40)], [(20, 256), (256, 512), (512, 784)]]


@pytest.mark.parametrize(
    "kind",
    [
        PixelCodec((4, 4, 3)),
        ValueCodec("sequences", (2, 5), (0, 0), (1, 1)),
        ValueCodec("points", (2,), (0, 0), (1, 1)),
    ],
    ids=lambda kind: kind.name,
)
def test_any_kind_of_data(kind):
    network = build_network(variant(), kind)
    x = torch.randn(6, *kind.network_shape)
    assert network(x, torch.zeros(6, dtype=torch.int64)).shape == x.shape


def test_a_gaussian_is_learned():
    """A Gaussian of the plane from a Gaussian z: the decoder has only to become linear."""
    config = variant()
    root = np.array([[0.4, 0.0], [0.3, 0.2]])
    points = (np.random.default_rng(0).standard_normal((4000, 2)) @ root.T + [0.2, -0.1]).astype(np.float32)
    torch.manual_seed(0)
    network = build_network(config, ValueCodec("points", (2,), (-1, -1), (1, 1)))
    options = {"steps": 600, "batch_size": 256, "learning_rate": 5e-3, "warmup_steps": 20, "decay": "cosine"}
    process = build_process(config)
    curve = train_with(
        network,
        process,
        InMemoryImages(points),
        seed=0,
        encode=lambda x: x,
        task=Reconstruct(50.0),
        ema_decay=0.99,
        **options,
    )
    assert curve[-1].loss < curve[0].loss
    plan = sampling_plan(Schedule.named("linear", 1), sampler="ddim", steps=1, prediction="x0", variance="fixed_small")
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    drawn = sample(network, plan, noise, lambda: noise)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.2, -0.1]), rtol=0, atol=0.03)
    # The decoder's own variance, 1/(2C) = 0.01, is not drawn.
    expected = torch.from_numpy(root @ root.T).float() - 0.01 * torch.eye(2)
    torch.testing.assert_close(drawn.T.cov(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective": {"loss": "simple"}},
            "network.kind vae and objective.loss elbo go together; found vae and simple",
        ),
        ({"network": {"kind": "mlp"}}, "go together; found mlp and elbo"),
        ({"process": {"timesteps": 5}}, "needs process.timesteps 1 and process.prediction x0; found 5 and x0"),
        ({"process": {"prediction": "epsilon"}}, "needs process.timesteps 1.* found 1 and epsilon"),
        ({"process": {"variance": "learned_range"}}, "learned_range, which objective.loss elbo does not train"),
        ({"sampling": {"steps": 2}}, "sampling.steps is 2, but the process has only 1"),
        ({"objective": {"weighting": "min_snr"}}, "`loss: elbo` has none of"),
        ({"network": {"latent": 0}}, "`models.vae.network.latent`.*greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, words):
    sections = {name: {**CONFIG.get(name, {}), **changes.get(name, {})} for name in {*CONFIG, *changes, "training"}}
    if "kind" in changes.get("network", {}):
        sections["network"] = changes["network"]
    path = tmp_path / "params.yaml"
    path.write_text(str({"models": {"vae": sections}, "variants": ["vae"]}))
    with pytest.raises(UserError, match=words) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_latent_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="latent is 17, but a datum has only 16 numbers"):
        build({"kind": "vae", "latent": 17}, image_size=4, channels=1)


def test_what_is_compiled_is_what_training_calls(monkeypatch):
    """Compiled by a backend that counts and runs what it captured as it is."""
    captured = []

    def backend(graph, inputs):
        captured.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, backend=backend, **options)
    )
    config = variant()
    network = build_network(config, PixelCodec((8, 8, 1)))
    said = []
    accelerate(network, torch.zeros(4, 1, 8, 8), "fp32", compiled=True, say=said.append)
    assert said == []
    captured.clear()
    noise, t = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    with torch.compiler.set_stance("fail_on_recompile"):
        Reconstruct().losses(network, Batch(torch.randn(4, 1, 8, 8), {}), t, noise).mean().backward()
    assert captured == [], "all of it was compiled by the trial"
    assert all(hasattr(part, "_compiled_call_impl") and part._compiled_call_impl for part in network.children())


def test_it_learns_a_gamma_distribution():
    """Standard normal z in, a skewed distribution of one number out: the histogram of what is decoded lies close to the
    density, and closer than that of the normal distribution with the data's moments.
    """
    truth = gamma(3.0)
    points = truth.rvs((4096, 1), random_state=0).astype(np.float32)
    codec = ValueCodec("points", (1,), (0.0,), (float(points.max()),))
    torch.manual_seed(0)
    network = VAE(Shapes((1,)), latent=1, hidden=(64, 32))
    options = {"steps": 800, "batch_size": 256, "learning_rate": 3e-3, "warmup_steps": 0, "decay": "cosine"}
    task = Reconstruct(100.0)
    train_with(network, None, InMemoryImages(points), task=task, encode=codec.encode, **options, ema_decay=0.9)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn = codec.decode(network(noise, torch.zeros(len(noise))).numpy())
    edges = np.linspace(0, 10, 41)

    def apart(shares) -> float:
        """Total variation distance from the density, over the bins."""
        return 0.5 * np.abs(shares - np.diff(truth.cdf(edges))).sum()

    found = apart(np.histogram(drawn, edges)[0] / len(drawn))
    assert found < 0.1
    assert found < 0.7 * apart(np.diff(norm(points.mean(), points.std()).cdf(edges)))

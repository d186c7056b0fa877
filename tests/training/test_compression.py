"""The loss of an autoencoder of images: its parts, its opponent, and a training of it that is interrupted."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from weights import moved

from ddpm.codecs.latent import posterior_sample
from ddpm.data.loader import InMemoryImages, TrainingData
from ddpm.errors import Interrupted, UserError
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.condition import Shapes
from ddpm.nets.discriminator import PatchDiscriminator
from ddpm.training.checkpoint import Checkpoints
from ddpm.training.compression import MOST_ADVERSARIAL, Compress, Weights, adaptive_weight
from ddpm.training.loop import train
from ddpm.training.options import Hooks, TrainingOptions
from ddpm.training.perceptual import OfLayers, read_lpips
from ddpm.training.tasks import Batch

IMAGES = InMemoryImages(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
T = torch.zeros(4, dtype=torch.int64)


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return moved(AutoencoderKL(Shapes((3, 8, 8)), width=8, multipliers=(1, 2), blocks=1, latent_channels=2, groups=4))


def opponent() -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(3, width=8, layers=1)


def layers(seed: int = 0) -> OfLayers:
    torch.manual_seed(seed)
    return OfLayers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU()), "abc")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def losses(task: Compress, network: nn.Module, x, noise, step: int = 0):
    return task.losses(network, Batch(x, {}, None, step), T, noise)


def test_without_the_other_parts_it_is_the_error_and_the_kl(x, noise):
    network = autoencoder()
    mean, log_variance = network.encode(x)
    decoded = network.decode(posterior_sample(mean, log_variance, noise.flatten(1)[:, :32].view(4, 2, 4, 4)))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    expected = (x - decoded).abs().mean((1, 2, 3)) + 0.01 * kl.sum((1, 2, 3))
    found = losses(Compress(Weights(kl=0.01)), network, x, noise)
    torch.testing.assert_close(found, expected)


def test_an_image_s_loss_does_not_depend_on_the_others_of_its_batch(x, noise):
    """Without gradients, and so without the adaptive weight."""
    task = Compress(Weights(), layers(), opponent())
    with torch.no_grad():
        whole = losses(task, autoencoder(), x, noise)
        alone = losses(task, autoencoder(), x[1:2], noise[1:2])
    torch.testing.assert_close(alone, whole[1:2])


def test_the_perceptual_distance_is_none_between_equal_images_and_grows(x):
    distance = layers()
    assert distance(x, x).abs().max() == 0
    near, far = (distance(x, x + size * torch.ones_like(x).cumsum(3)) for size in (0.01, 0.1))
    assert (near > 0).all()
    assert (far > near).all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_neither_network_has_a_gradient_of_the_other_s_loss(x, noise):
    network, rival = autoencoder(), opponent()
    only_adversarial = Compress(Weights(perceptual=0, kl=0, adversarial=1.0), None, rival)
    losses(only_adversarial, network, x, noise).mean().backward()
    decoded = network.decode(posterior_sample(*network.encode(x), noise.flatten(1)[:, :32].view(4, 2, 4, 4))).detach()
    of_rival = [parameter.grad.clone() for parameter in rival.parameters()]
    rival.zero_grad()
    hinge = 0.5 * (torch.relu(1 - rival(x)) + torch.relu(1 + rival(decoded)))
    hinge.flatten(1).mean(1).mean().backward()
    for found, parameter in zip(of_rival, rival.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)


def test_the_adaptive_weight_makes_both_gradients_alike(x):
    layer = nn.Linear(3, 3)
    out = layer(x.movedim(1, 3))
    likeness, adversarial = (out - 1).abs().mean(), 0.1 * out.square().mean()
    weight = adaptive_weight(likeness, adversarial, layer.weight)
    norms = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in (likeness, adversarial)]
    assert weight * norms[1] == pytest.approx(norms[0].item(), rel=0.01)  # but for the 1e-4 below the fraction
    assert adaptive_weight(1e9 * likeness, 0 * adversarial, layer.weight) == MOST_ADVERSARIAL


def test_the_opponent_comes_in_at_its_step(x, noise):
    network, rival = autoencoder(), opponent()
    task = Compress(Weights(adversarial_from=5), None, rival)
    without = losses(Compress(Weights()), network, x, noise, step=4)
    torch.testing.assert_close(losses(task, network, x, noise, step=4), without)
    assert not torch.allclose(losses(task, network, x, noise, step=5), without)


def run(steps: int = 6, stop_at: int | None = None, **options) -> tuple[dict, nn.Module, list]:
    network, rival = autoencoder(), opponent()
    done: list[int] = []
    checkpoints = options.pop("checkpoints", None)
    curve = train(
        network,
        Compress(Weights(adversarial_from=2), layers(), rival),
        TrainingData(IMAGES),
        TrainingOptions(seed=1, steps=steps, batch_size=4, warmup_steps=0, log_every=2, **options),
        Hooks(on_step=done.append, should_stop=lambda: stop_at is not None and len(done) >= stop_at - 1),
        checkpoints=checkpoints,
    )
    return network.state_dict(), rival, curve


def test_stopped_and_continued_it_ends_in_the_same_bits_as_its_opponent_does(tmp_path):
    whole, rival, curve = run()
    with pytest.raises(Interrupted):
        run(stop_at=4, checkpoints=Checkpoints(tmp_path))
    again, other, continued = run(checkpoints=Checkpoints(tmp_path))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    for one, two in zip(rival.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert continued == curve
    untrained = opponent()
    assert any(not torch.equal(a, b) for a, b in zip(untrained.parameters(), rival.parameters(), strict=True))


def test_a_batch_in_parts_is_the_batch_before_the_adversarial_loss():
    """Its weight is of the data that go through the network together."""
    whole, parts = (run(steps=2, micro_batch_size=size)[2] for size in (None, 2))
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


@pytest.mark.parametrize(("side", "layers", "patches"), [(32, 3, 2), (32, 2, 6), (8, 1, 2)])
def test_the_discriminator_scores_patches(side, layers, patches):
    scores = PatchDiscriminator(3, width=8, layers=layers)(torch.zeros(2, 3, side, side))
    assert scores.shape == (2, 1, patches, patches)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """LPIPS as another library builds it, with random weights; the learned ones are above zero."""
    torch.manual_seed(0)
    network = _LPIPS(pretrained=False, net="vgg", pnet_rand=True, use_dropout=True).eval()
    for linear in (network.lin0, network.lin1, network.lin2, network.lin3, network.lin4):
        linear.model[-1].weight.data.abs_()
    return network


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_lpips_of_a_file_is_that_of_torchmetrics(published, tmp_path, suffix, x):
    path = tmp_path / f"lpips.{suffix}"
    weights = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    large = [nn.functional.interpolate(each, size=(32, 32)) for each in (x, x.flip(3))]
    with torch.no_grad():
        expected = published(*large).flatten()
        found = read_lpips(path)(*large)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_file_that_is_no_lpips_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match="no such file"):
        read_lpips(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"expected lpips.*net\.slice1\.0\.weight"):
        read_lpips(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a file of tensors"):
        read_lpips(path)

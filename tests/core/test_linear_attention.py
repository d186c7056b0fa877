import pytest
import torch

from ddpm.nets import build
from ddpm.nets.linear_attention import LinearAttention


@pytest.mark.parametrize(
    ("dims", "options"),
    [(1, {}), (1, {"multipliers": (1,), "memory": 2}), (2, {"downsample": "unshuffle"}), (2, {"full_attention": (1,)})],
)
def test_output_is_shaped_like_the_input_every_parameter_learns_and_time_matters(dims, options):
    torch.manual_seed(0)
    options = {"kind": "linear-attention", "width": 4, "multipliers": (1, 2), "heads": 2, "head_width": 3, **options}
    network = build(options, image_size=8, channels=2, out_channels=4, dims=dims)
    x, t = torch.randn(2, 2, *[8] * dims), torch.tensor([3, 700])
    out = network(x, t)
    assert out.shape == (2, 4, *[8] * dims)
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not torch.allclose(out, network(x, t.flip(0)))
    torch.testing.assert_close(out[1:], network(x[1:], t[1:]), rtol=1e-5, atol=1e-5)


def test_linear_attention_written_out():
    """softmax over features of q, over positions of k, (k vᵀ)ᵀ q, for one head (seed: Q dim −2, K dim −1)."""
    torch.manual_seed(0)
    attention = LinearAttention(3, dims=1, heads=1, head_width=5, memory=0)
    x = torch.randn(1, 3, 7)
    normed = 3**0.5 * x / x.norm(dim=1, keepdim=True)
    q, k, v = torch.einsum("oc,ncl->nol", attention.qkv.weight[..., 0], normed).chunk(3, dim=1)
    q, k = q.exp() / q.exp().sum(1, keepdim=True), k.exp() / k.exp().sum(2, keepdim=True)
    attended = torch.einsum("ndm,nem,ndl->nel", k, v, q) / 5**0.5
    expected = x + attention.out_norm(attention.out(attended))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize(
    ("options", "dims", "words"),
    [
        ({"width": 5}, 2, "width must be even and at least 4, found 5"),
        ({"downsample": "unshuffle"}, 1, "downsample: unshuffle is for images"),
        ({"full_attention": (4,)}, 2, r"full_attention names \[4\], but the levels are 0 to 3"),
        ({"multipliers": (1,) * 5}, 2, "8 is not a multiple of 16"),
        ({}, 0, "kind: linear-attention is for sequences and images; the data are points: use `mlp`"),
    ],
)
def test_impossible_networks_are_refused_in_the_users_words(options, dims, words):
    with pytest.raises(ValueError, match=words):
        build({"kind": "linear-attention", **options}, image_size=8, channels=1, dims=dims)

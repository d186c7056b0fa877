"""The prior's transformer: what each position attends to, and what its ports do."""

import pytest
import torch
from weights import awake

from ddpm.nets import build
from ddpm.nets.condition import Condition, Ports

OPTIONS = {"kind": "prior", "width": 16, "layers": 2, "heads": 2}
LENGTH, WIDTH, NUMBERS = 5, 6, 8


def prior(**options):
    ports = Ports(tokens=WIDTH, length=LENGTH)
    return awake(build({**OPTIONS, **options}, image_size=1, channels=NUMBERS, dims=0, ports=ports))


def question(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x, tokens = (torch.randn(*shape, generator=generator) for shape in ((3, NUMBERS), (3, LENGTH, WIDTH)))
    vector = torch.randn(3, 16, generator=generator)
    return x, torch.tensor([0, 5, 999]), Condition(tokens=tokens, vector=vector)


def test_a_point_for_a_point():
    x, t, c = question()
    assert prior()(x, t, c).shape == x.shape


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_each_port_decides(port):
    x, t, c = question()
    network = prior()
    other = network(x, t, c._replace(**{port: getattr(c, port).flip(0)}))
    assert (other - network(x, t, c)).abs().mean(dim=1)[0] > 1e-4


def test_masked_tokens_decide_nothing():
    x, t, c = question()
    mask = torch.tensor([[True] * 2 + [False] * 3, [True] * 5, [False] * 5])
    network = prior()
    before = network(x, t, c._replace(mask=mask))
    noisy = torch.where(mask[..., None], c.tokens, c.tokens + 100)
    torch.testing.assert_close(network(x, t, c._replace(tokens=noisy, mask=mask)), before)
    assert not torch.allclose(network(x, t, c._replace(tokens=noisy)), before)
    assert before.isfinite().all()


def test_a_mask_of_all_tokens_is_no_mask():
    x, t, c = question()
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(prior()(x, t, c._replace(mask=mask)), prior()(x, t, c))


def test_attention_is_causal():
    """What a later position holds does not reach an earlier one: with the output read at the first, x has no say."""
    x, t, c = question()
    network = prior()
    seen = []
    network.norm.register_forward_pre_hook(lambda module, h: seen.append(h[0]))
    firsts = []
    network.blocks[-1].register_forward_hook(lambda module, given, h: firsts.append(h[:, :LENGTH]))
    network(x, t, c)
    network(x + 1, t + 1, c._replace(vector=c.vector + 1))
    torch.testing.assert_close(firsts[0], firsts[1], rtol=0, atol=0)
    assert not torch.equal(seen[0], seen[1])


def test_without_tokens():
    network = awake(build(OPTIONS, image_size=1, channels=NUMBERS, dims=0))
    x, t, c = question()
    assert network(x, t).shape == network(x, t, Condition(vector=c.vector)).shape == x.shape


def test_another_number_of_tokens_is_refused():
    x, t, c = question()
    with pytest.raises(ValueError, match="built for 5 tokens, found 4"):
        prior()(x, t, c._replace(tokens=c.tokens[:, 1:]))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of heads, found 16 and 3"):
        prior(heads=3)


def test_it_is_for_points():
    with pytest.raises(ValueError, match="kind: prior is for points; the data are images"):
        build(OPTIONS, image_size=8, channels=3)


def test_a_new_prior_answers_zero():
    network = build(OPTIONS, image_size=1, channels=NUMBERS, dims=0, ports=Ports(tokens=WIDTH, length=LENGTH))
    assert not network(*question()).any()

"""A network with its condition as one module, and the dropping of conditions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import UNET

from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.guidance import ClassifierFree, guidable
from ddpm.conditioning.network import ConditionalNetwork, bind, blank, columns_in, dropped, unconditional
from ddpm.nets import build
from ddpm.nets.condition import NOTHING, Condition, merged

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Other:
    """A column of two numbers."""

    name = key = "other"
    dtype = np.dtype(np.float32)
    shape = (2,)
    null = -7


def conditional(*, droppable: bool = True, **options) -> ConditionalNetwork:
    """A small U-Net whose last layer is not zero, so that its output depends on its inputs."""
    torch.manual_seed(0)
    network = build({**UNET, **options}, image_size=8, channels=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return ConditionalNetwork(network, [LabelColumn(NAMES, droppable=droppable)])


def inputs(*labels: int):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(labels), 1, 8, 8, generator=generator)
    return x, torch.arange(len(labels)) * 7, {"label": torch.tensor(labels)}


@pytest.mark.parametrize("droppable", [True, False])
def test_it_is_saved_as_its_network_and_one_row_for_each_class(droppable: bool):
    network = conditional(droppable=droppable)
    state = network.state_dict()
    embedding = state.pop("conditioner.embedding.weight")
    assert embedding.shape == (len(NAMES) + droppable, network.network.vector_width)
    assert set(state) == {f"network.{name}" for name in network.network.state_dict()}
    assert guidable(network) == droppable


def test_the_label_changes_the_output_and_the_embedding_learns_only_from_the_labels_given():
    network = conditional()
    x, t, label = inputs(2, 0, 2)
    other = network(x, t, {"label": torch.tensor([2, 1, 2])})
    out = network(x, t, label)
    assert torch.equal(out[[0, 2]], other[[0, 2]])
    assert not torch.allclose(out[1], other[1])
    out.square().mean().backward()
    rows = network.conditioner.embedding.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [True, False, True, False]
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.network.parameters() if parameter.ndim > 1)


def test_without_a_label_it_is_told_the_null_class():
    network = conditional()
    x, t, _ = inputs(0, 0)
    torch.testing.assert_close(network(x, t), network(x, t, {"label": torch.tensor([3, 3])}), rtol=0, atol=0)
    network = conditional(droppable=False)
    torch.testing.assert_close(network(x, t), network(x, t, {"label": torch.tensor([0, 0])}), rtol=0, atol=0)


def test_a_null_row_of_zeros_is_the_unconditional_network():
    network = conditional()
    torch.nn.init.zeros_(network.conditioner.embedding.weight)
    x, t, label = inputs(1, 2)
    torch.testing.assert_close(network(x, t, label), network.network(x, t), rtol=0, atol=0)


def test_bind_leaves_an_unconditional_network_as_it_is():
    plain = build(UNET, image_size=8, channels=1)
    assert bind(plain, {}) is plain
    assert (columns_in(plain), guidable(plain)) == ((), False)
    network = conditional()
    x, t, label = inputs(1, 2)
    torch.testing.assert_close(bind(network, label)(x, t), network(x, t, label), rtol=0, atol=0)


def test_a_network_that_cannot_be_told_anything_is_refused():
    vae = build({"kind": "vae", "hidden": (8,), "latent": 2}, image_size=8, channels=1)
    with pytest.raises(ValueError, match=r"condition\.label: the network takes no condition"):
        ConditionalNetwork(vae, [LabelColumn(NAMES)])


shares = st.floats(0, 1, exclude_max=True, width=32)


@given(st.lists(st.tuples(st.integers(0, 2), shares), min_size=1), shares)
def test_a_label_is_dropped_where_its_number_is_below_the_share(data, drop):
    labels, uniform = (torch.tensor(part) for part in zip(*data, strict=True))
    column = LabelColumn(NAMES, droppable=True)
    found = dropped([column], {"label": labels}, {"label": drop}, uniform.view(-1, 1))["label"]
    expected = [3 if number < drop else label for label, number in data]
    assert found.tolist() == expected
    assert found.dtype == torch.int64


def test_the_share_that_is_dropped():
    """The 5-sigma interval of 20,000 draws."""
    count, drop = 20_000, 0.1
    uniform = torch.rand(count, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(count, dtype=torch.int64)
    found = dropped([LabelColumn(NAMES, droppable=True)], {"label": labels}, {"label": drop}, uniform)["label"]
    share = (found == 3).double().mean().item()
    assert abs(share - drop) < 5 * np.sqrt(drop * (1 - drop) / count)


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True, width=32), shares), min_size=1), shares, shares)
def test_two_columns_are_dropped_by_one_number_or_each_by_its_own(numbers, first, second):
    columns = [LabelColumn(NAMES, droppable=True), Other()]
    told = {"label": torch.zeros(len(numbers), dtype=torch.int64), "other": torch.ones(len(numbers), 2)}
    uniform, drop = torch.tensor(numbers), {"label": first, "other": second}
    apart = dropped(columns, told, drop, uniform)
    assert apart["label"].tolist() == [3 if one < first else 0 for one, _ in numbers]
    assert apart["other"].tolist() == [[-7.0 if other < second else 1.0] * 2 for _, other in numbers]
    together = dropped(columns, told, drop, uniform[:, :1])
    assert together["other"].tolist() == [[-7.0 if one < second else 1.0] * 2 for one, _ in numbers]


def test_a_column_without_a_null_value_stays_as_it_is_given():
    columns = [LabelColumn(NAMES), Other()]
    told = {"label": torch.tensor([2, 1]), "other": torch.ones(2, 2)}
    without = unconditional(columns, told)
    assert without["label"].tolist() == [2, 1]
    assert without["other"].tolist() == [[-7.0, -7.0]] * 2
    assert {name: value.dtype for name, value in blank(columns, 3).items()} == {"label": np.int64, "other": np.float32}


def test_several_conditions_are_one():
    tokens, mask, maps = torch.randn(2, 3, 4), torch.tensor([[True, False, True]] * 2), torch.randn(2, 1, 8, 8)
    one = Condition(vector=torch.ones(2, 5), tokens=tokens, mask=mask)
    other = Condition(vector=torch.full((2, 5), 2.0), tokens=tokens[:, :1], maps=maps)
    both = merged([one, other, Condition(maps=maps)])
    assert torch.equal(both.vector, torch.full((2, 5), 3.0))
    assert torch.equal(both.tokens, torch.cat([tokens, tokens[:, :1]], dim=1))
    assert both.mask.tolist() == [[True, False, True, True]] * 2
    assert torch.equal(both.maps, torch.cat([maps, maps], dim=1))
    assert merged([]) == NOTHING
    assert merged([other]).mask is None
    assert merged([other])[0] is other[0]


@pytest.mark.parametrize("learned", [False, True])
def test_guidance_moves_the_first_channels_away_from_the_null_class(learned: bool):
    """ε(x, c) + w (ε(x, c) − ε(x, ∅)); the channels of a learned variance stay the conditional ones."""
    network = conditional(width=8)
    if learned:
        torch.manual_seed(0)
        plain = build(UNET, image_size=8, channels=1, out_channels=2)
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        network = ConditionalNetwork(plain, network.columns)
    x, t, label = inputs(1, 2, 0)
    with torch.no_grad():
        told, unconditional = network(x, t, label), network(x, t)
        for weight in (-1.0, 0.5, 2.0):
            guided = ClassifierFree(network, label).guided(x, t, weight)
            torch.testing.assert_close(guided[:, :1], told[:, :1] + weight * (told - unconditional)[:, :1])
            torch.testing.assert_close(guided[:, 1:], told[:, 1:])
    torch.testing.assert_close(ClassifierFree(network, label)(x, t), told)

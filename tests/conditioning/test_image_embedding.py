"""The embedding of a picture as a column and as a condition, and what is drawn like a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import UNET
from weights import awake

from ddpm.conditioning.columns import blank, columns_of
from ddpm.conditioning.guidance import guidable
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.conditioning.network import ConditionalNetwork, dropped, ports_for
from ddpm.directions import unit
from ddpm.drawer.likeness import Likeness, difference
from ddpm.nets import build

OPTIONS = {"encoder": "models/clip", "drop": 0.1, "tokens": 3, "width": 10}
NUMBERS = 5


def column() -> EmbeddingColumn:
    (found,) = columns_of({"embedding": OPTIONS}, {"encoder": {"numbers": NUMBERS}})
    return found


def network() -> ConditionalNetwork:
    condition = {"embedding": OPTIONS}
    unet = build({**UNET, "heads": 2}, image_size=8, channels=1, ports=ports_for([column()], condition))
    return awake(ConditionalNetwork(unet, [column()], condition))


def test_the_column():
    assert (column().shape, column().null, column().dtype) == ((NUMBERS,), 0, np.float32)
    found = column().read([[3, 0, 0, 0, 4], [0, 2, 0, 0, 0]], 3)
    np.testing.assert_allclose(found, [[0.6, 0, 0, 0, 0.8], [0, 1, 0, 0, 0], [0.6, 0, 0, 0, 0.8]])
    assert not blank([column()], 2)["embedding"].any()


@pytest.mark.parametrize("asked", [[1, 2], "cat", None, [[1, 2], [3]], np.zeros((0, NUMBERS)), [np.nan] * NUMBERS])
def test_what_is_no_embedding_is_refused(asked):
    with pytest.raises(ValueError, match="embedding: expected"):
        column().read(asked, 1)


def test_nothing_is_drawn_of_nothing():
    with pytest.raises(ValueError, match="draws of the embedding of a picture"):
        column().draw(1, seed=0)


def test_without_a_clip_there_is_no_column():
    with pytest.raises(ValueError, match=r"condition\.embedding needs the CLIP"):
        columns_of({"embedding": OPTIONS}, {})


def test_the_embedding_is_a_vector_and_tokens():
    found = network().condition({"embedding": torch.eye(NUMBERS)[:2]})
    assert found.tokens.shape == (2, 3, 10)
    assert found.vector.shape[0] == 2
    assert found.mask is None
    assert not torch.equal(found.tokens[0], found.tokens[1])


@torch.no_grad()
def test_it_decides_what_is_drawn_and_can_be_dropped():
    model, x, t = network(), torch.randn(2, 1, 8, 8), torch.tensor([5, 5])
    given = {"embedding": torch.eye(NUMBERS)[:2]}
    assert guidable(model)
    assert not torch.allclose(model(x, t, given), model(x, t, {"embedding": given["embedding"].flip(0)}))
    away = dropped([column()], given, {"embedding": 0.5}, torch.tensor([[0.4], [0.6]]))
    assert not away["embedding"][0].any()
    assert torch.equal(away["embedding"][1], given["embedding"][1])


class Space:
    """A CLIP of pictures of one pixel: their levels are the embedding."""

    shape = (1, 1, 3)

    def images(self, pictures):
        return unit(pictures.reshape(len(pictures), 3))

    def texts(self, texts):
        return unit(np.array([{"red": [1, 0, 0], "blue": [0, 0, 1], "grey": [1, 1, 1]}[text] for text in texts]))


RED, BLUE = np.uint8([[[255, 0, 0]]]), np.uint8([[[0, 0, 255]]])


def test_variations():
    like = Likeness(np.stack([RED, BLUE]))
    assert like.steps is None
    np.testing.assert_allclose(like.embeddings(Space()), [[1, 0, 0], [0, 0, 1]])


def test_an_interpolation():
    like, half = Likeness(np.stack([RED, BLUE]), mix=3), 0.5**0.5
    assert like.steps == 3
    np.testing.assert_allclose(like.embeddings(Space()), [[1, 0, 0], [half, 0, half], [0, 0, 1]], atol=1e-6)


def test_a_difference_of_texts():
    half = 0.5**0.5
    np.testing.assert_allclose(difference(*Space().texts(["red", "blue"])), [-half, 0, half], atol=1e-6)
    like = Likeness(RED[None], change=("red", "blue"), strength=1.0)
    np.testing.assert_allclose(like.embeddings(Space()), [[-half, 0, half]], atol=1e-6)
    several = Likeness(RED[None], mix=3, change=("red", "blue"), strength=0.5).embeddings(Space())
    np.testing.assert_allclose(several[0], [1, 0, 0], atol=1e-6)
    angles = np.arccos(several @ [1, 0, 0])
    np.testing.assert_allclose(angles, [0, np.pi * 3 / 16, np.pi * 3 / 8], atol=1e-3)


def test_texts_that_are_the_same_differ_in_nothing():
    with pytest.raises(ValueError, match="are the same to the model"):
        Likeness(RED[None], change=("red", "red")).embeddings(Space())


@pytest.mark.parametrize(
    ("pictures", "options", "said"),
    [
        ([RED], {"mix": 3}, "expected two"),
        ([RED, BLUE, RED], {"mix": 3}, "expected two"),
        ([RED, BLUE], {"change": ("red", "blue")}, "changes one picture"),
        ([RED, BLUE], {"mix": 0}, "mix must be in"),
        ([RED], {"change": ("red", "blue"), "strength": 0.0}, "strength must be above 0"),
        ([RED], {"change": ("red", "blue"), "strength": 1.5}, "strength must be above 0"),
    ],
)
def test_what_does_not_go_together(pictures, options, said):
    with pytest.raises(ValueError, match=said):
        Likeness(np.stack(pictures), **options)

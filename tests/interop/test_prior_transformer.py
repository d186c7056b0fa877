"""The prior, held against diffusers' PriorTransformer."""

import pytest
import torch
from diffusers import PriorTransformer
from weights import moved

from ddpm.config.base import validate
from ddpm.errors import UserError
from ddpm.interop.diffusers.prior import PROJECTION, PriorTransformerConfig, ours_of, prior_config
from ddpm.interop.published import network_of
from ddpm.nets.condition import Condition, Ports

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "embedding_dim": 12,
    "num_embeddings": 7,
}
PEERS = {
    "small": SMALL,
    "a LayerNorm before the blocks": {**SMALL, "norm_in_type": "layer", "dropout": 0.1},
    "another width of the text's embedding": {**SMALL, "embedding_proj_dim": 10},
}


def peer(options) -> PriorTransformer:
    torch.manual_seed(0)
    return moved(PriorTransformer(**options))


def config_of(theirs) -> PriorTransformerConfig:
    return validate(PriorTransformerConfig, {**theirs.config, "_class_name": type(theirs).__name__}, "theirs")


def imported(theirs):
    config = config_of(theirs)
    network = prior_config(config, "theirs")
    ports = Ports(tokens=config.embedding_dim, length=config.num_embeddings)
    empty = network_of(network, (config.embedding_dim,), config.embedding_dim, "theirs", ports)
    weights = ours_of(theirs.state_dict(), empty, "theirs")
    ours = empty.to_empty(device="cpu")
    ours.load_state_dict(weights)
    return ours.eval()


def question(config):
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, config.embedding_dim), (2, config.num_embeddings, config.embedding_dim), (2, config.text_embedding))
    return *(torch.randn(*shape, generator=generator) for shape in shapes), torch.tensor([3, 977])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_equal_to_theirs(name, masked):
    theirs = peer(PEERS[name])
    x, tokens, embedding, t = question(config_of(theirs))
    mask = torch.tensor([[True] * 3 + [False] * 4, [True] * 7]) if masked else None
    # Without a mask theirs attends to all positions, also to later ones; its pipelines always give one.
    their_mask = torch.ones(2, 7, dtype=torch.bool) if mask is None else mask
    expected = theirs(x, t, embedding, tokens, their_mask).predicted_image_embedding
    vector = getattr(theirs, PROJECTION)(embedding)
    found = imported(theirs)(x, t, Condition(tokens=tokens, mask=mask, vector=vector))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"added_emb_type": None}, "added_emb_type"),
        ({"embedding_proj_norm_type": "layer"}, "embedding_proj_norm_type"),
        ({"encoder_hid_proj_type": None}, "encoder_hid_proj_type"),
        ({"time_embed_dim": 20}, "time_embed_dim is 20; expected 16"),
        ({"clip_embed_dim": 10}, "clip_embed_dim is 10; expected 12"),
    ],
)
def test_what_ours_lacks_is_named(options, said):
    with pytest.raises(UserError, match=said):
        config_of(peer({**SMALL, **options}))


def test_other_weights_are_named():
    theirs = peer(SMALL)
    config = config_of(theirs)
    ports = Ports(tokens=config.embedding_dim, length=config.num_embeddings)
    empty = network_of(prior_config(config, "theirs"), (12,), 12, "theirs", ports)
    weights = theirs.state_dict()
    del weights["norm_out.weight"]
    with pytest.raises(UserError, match=r"missing norm_out\.weight"):
        ours_of(weights, empty, "theirs")

"""The towers and the loss of CLIP, held against transformers' CLIPModel where the package is installed.

Its text tower is one of ours. Its image tower, a vision transformer, is not: our loss is given what that one makes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clip_text import LENGTH, MARKS, SIZES, VOCABULARY
from torch import Tensor, nn
from weights import moved

from ddpm.interop import clip
from ddpm.nets.clip import CLIP, TextTower
from ddpm.nets.text import CLIPText
from ddpm.training.contrast import contrastive_losses

transformers = pytest.importorskip("transformers")

EMBEDDING = 5
IDS = torch.tensor([[3, 4, 5, 6], [7, 9, 9, 9], [9, 9, 9, 9], [2, 2, 9, 9]])
# The same with the marks around each text.
MARKED = torch.tensor([[8, 3, 4, 5, 6, 9], [8, 7, 9, 9, 9, 9], [8, 9, 9, 9, 9, 9], [8, 2, 2, 9, 9, 9]])


def text_config(activation: str = "quick_gelu"):
    return transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZES["width"],
        intermediate_size=4 * SIZES["width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        max_position_embeddings=LENGTH,
        hidden_act=activation,
        projection_dim=EMBEDDING,
        bos_token_id=MARKS.start,
        eos_token_id=MARKS.end,
        pad_token_id=MARKS.filler,
    )


def text_tower(theirs: nn.Module, directory: Path) -> TextTower:
    """Ours, with the weights of a directory that transformers writes, and the projection of the model."""
    theirs.save_pretrained(directory)
    published, _ = clip.read(directory)
    assert {name: published.options[name] for name in SIZES} == SIZES
    encoder = CLIPText(VOCABULARY, LENGTH - 2, marks=MARKS, activation=published.options["activation"], **SIZES)
    encoder.load_state_dict(published.weights)
    tower = TextTower(encoder, MARKS.end, EMBEDDING).eval()
    tower.projection.load_state_dict({"weight": theirs.text_projection.weight})
    return tower


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_text_tower_is_theirs_with_its_projection(activation: str, tmp_path: Path):
    torch.manual_seed(0)
    theirs = moved(transformers.CLIPTextModelWithProjection(text_config(activation)))
    tower = text_tower(theirs, tmp_path)
    with torch.no_grad():
        found, expected = tower(IDS), theirs(input_ids=MARKED).text_embeds
    assert expected.shape == (4, EMBEDDING)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Given(nn.Module):
    """An image tower of embeddings that are there already."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.embeddings


def test_embeddings_logits_loss_and_its_gradients_are_theirs(tmp_path: Path):
    torch.manual_seed(0)
    seeing = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.CLIPConfig(
        text_config=text_config().to_dict(),
        vision_config={**seeing, "image_size": 8, "patch_size": 4, "projection_dim": EMBEDDING},
        projection_dim=EMBEDDING,
    )
    theirs = moved(transformers.CLIPModel(config))
    pixels = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        images = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
    text = transformers.CLIPTextModelWithProjection(text_config())
    text.text_model.load_state_dict(theirs.text_model.state_dict())
    text.text_projection.load_state_dict(theirs.text_projection.state_dict())
    ours = CLIP(Given(images), text_tower(text, tmp_path))
    ours.log_scale.data.copy_(theirs.logit_scale)

    answer = theirs(input_ids=MARKED, pixel_values=pixels, return_loss=True)
    of_images, of_texts = ours(pixels, torch.zeros(4, dtype=torch.int64)), ours.texts(IDS)
    loss = contrastive_losses(of_images, of_texts, of_images, of_texts, ours.scale).mean()
    for found, expected in (
        (of_images, answer.image_embeds),
        (of_texts, answer.text_embeds),
        (ours.scale * of_images @ of_texts.T, answer.logits_per_image),
        (loss, answer.loss),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    answer.loss.backward()
    loss.backward()
    for found, expected in (
        (ours.log_scale, theirs.logit_scale),
        (ours.text.projection.weight, theirs.text_projection.weight),
        (ours.text.encoder.tokens.weight, theirs.text_model.embeddings.token_embedding.weight),
    ):
        assert expected.grad.abs().max() > 0
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)

"""CLIP's towers, its scale and its loss, held against a closed form and, where it is installed, against open_clip."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_text import LENGTH, MARKS, SIZES, VOCABULARY
from pydantic import ValidationError
from torch import nn

from ddpm.conditioning.columns import PromptColumn
from ddpm.conditioning.text import clip_of
from ddpm.conditioning.tokenizers import fit_tokenizer
from ddpm.config.condition import PromptConfig
from ddpm.config.model import VariantConfig
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.nets.classifier import Classifier
from ddpm.nets.clip import CLIP, MOST_SCALE, ImageTower, TextTower
from ddpm.nets.condition import Shapes
from ddpm.nets.text import CLIPText, TextTransformer
from ddpm.training.adam import Adam
from ddpm.training.contrast import Contrast, contrastive_losses
from ddpm.training.tasks import Batch

TINY = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "head_channels": 8, "groups": 8}
PROMPT = {"tokenizer": "words", "length": 3, "width": 16, "layers": 1, "heads": 2, "drop": 0}
CAPTIONS = ("red square", "blue square", "green square", "white square")


def column() -> PromptColumn:
    return PromptColumn(fit_tokenizer(CAPTIONS, PromptConfig(**PROMPT).model_dump()), CAPTIONS)


def tiny_clip(embedding: int = 8) -> CLIP:
    torch.manual_seed(0)
    return clip_of(ImageTower(Shapes((3, 8, 8)), embedding=embedding, **TINY), [column()], PROMPT, embedding)


def process() -> GaussianProcess:
    return GaussianProcess(Schedule.of({"schedule": "cosine", "timesteps": 20}))


def unit(count: int, seed: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


# --- the towers


def test_the_image_tower_is_the_classifier_with_an_embedding_for_its_classes():
    torch.manual_seed(0)
    tower = ImageTower(Shapes((3, 8, 8)), embedding=6, **TINY)
    torch.manual_seed(0)
    classifier = Classifier(Shapes((3, 8, 8), 6), **TINY)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 7])
    torch.testing.assert_close(tower(x, t), classifier(x, t), rtol=0, atol=0)


def test_both_towers_give_unit_vectors_of_one_size():
    clip = tiny_clip().eval()
    images = clip(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    texts = clip.texts(torch.from_numpy(column().read(CAPTIONS, 4)))
    assert images.shape == texts.shape == (4, 8)
    for vectors in (images, texts):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert clip.scale.item() == pytest.approx(1 / 0.07)


def test_glides_text_is_told_by_the_last_position_and_clips_by_the_mark_at_the_end():
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])
    there = ids != 0
    glide = TextTransformer(VOCABULARY, 4, **SIZES)
    torch.testing.assert_close(TextTower(glide, 0, 5).encoder.last(there), torch.tensor([3, 3]))
    clip = CLIPText(VOCABULARY, LENGTH - 2, marks=MARKS, **SIZES)
    rows = torch.arange(2)
    assert (clip.marked(ids, there)[rows, clip.last(there)] == MARKS.end).all()
    tower = TextTower(clip, 0, 5)
    expected = tower.projection(clip(ids, there)[rows, torch.tensor([3, 5])])
    torch.testing.assert_close(tower(ids), expected)


def test_the_scale_stops_at_100_and_can_fall_again():
    clip = tiny_clip()
    nn.init.constant_(clip.log_scale, 9.0)
    clip.limit_scale()
    assert clip.log_scale.item() == pytest.approx(math.log(100))
    clip.scale.backward()
    assert clip.log_scale.grad.item() == pytest.approx(MOST_SCALE, rel=1e-4)


# --- the loss


def closed_form(images: np.ndarray, texts: np.ndarray, scale: float) -> np.ndarray:
    """Figure 3 of Radford et al. 2021, a pair at a time."""
    logits = scale * images @ texts.T
    losses = []
    for i in range(len(logits)):
        of_texts = np.log(np.exp(logits[i]).sum()) - logits[i, i]
        of_images = np.log(np.exp(logits[:, i]).sum()) - logits[i, i]
        losses.append((of_texts + of_images) / 2)
    return np.array(losses)


def test_the_loss_is_the_papers():
    images, texts = unit(6, 0), unit(6, 1)
    losses = contrastive_losses(images, texts, images, texts, torch.tensor(14.3))
    np.testing.assert_allclose(losses, closed_form(images.numpy(), texts.numpy(), 14.3), rtol=1e-5)


def test_the_loss_is_open_clips():
    open_clip = pytest.importorskip("open_clip")
    images, texts, scale = unit(6, 0), unit(6, 1), torch.tensor(14.3)
    theirs = open_clip.loss.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(contrastive_losses(images, texts, images, texts, scale).mean(), theirs)


def test_parts_of_a_batch_have_the_losses_of_the_whole():
    images, texts, scale = unit(5, 0), unit(5, 1), torch.tensor(20.0)
    whole = contrastive_losses(images, texts, images, texts, scale)
    parts = [
        contrastive_losses(images[rows], texts[rows], images, texts, scale, rows.start)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("noised", [False, True])
def test_the_task_shows_the_image_tower_what_it_is_trained_on(noised):
    clip, seen = tiny_clip(), SimpleNamespace()

    def look(module, arguments):
        seen.x, seen.t = arguments

    clip.image.register_forward_pre_hook(look)
    task = Contrast(process(), [column()], noised, 4)
    x0, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([3, 0, 19, 7])
    given = {"prompt": torch.from_numpy(column().read(CAPTIONS, 4))}
    losses = task.losses(clip, Batch(x0, given), t if noised else torch.zeros_like(t), noise)
    assert losses.shape == (4,)
    assert task.timesteps == (20 if noised else 1)
    torch.testing.assert_close(seen.x, process().q_sample(x0, t, noise) if noised else x0)
    assert seen.t.tolist() == (t.tolist() if noised else [0] * 4)


def test_it_learns_which_caption_is_of_which_image():
    clip, task = tiny_clip(), Contrast(process(), [column()], False, 4)
    x0 = torch.randn(4, 3, 8, 8)
    batch = Batch(x0, {"prompt": torch.from_numpy(column().read(CAPTIONS, 4))})
    optimizer, t = Adam(clip.parameters()), torch.zeros(4, dtype=torch.int64)
    for _ in range(80):
        optimizer.zero_grad()
        task.losses(clip, batch, t, x0).mean().backward()
        optimizer.step(3e-3)
    with torch.no_grad():
        products = clip(x0, t) @ clip.texts(batch.given["prompt"]).T
    assert products.argmax(1).tolist() == [0, 1, 2, 3]


# --- the configuration


def config(**changes) -> dict:
    return {
        "network": {"kind": "clip", **TINY, "embedding": 8},
        "condition": {"prompt": PROMPT},
        "objective": {"loss": "contrastive"},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"loss": "simple"}}, "network.kind clip and objective.loss contrastive go together"),
        ({"condition": {}}, "found no prompt"),
        ({"condition": {"prompt": {**PROMPT, "drop": 0.1}}}, "found drop 0.1"),
        ({"condition": {"prompt": PROMPT, "label": {}}}, "found label"),
        ({"training": {"micro_batch_size": 2}}, "training.micro_batch_size is 2, but objective.loss contrastive"),
        ({"training": {"micro_batch_size": "auto"}}, "set it to null, or lower batch_size"),
        ({"objective": {"loss": "contrastive", "timestep_sampler": "importance"}}, "needs `timestep_sampler: uniform`"),
        ({"codec": {"side": 4}}, "leave codec.side out"),
        ({"training": {"sample_every": 5}}, "training.sample_every must be 0"),
    ],
)
def test_what_a_clip_cannot_be_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        VariantConfig.model_validate(config(**changes))


def test_only_a_contrastive_loss_is_noised_by_choice():
    with pytest.raises(ValidationError, match="`noised` is for `loss: contrastive`"):
        VariantConfig.model_validate({"objective": {"noised": True}})

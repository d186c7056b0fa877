"""guided-diffusion's classifiers: imported, held against the architecture as the papers tell it, and used as guides."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import ours
from openai_networks import published, published_classifier, reference

import ddpm
from ddpm.cli import main
from ddpm.conditioning.guidance import ClassifierGradient
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError
from ddpm.interop.openai_classifier import convert, is_theirs
from ddpm.interop.published import Flags
from ddpm.stages.interop import import_model

FLAGS = {"image_size": 8, "noise_schedule": "cosine", "diffusion_steps": 1000}
# What the state dict is of, and the residual blocks that halve the side.
CASES = {
    "as released": ({"width": 32, "multipliers": (2, 2, 4), "blocks": 2, "attended": (1, 2)}, (3, 6)),
    "as released at 64": ({"width": 64, "multipliers": (1, 2), "blocks": 4}, (5,)),
    "as released at 512": ({"width": 64, "multipliers": (0.5, 1, 1), "attended": (2,)}, (2, 4)),
    "added time": ({"scale_shift": False, "width": 64, "attended": ()}, (2,)),
    "convolutions": ({"resample": "conv", "multipliers": (1, 1, 2), "attended": (0, 2), "width": 64}, ()),
    "pooling": ({"resample": "plain", "blocks": 2, "width": 64}, ()),
    "one level": ({"multipliers": (1,), "attended": (0,), "width": 64}, ()),
    "half the images": ({"side": 4, "width": 64}, (2,)),
}
OPTIONS = {"narrow heads": {"num_head_channels": 16}, "new order": {"use_new_attention_order": True}, "defaults": {}}


def random_input(side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(), torch.tensor([3, 977]), torch.tensor([4, 0])


@pytest.mark.parametrize("case", CASES)
def test_logits_and_their_gradient_are_those_of_the_published_classifier(case):
    shape, downs = CASES[case]
    state, side = published_classifier(**shape), shape.get("side", 8)
    found = convert(state, Flags(**{**FLAGS, "image_size": side}))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(tensor.numel() for tensor in state.values())
    x, t, y = random_input(side)
    theirs = reference(state, x, t, head_channels=64, downs=downs)
    (gradient,) = torch.autograd.grad(theirs.log_softmax(1)[[0, 1], y].sum(), x)
    logits = network(x, t)
    assert logits.shape == theirs.shape == (2, 5)
    assert (logits - theirs).norm() <= 1e-5 * theirs.norm()
    guide = ClassifierGradient(network, network, y, GaussianProcess(Schedule.named("cosine", 1000)))
    assert (guide.gradient(x, t) - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("told", OPTIONS)
def test_what_the_shapes_do_not_tell_comes_from_the_options(told):
    """By default heads have 64 channels and the attentions the old order; the pooling has the new one always."""
    state = published_classifier(width=64)
    x, t, _ = random_input(8)
    x = x.detach()
    with torch.no_grad():
        answers = {
            option: reference(
                state,
                x,
                t,
                head_channels=flags.get("num_head_channels", 64),
                new_order=flags.get("use_new_attention_order", False),
                downs=(2,),
            )
            for option, flags in OPTIONS.items()
        }
        logits = ours(convert(state, Flags(**FLAGS, **OPTIONS[told])))(x, t)
    for option, expected in answers.items():
        assert ((logits - expected).norm() <= 1e-5 * expected.norm()) == (option == told), option


@pytest.mark.parametrize(
    ("side", "multipliers", "blocks", "attended", "parameters"),
    [
        (64, (1, 2, 3, 4), 4, (1, 2, 3), 65_438_568),
        (128, (1, 1, 2, 3, 4), 2, (2, 3, 4), 42_568_040),
        (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 54_096_360),
        (512, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), 54_448_360),
    ],
)
def test_the_released_classifiers(side, multipliers, blocks, attended, parameters):
    """By shapes alone: the sizes of the files that OpenAI published."""
    state = published_classifier(
        **{"side": side, "width": 128, "multipliers": multipliers, "blocks": blocks, "attended": attended},
        **{"classes": 1000, "device": "meta"},
    )
    found = convert(state, Flags(image_size=side, noise_schedule="linear", diffusion_steps=1000))
    assert sum(tensor.numel() for tensor in found.weights.values()) == parameters
    network = found.network
    assert (network.multipliers, network.blocks, network.attention_resolutions) == (multipliers, blocks, (32, 16, 8))
    assert (network.resample, network.scale_shift, network.head_channels) == ("residual", True, 64)
    assert (found.answers, found.labels) == (1000, None)


def test_a_classifier_is_told_from_a_denoiser():
    assert is_theirs(published_classifier())
    assert not is_theirs(published())
    assert not is_theirs({"model.init_conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({}, {"image_size": 16}, "--image-size is 16, which does not fit: the weights have 4 blocks .* to 4×4 pixels"),
        ({}, {"image_size": 4}, "--image-size is 4, which does not fit"),
        ({}, {"image_size": 9}, "--image-size is 9, which does not fit"),
        ({}, {"num_heads": 4}, "a classifier: --num-heads does not apply to it; leave it out"),
        ({}, {"predict_xstart": True}, "--predict-xstart does not apply"),
        ({}, {"rescale_timesteps": True}, "--rescale-timesteps does not apply"),
        ({}, {"null_class": True}, "--null-class does not apply"),
        ({}, {"num_head_channels": 48}, "head_channels is 48, which does not divide the 64 channels"),
        ({}, {"noise_schedule": None, "image_size": None}, "give, .* --image-size, --noise-schedule$"),
        (
            {"out.2.positional_embedding": None},
            {},
            r"a classifier without attention pooling .* of --classifier_pool attention",
        ),
        ({"out.2.positional_embedding": torch.ones(64, 8)}, {}, "is of 7 pixels, which are no square"),
        ({"out.2.positional_embedding": torch.ones(64, 1)}, {}, "is of 0 pixels, which are no square"),
        ({"out.2.c_proj.weight": None}, {}, "missing out.2.c_proj.weight; unexpected nothing"),
        ({"label_emb.weight": torch.ones(5, 128)}, {}, "missing nothing; unexpected label_emb.weight"),
        ({"input_blocks.99.0.op.weight": torch.ones(5)}, {}, "does not fit: the weights have 100 blocks"),
        ({"input_blocks.9999.0.op.weight": torch.ones(5)}, {}, "it has a block number 1e[+]04"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(change, flags, words):
    state = {name: t for name, t in (published_classifier(width=32) | change).items() if t is not None}
    with pytest.raises(UserError, match=words) as caught:
        convert(state, Flags(**{**FLAGS, **flags}))
    assert "\n" not in str(caught.value)


SAID = ["--image-size", "8", "--noise-schedule", "cosine", "--diffusion-steps", "1000"]
NAMES = ["--classes", "cat,dog,emu,fox,gnu"]


def imported(name: str, state: dict, *said: str) -> int:
    torch.save(state, f"{name}.pt")
    return main(["import", f"{name}.pt", "--out", name, *(said or [*SAID, *NAMES])])


@pytest.mark.parametrize("classes", [0, 5])
def test_an_imported_classifier_guides_an_imported_model(classes, tmp_path: Path, monkeypatch, capsys):
    """Of both kinds that OpenAI published: without classes, and with the classifier's."""
    monkeypatch.chdir(tmp_path)
    assert imported("guide", {f"module.{k}": v.half() for k, v in published_classifier(width=64).items()}) == 0
    assert "a classifier of 5 classes. To guide a model by it: ddpm sample MODEL --guide guide" in (
        capsys.readouterr().out
    )
    named = NAMES if classes else []
    assert imported("model", published(classes=classes), *SAID, "--num-heads", "4", *named) == 0
    few = ["--guide", "guide", "--label", "emu", "--n", "2", "--steps", "3"]
    assert main(["sample", "model", *few, "--guidance-scale", "8", "--out", "guided.npz"]) == 0
    model = ddpm.load("model").guided_by("guide")
    options = {"steps": 3, "label": "emu"}
    drawn = [model.sample(2, guidance_scale=scale, **options) for scale in (8, 0)]
    np.testing.assert_array_equal(np.load("guided.npz")["images"], drawn[0])
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("guide", "model", "words"),
    [
        ({"classes": 4}, {"classes": 5}, "has the classes 0, 1, 2, 3, and the model the classes 0, 1, 2, 3, 4"),
        ({"side": 4}, {}, "was trained on images of 4×4×3, and the model on images of 8×8×3"),
        (
            {},
            {"noise_schedule": "linear"},
            "schedule cosine with 1000 timesteps, and the model with schedule linear with 1000",
        ),
        (
            {},
            {"diffusion_steps": "100"},
            "schedule cosine with 1000 timesteps, and the model with schedule cosine with 100",
        ),
    ],
)
def test_an_imported_classifier_of_other_data_or_another_process(guide, model, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    side, classes = guide.get("side", 8), model.get("classes", 0)
    said = ["--noise-schedule", "cosine", "--diffusion-steps", "1000"]
    assert imported("guide", published_classifier(width=64, **guide), "--image-size", str(side), *said) == 0
    schedule, steps = model.get("noise_schedule", "cosine"), model.get("diffusion_steps", "1000")
    said = ["--image-size", "8", "--num-heads", "4", "--noise-schedule", schedule, "--diffusion-steps", steps]
    assert imported("model", published(classes=classes), *said, "--no-rescale-timesteps") == 0
    capsys.readouterr()
    assert main(["sample", "model", "--guide", "guide", "--n", "1", "--out", "a.npz"]) == 2
    error = capsys.readouterr().err
    assert re.search(f"guide cannot guide model: it (was trained with )?{words}", error)
    assert error.count("\n") == 1


def test_a_classifier_is_no_denoiser_and_a_denoiser_no_classifier(tmp_path, monkeypatch, capsys):
    """In one line, whether its file is taken for the other's or its directory."""
    monkeypatch.chdir(tmp_path)
    classifier, denoiser = published_classifier(width=64), published()
    assert imported("guide", classifier) == imported("model", denoiser, *SAID, "--num-heads", "4") == 0
    half = {name: tensor for name, tensor in denoiser.items() if not name.startswith("output_blocks.")}
    asked = {
        "a classifier: --num-heads does not apply": lambda: imported("a", classifier, *SAID, "--num-heads", "4"),
        "a classifier without attention pooling": lambda: imported("b", half, *SAID),
        "--num-heads or --num-head-channels": lambda: imported("c", denoiser, *SAID),
        "--classes has 2 names, but the network has 5": lambda: imported("d", classifier, *SAID, "--classes", "x,y"),
        "guide is a classifier, which draws nothing": lambda: main(["sample", "guide", "--out", "a.npz"]),
        "is a classifier": lambda: main(["export-diffusers", "guide", "out"]),
    }
    capsys.readouterr()
    for words, ask in asked.items():
        assert ask() == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


ODD = [torch.zeros(shape) for shape in [(), (0,), (5,), (2, 2), (0, 1, 1, 1)]]
TELLING = ["time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.emb_layers.1.bias", "input_blocks.x.0"]
TELLING += ["input_blocks.1.0.out_layers.3.weight", "out.2.positional_embedding", "out.2.c_proj.weight", "out.2.bias"]


def test_any_tensor_may_have_any_shape(tmp_path):
    """A line says what is wrong, whether a name is read, a shape, or neither."""
    state, path = published_classifier(width=64), tmp_path / "odd.pt"
    for name, odd in itertools.product([*TELLING, *sorted(state)[::15]], ODD):
        torch.save({**state, name: odd}, path)
        with pytest.raises(UserError) as caught:
            import_model(path, tmp_path / "out", Flags(**FLAGS))
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)

"""improved-diffusion's and guided-diffusion's checkpoints, held against the architecture as the papers tell it."""

import pickle

import pytest
import torch
from networks import answer, ours
from openai_networks import published, reference

from ddpm.conditioning.guidance import ClassifierFree, guidable
from ddpm.errors import UserError
from ddpm.interop.openai import convert
from ddpm.interop.published import Flags
from ddpm.interop.saved import read_saved, tensors_alone

FLAGS = {"image_size": 8, "noise_schedule": "cosine", "diffusion_steps": 1000}
CASES = {
    "improved": ({}, {"heads": 4}, {"num_heads": 4}),
    "improved, added time, fixed variance": (
        {"scale_shift": False, "learned": False, "blocks": 2, "attended": (0, 1)},
        {"heads": 2},
        {"num_heads": 2},
    ),
    "improved, 4000 steps": (
        {},
        {"heads": 4, "time_scale": 0.25},
        {"num_heads": 4, "diffusion_steps": 4000, "rescale_timesteps": True},
    ),
    "improved, classes": ({"classes": 7, "scale_shift": False}, {"heads": 4}, {"num_heads": 4}),
    "three levels": ({"multipliers": (1, 2, 2), "attended": (0, 2), "blocks": 2}, {"heads": 1}, {"num_heads": 1}),
    "one level": ({"multipliers": (1,), "attended": ()}, {"heads": 1}, {"num_heads": 1}),
    "pooling": ({"resample": "plain", "blocks": 2}, {"heads": 2}, {"num_heads": 2}),
    "guided": (
        {"resample": "residual", "classes": 5, "blocks": 2, "attended": (0, 1)},
        {"head_channels": 16},
        {"num_head_channels": 16},
    ),
    "guided, new attention order": (
        {"resample": "residual", "multipliers": (1, 1, 2), "attended": (1,)},
        {"head_channels": 8, "new_order": True},
        {"num_head_channels": 8, "use_new_attention_order": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_imported_network_computes_what_the_published_one_does(case):
    shape, how, flags = CASES[case]
    state = published(**shape)
    found = convert(state, Flags(**{**FLAGS, **flags}))
    network = ours(found)
    assert sum(p.numel() for p in network.parameters()) == sum(tensor.numel() for tensor in state.values())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 977])
    y = torch.tensor([4, 0]) if shape.get("classes") else None
    with torch.no_grad():
        theirs, out = reference(state, x, t, y, **how), answer(network, x, t, y)
    assert out.shape == theirs.shape
    assert (out - theirs).norm() <= 1e-5 * theirs.norm()
    assert found.process.variance == ("learned_range" if shape.get("learned", True) else "fixed_large")


@pytest.mark.parametrize("wrong", [{"heads": 2}, {"heads": 4, "new_order": True}, {"heads": 4, "time_scale": 0.5}])
def test_the_reference_tells_what_the_shapes_do_not(wrong):
    """The comparison above could not miss a wrong head count, attention order or time scale."""
    state = published()
    network = ours(convert(state, Flags(**FLAGS, num_heads=4)))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 977])
    with torch.no_grad():
        theirs = reference(state, x, t, **wrong)
        assert (network(x, t) - theirs).norm() > 1e-3 * theirs.norm()


def test_half_precision_becomes_single():
    state = {name: tensor.half() for name, tensor in published().items()}
    assert {tensor.dtype for tensor in convert(state, Flags(**FLAGS, num_heads=4)).weights.values()} == {torch.float32}


def test_what_was_not_said_is_asked_for_at_once():
    with pytest.raises(UserError) as caught:
        convert(published(), Flags())
    for option in ("--image-size", "--num-heads or --num-head-channels", "--noise-schedule", "--diffusion-steps"):
        assert option in str(caught.value)
    with pytest.raises(UserError, match="--rescale-timesteps"):
        convert(published(), Flags(image_size=8, num_heads=4, noise_schedule="cosine", diffusion_steps=4000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("middle_block.1.qkv.weight"), "missing middle_block.1.qkv.weight; unexpected nothing"),
        (
            lambda s: s.update({"middle_block.3.weight": torch.ones(1)}),
            "missing nothing; unexpected middle_block.3.weight",
        ),
        (lambda s: s.pop("time_embed.0.weight"), "missing time_embed.0.weight"),
        (lambda s: s.update({"conv_in.weight": torch.ones(1)}), "unexpected conv_in.weight"),
        (lambda s: s.update({"out.0.weight": torch.ones(7)}), r"out_norm.weight is \[7\], not \[32\]"),
        (lambda s: s.update({"out.2.bias": torch.ones(10)}), "3 channels in and 10 out"),
    ],
)
def test_another_network_is_named(change, words):
    state = published()
    change(state)
    with pytest.raises(UserError, match=words):
        convert(state, Flags(**FLAGS, num_heads=4))


@pytest.mark.parametrize(
    ("labels", "flags", "words"),
    [
        (torch.zeros(5, 64), {}, r"label_emb.weight is \[5, 64\]; expected \[K, 128\], a row a class"),
        (torch.zeros(0, 128), {}, r"label_emb.weight is \[0, 128\]; expected"),
        (torch.zeros(128), {}, r"label_emb.weight is \[128\]; expected"),
        (torch.zeros(1, 128), {"null_class": True}, r"is \[1, 128\]; .*a row a class and, last, one of the null class"),
        (torch.zeros(5, 128, dtype=torch.int64), {}, "embedding.weight is torch.int64; expected floating-point"),
        (None, {"null_class": True}, "--null-class: the network has no classes; leave it out"),
    ],
)
def test_an_embedding_of_classes_that_does_not_fit_is_named(labels, flags, words):
    state = published() | ({} if labels is None else {"label_emb.weight": labels})
    with pytest.raises(UserError, match=words):
        convert(state, Flags(**FLAGS, num_heads=4, **flags))


def test_the_last_row_is_the_null_class_where_that_is_said():
    state = published(classes=5)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 977])
    network = ours(convert(state, Flags(**FLAGS, num_heads=4, null_class=True)))
    assert guidable(network)
    (column,) = network.columns
    assert (column.classes, column.null) == (("0", "1", "2", "3"), 4)
    with torch.no_grad():
        told = reference(state, x, t, torch.tensor([1, 1]), heads=4)
        untold = reference(state, x, t, torch.tensor([4, 4]), heads=4)
        guided = ClassifierFree(network, {"label": torch.tensor([1, 1])}).guided(x, t, 2.0)
    expected = torch.cat([told[:, :3] + 2 * (told - untold)[:, :3], told[:, 3:]], dim=1)
    assert (guided - expected).norm() <= 1e-5 * expected.norm()
    assert not guidable(ours(convert(state, Flags(**FLAGS, num_heads=4))))


def test_flags_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="heads is 5, which does not divide the 64 channels"):
        convert(published(), Flags(**FLAGS, num_heads=5))
    with pytest.raises(UserError, match="7 is not a multiple of 2"):
        convert(published(), Flags(**{**FLAGS, "image_size": 7}, num_heads=4))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_cannot_be_trusted_or_read(tmp_path, capsys):
    path = tmp_path / "model.pt"
    with pytest.raises(UserError, match="no such file"):
        read_saved(path)
    torch.save(published(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_saved(path)
    torch.save({"a": Evil()}, path)
    with pytest.raises(UserError, match="holds the Python object print, not tensors"):
        read_saved(path)
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="holds the Python object print, not tensors"):
        read_saved(path)
    assert "executed" not in capsys.readouterr().out
    torch.save({"step": 3}, path)
    with pytest.raises(UserError, match=r"expected tensors by name.*'step' is none"):
        tensors_alone(read_saved(path), str(path))


def test_other_heads_on_the_way_up_are_refused_for_they_leave_no_trace():
    state = published()
    for same in (None, -1, 4):
        convert(state, Flags(**FLAGS, num_heads=4, num_heads_upsample=same))
    with pytest.raises(UserError, match=r"--num-heads-upsample is 8 and --num-heads 4, but .*cannot be imported"):
        convert(state, Flags(**FLAGS, num_heads=4, num_heads_upsample=8))
    with pytest.raises(UserError, match="OpenAI's network: --seq-length does not apply to it"):
        convert(state, Flags(**FLAGS, num_heads=4, seq_length=8))


def test_wrapped_and_in_half_precision_as_distributed_training_saves_it(tmp_path):
    state, path = published(), tmp_path / "model.pt"
    torch.save({f"module._orig_mod.{name}": tensor.half() for name, tensor in state.items()}, path)
    found = convert(tensors_alone(read_saved(path), str(path)), Flags(**FLAGS, num_heads=4))
    halved = {name: tensor.half().float() for name, tensor in state.items()}
    expected = convert(halved, Flags(**FLAGS, num_heads=4))
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())

"""improved-diffusion's and guided-diffusion's checkpoints, held against the architecture as the papers tell it.

`reference` computes it from nothing but a state dict of their naming, by plain functions; it shares no code with ours.
"""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import answer, ours

from ddpm.conditioning.guidance import ClassifierFree, guidable
from ddpm.errors import UserError
from ddpm.interop.openai import convert
from ddpm.interop.published import Flags, read_saved, tensors_alone


class State(dict):
    """A random state dict in the making."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name, *shape):
        fan = math.prod(shape[1:])
        self[f"{name}.weight"] = torch.randn(shape, generator=self.generator) / math.sqrt(fan)
        self[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)

    def norm(self, name, c):
        self[f"{name}.weight"] = 1 + 0.1 * torch.randn(c, generator=self.generator)
        self[f"{name}.bias"] = 0.1 * torch.randn(c, generator=self.generator)

    def residual(self, name, a, b, embedding, scale_shift):
        self.norm(f"{name}.in_layers.0", a)
        self.layer(f"{name}.in_layers.2", b, a, 3, 3)
        self.layer(f"{name}.emb_layers.1", 2 * b if scale_shift else b, embedding)
        self.norm(f"{name}.out_layers.0", b)
        self.layer(f"{name}.out_layers.3", b, b, 3, 3)
        if a != b:
            self.layer(f"{name}.skip_connection", b, a, 1, 1)

    def attention(self, name, c):
        self.norm(f"{name}.norm", c)
        self.layer(f"{name}.qkv", 3 * c, c, 1)
        self.layer(f"{name}.proj_out", c, c, 1)


def published(
    *, width=32, multipliers=(1, 2), blocks=1, attended=(1,), scale_shift=True, resample="conv", classes=0, learned=True
):
    """A state dict with every name and shape of theirs."""
    state, embedding = State(), 4 * width
    state.layer("time_embed.0", embedding, width)
    state.layer("time_embed.2", embedding, embedding)
    if classes:
        state["label_emb.weight"] = torch.randn(classes, embedding, generator=state.generator)
    state.layer("input_blocks.0.0", width, 3, 3, 3)
    skips, c, n = [width], width, 0
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            n += 1
            state.residual(f"input_blocks.{n}.0", c, width * multiplier, embedding, scale_shift)
            c = width * multiplier
            if level in attended:
                state.attention(f"input_blocks.{n}.1", c)
            skips.append(c)
        if level < len(multipliers) - 1:
            n += 1
            if resample == "residual":
                state.residual(f"input_blocks.{n}.0", c, c, embedding, scale_shift)
            elif resample == "conv":
                state.layer(f"input_blocks.{n}.0.op", c, c, 3, 3)
            skips.append(c)
    state.residual("middle_block.0", c, c, embedding, scale_shift)
    state.attention("middle_block.1", c)
    state.residual("middle_block.2", c, c, embedding, scale_shift)
    n = -1
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for block in range(blocks + 1):
            n += 1
            state.residual(f"output_blocks.{n}.0", c + skips.pop(), width * multiplier, embedding, scale_shift)
            c = width * multiplier
            if level in attended:
                state.attention(f"output_blocks.{n}.1", c)
            if level and block == blocks:
                place = 2 if level in attended else 1
                if resample == "residual":
                    state.residual(f"output_blocks.{n}.{place}", c, c, embedding, scale_shift)
                elif resample == "conv":
                    state.layer(f"output_blocks.{n}.{place}.conv", c, c, 3, 3)
    state.norm("out.0", c)
    state.layer("out.2", 6 if learned else 3, c, 3, 3)
    return dict(state)


def reference(state, x, t, y=None, *, heads=None, head_channels=None, new_order=False, time_scale=1.0):
    """(x [N, 3, H, W], t [N]) → what the published network says."""
    numbers = {block: 1 + max(int(k.split(".")[1]) for k in state if k.startswith(block)) for block in BLOCKS}

    def conv(name, h, **options):
        weight = state[f"{name}.weight"]
        return (F.conv1d if weight.ndim == 3 else F.conv2d)(h, weight, state[f"{name}.bias"], **options)

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def residual(name, h, change=None):
        a = F.silu(norm(f"{name}.in_layers.0", h))
        if change:
            a, h = change(a), change(h)
        a = conv(f"{name}.in_layers.2", a, padding=1)
        e = F.linear(F.silu(emb), state[f"{name}.emb_layers.1.weight"], state[f"{name}.emb_layers.1.bias"])[
            ..., None, None
        ]
        if e.shape[1] == 2 * a.shape[1]:
            scale, shift = e.chunk(2, dim=1)
            a = norm(f"{name}.out_layers.0", a) * (1 + scale) + shift
        else:
            a = norm(f"{name}.out_layers.0", a + e)
        a = conv(f"{name}.out_layers.3", F.silu(a), padding=1)
        return a + (conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in state else h)

    def attention(name, h):
        n, c, *_ = h.shape
        many = c // head_channels if head_channels else heads
        qkv = conv(f"{name}.qkv", norm(f"{name}.norm", h.flatten(2)))
        if new_order:
            q, k, v = (part.reshape(n, many, c // many, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(n, many, 3 * c // many, -1).chunk(3, dim=2)
        weights = torch.softmax(torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(c // many), dim=-1)
        mixed = torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(n, c, -1)
        return h + conv(f"{name}.proj_out", mixed).reshape(h.shape)

    width = state["time_embed.0.weight"].shape[1]
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = (t.float() * time_scale)[:, None] * frequencies
    emb = F.linear(torch.cat([angles.cos(), angles.sin()], 1), state["time_embed.0.weight"], state["time_embed.0.bias"])
    emb = F.linear(F.silu(emb), state["time_embed.2.weight"], state["time_embed.2.bias"])
    if y is not None:
        emb = emb + state["label_emb.weight"][y]

    def pool(h):
        return F.avg_pool2d(h, 2)

    def grow(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = conv("input_blocks.0.0", x, padding=1)
    skips = [h]
    for n in range(1, numbers["input_blocks"]):
        name = f"input_blocks.{n}"
        if f"{name}.0.op.weight" in state:
            h = conv(f"{name}.0.op", h, stride=2, padding=1)
        elif f"{name}.0.in_layers.0.weight" not in state:
            h = pool(h)
        else:
            down = f"{name}.0" in residual_downs(state)
            h = residual(f"{name}.0", h, pool if down else None)
            if f"{name}.1.qkv.weight" in state:
                h = attention(f"{name}.1", h)
        skips.append(h)
    h = residual("middle_block.0", h)
    h = attention("middle_block.1", h)
    h = residual("middle_block.2", h)
    for n in range(numbers["output_blocks"]):
        name = f"output_blocks.{n}"
        h = residual(f"{name}.0", torch.cat([h, skips.pop()], 1))
        for place in (1, 2):
            if f"{name}.{place}.qkv.weight" in state:
                h = attention(f"{name}.{place}", h)
            elif f"{name}.{place}.conv.weight" in state:
                h = conv(f"{name}.{place}.conv", grow(h), padding=1)
            elif f"{name}.{place}.in_layers.0.weight" in state:
                h = residual(f"{name}.{place}", h, grow)
        if skips and skips[-1].shape[-1] != h.shape[-1]:
            h = grow(h)  # the upsampling without weights
    return conv("out.2", F.silu(norm("out.0", h)), padding=1)


BLOCKS = ("input_blocks", "output_blocks")


def residual_downs(state):
    """Every (blocks + 1)-th input block, where the ways up are residual blocks too."""
    ups = sorted(
        int(k.split(".")[1])
        for k in state
        if k.startswith("output_blocks.") and k.split(".")[2] in "12" and k.endswith("in_layers.0.weight")
    )
    return {f"input_blocks.{(ups[0] + 1) * (level + 1)}.0" for level in range(len(ups))} if ups else set()


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

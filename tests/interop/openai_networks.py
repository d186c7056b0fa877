"""The state dicts of OpenAI's networks by name and shape, and what those networks compute, as the papers tell it.

`reference` computes it from nothing but a state dict, by plain functions; it shares no code with ours.
"""

import math

import torch
import torch.nn.functional as F


class State(dict):
    """A random state dict in the making; on the device `meta` of shapes alone."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.device = device
        self.generator = None if device == "meta" else torch.Generator().manual_seed(0)

    def random(self, *shape):
        return torch.randn(shape, generator=self.generator, device=self.device)

    def layer(self, name, *shape):
        fan = math.prod(shape[1:])
        self[f"{name}.weight"] = self.random(*shape) / math.sqrt(fan)
        self[f"{name}.bias"] = 0.1 * self.random(shape[0])

    def norm(self, name, c):
        self[f"{name}.weight"] = 1 + 0.1 * self.random(c)
        self[f"{name}.bias"] = 0.1 * self.random(c)

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


def way_down(state, widths, blocks, attended, scale_shift, resample, *, width, stem):
    """The time embedding, the way down and the bottom; the channels of the skips, from the first to the last."""
    embedding = 4 * width
    state.layer("time_embed.0", embedding, width)
    state.layer("time_embed.2", embedding, embedding)
    state.layer("input_blocks.0.0", stem, 3, 3, 3)
    skips, c, n = [stem], stem, 0
    for level, c_level in enumerate(widths):
        for _ in range(blocks):
            n += 1
            state.residual(f"input_blocks.{n}.0", c, c_level, embedding, scale_shift)
            c = c_level
            if level in attended:
                state.attention(f"input_blocks.{n}.1", c)
            skips.append(c)
        if level < len(widths) - 1:
            n += 1
            if resample == "residual":
                state.residual(f"input_blocks.{n}.0", c, c, embedding, scale_shift)
            elif resample == "conv":
                state.layer(f"input_blocks.{n}.0.op", c, c, 3, 3)
            skips.append(c)
    state.residual("middle_block.0", c, c, embedding, scale_shift)
    state.attention("middle_block.1", c)
    state.residual("middle_block.2", c, c, embedding, scale_shift)
    return skips


def published(
    *, width=32, multipliers=(1, 2), blocks=1, attended=(1,), scale_shift=True, resample="conv", classes=0, learned=True
):
    """A state dict with every name and shape of their U-Net."""
    state, embedding = State(), 4 * width
    widths = [width * multiplier for multiplier in multipliers]
    skips = way_down(state, widths, blocks, attended, scale_shift, resample, width=width, stem=width)
    if classes:
        state["label_emb.weight"] = state.random(classes, embedding)
    n, c = -1, widths[-1]
    for level, c_level in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            n += 1
            state.residual(f"output_blocks.{n}.0", c + skips.pop(), c_level, embedding, scale_shift)
            c = c_level
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


def published_classifier(
    *,
    side=8,
    width=32,
    multipliers=(1, 2),
    blocks=1,
    attended=(1,),
    scale_shift=True,
    resample="residual",
    classes=5,
    device="cpu",
):
    """A state dict with every name and shape of their classifier, for images of `side` pixels."""
    state, widths = State(device), [int(width * multiplier) for multiplier in multipliers]
    way_down(state, widths, blocks, attended, scale_shift, resample, width=width, stem=widths[0])
    bottom = side // 2 ** (len(widths) - 1)
    state.norm("out.0", widths[-1])
    state["out.2.positional_embedding"] = state.random(widths[-1], bottom**2 + 1)
    state.layer("out.2.qkv_proj", 3 * widths[-1], widths[-1], 1)
    state.layer("out.2.c_proj", classes, widths[-1], 1)
    return dict(state)


def reference(state, x, t, y=None, *, heads=None, head_channels=None, new_order=False, time_scale=1.0, downs=None):
    """(x [N, 3, H, W], t [N]) → what the published network says.

    `downs` are the residual blocks that halve the side; where None, they are those that the way up tells.
    """
    downs = residual_downs(state) if downs is None else {f"input_blocks.{number}.0" for number in downs}
    numbers = {
        block: 1 + max([int(k.split(".")[1]) for k in state if k.startswith(block)], default=0) for block in BLOCKS
    }

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

    def mixed(qkv, new_order):
        n, c = qkv.shape[0], qkv.shape[1] // 3
        many = c // head_channels if head_channels else heads
        if new_order:
            q, k, v = (part.reshape(n, many, c // many, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(n, many, 3 * c // many, -1).chunk(3, dim=2)
        weights = torch.softmax(torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(c // many), dim=-1)
        return torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(n, c, -1)

    def attention(name, h):
        qkv = conv(f"{name}.qkv", norm(f"{name}.norm", h.flatten(2)))
        return h + conv(f"{name}.proj_out", mixed(qkv, new_order)).reshape(h.shape)

    def pooled(h):
        h = h.flatten(2)
        h = torch.cat([h.mean(2, keepdim=True), h], 2) + state["out.2.positional_embedding"]
        return conv("out.2.c_proj", mixed(conv("out.2.qkv_proj", h), True))[:, :, 0]

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
            h = residual(f"{name}.0", h, pool if f"{name}.0" in downs else None)
            if f"{name}.1.qkv.weight" in state:
                h = attention(f"{name}.1", h)
        skips.append(h)
    h = residual("middle_block.0", h)
    h = attention("middle_block.1", h)
    h = residual("middle_block.2", h)
    if "out.2.positional_embedding" in state:
        return pooled(F.silu(norm("out.0", h)))
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

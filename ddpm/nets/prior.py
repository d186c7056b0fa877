"""The prior of DALL-E 2: a causal transformer that denoises image embeddings (Ramesh et al. 2022, §2.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import zero_initialised
from ddpm.nets.condition import NOTHING, Condition, Network, Shapes
from ddpm.nets.embeddings import timestep_embedding
from ddpm.nets.text import TransformerBlock, initialise_blocks

BESIDES = 4  # positions after those of the text: its embedding, the time, the noised embedding, the query


class Prior(Network):
    """A denoiser of embeddings [N, C]: the sequence is the tokens of a text, the port `vector`, which is made of the
    text's embedding, the time, x and a learned query. The output is read at the query.

    Each position attends to itself and those before it, and to no token that the mask leaves out.
    """

    axes = (0,)
    takes = frozenset({"vector", "tokens"})

    def __init__(
        self,
        shapes: Shapes,
        *,
        width: int = 2048,
        layers: int = 20,
        heads: int = 32,
        norm_in: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            width: of every position, even.
            layers: transformer blocks.
            heads: of each attention; must divide `width`.
            norm_in: a LayerNorm before the first block.

        Raises:
            ValueError: a number does not fit; the message names the key.
        """
        super().__init__()
        if width % 2 or width % heads:
            raise ValueError(f"width must be even and a multiple of heads, found {width} and {heads}")
        self.width = self.vector_width = width
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(shapes.channels, width)
        self.tokens = nn.Linear(shapes.ports.tokens, width) if shapes.ports.tokens else None
        self.query = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(shapes.ports.length + BESIDES, width))
        self.norm_in = nn.LayerNorm(width) if norm_in else nn.Identity()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = zero_initialised(nn.Linear(width, shapes.out_channels or shapes.channels))
        for learned in (self.query, self.positions):
            nn.init.normal_(learned, std=0.02)
        initialise_blocks(self.blocks, width)

    def forward(self, x: Tensor, t: Tensor, c: Condition = NOTHING) -> Tensor:
        """x [N, C] noised embeddings, t [N] timesteps → [N, out_channels]."""
        time = self.time_mlp(timestep_embedding(t, self.width, frequency_shift=0))
        vector = torch.zeros_like(time) if c.vector is None else c.vector
        h = torch.stack([vector, time, self.stem(x), self.query.expand_as(time)], dim=1)
        if self.tokens is not None and c.tokens is not None:
            h = torch.cat([self.tokens(c.tokens), h], dim=1)
        if h.shape[1] != len(self.positions):
            found, expected = h.shape[1] - BESIDES, len(self.positions) - BESIDES
            raise ValueError(f"the prior was built for {expected} tokens, found {found}")
        h = self.norm_in(h + self.positions)
        attended = _attended(h.shape[1], c.mask, h.device)
        for block in self.blocks:
            h = block(h, attended)
        return self.out(self.norm(h[:, -1]))


def _attended(length: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """To which positions each attends, [length, length] bool, or [N, 1, length, length] with a mask.

    A masked position attends to itself, so that there is something; no other position does.

    Args:
        mask: [N, L] bool, which of the tokens are there.
    """
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if mask is None:
        return causal
    there = F.pad(mask, (0, length - mask.shape[1]), value=True)
    itself = torch.eye(length, dtype=torch.bool, device=device)
    return (causal & there[:, None, None, :]) | itself

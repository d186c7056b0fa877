"""The text encoder of GLIDE (Nichol et al. 2022, §4.1): a transformer over all tokens of a caption."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ddpm.nets.blocks import attend


class TransformerBlock(nn.Module):
    """LayerNorm and self-attention, LayerNorm and two layers with GELU, each plus its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, width] → [N, L, width]. Each position attends to all, also to those after it."""
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(attend(q, k, v).transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    """(ids [N, L], which of them are words [N, L]) → [N, L, width], normed.

    Where a caption has ended, a position has a learned embedding of its own in place of a token's. So all positions say
    something, and no attention masks any.
    """

    def __init__(self, vocabulary: int, length: int, *, width: int = 512, layers: int = 16, heads: int = 8) -> None:
        """
        Args:
            vocabulary: how many ids there are.
            length: L, the tokens of a caption with its padding.
            heads: of each attention; must divide `width`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"heads is {heads}, which does not divide the width {width}")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.padding = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def forward(self, ids: Tensor, there: Tensor) -> Tensor:
        """
        Args:
            ids: [N, L] int64.
            there: [N, L] bool; False: the position is padding, whatever its id.
        """
        x = torch.where(there[..., None], self.tokens(ids) + self.positions, self.padding)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As of CLIP's text encoder (Radford et al. 2021, their code), which GLIDE's was made from."""
        width, layers = self.tokens.embedding_dim, len(self.blocks)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.padding, std=0.01)
        into_residual = (2 * layers * width) ** -0.5
        for block in cast("Iterable[TransformerBlock]", self.blocks):
            first, _, second = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.mlp))
            stds = {block.qkv: width**-0.5, block.out: into_residual, first: (2 * width) ** -0.5, second: into_residual}
            for layer, std in stds.items():
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

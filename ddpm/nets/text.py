"""Text encoders: transformers over the tokens of a caption, GLIDE's (Nichol et al. 2022, §4.1) and CLIP's (Radford et
al. 2021, §2.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.nets.blocks import attend


class QuickGELU(nn.Module):
    """x σ(1.702 x), the approximation of GELU in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class TransformerBlock(nn.Module):
    """LayerNorm and self-attention, LayerNorm and two layers with an activation in between, each plus its input."""

    def __init__(self, width: int, heads: int, activation: str = "gelu", *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), ACTIVATIONS[activation](), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, L, width] → [N, L, width].

        Args:
            mask: [L, L] bool, to which positions (axis 1) each (axis 0) attends, or [N, 1, L, L], of each datum; None:
                to all, also to those after it.
        """
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.dropout(self.out(attend(q, k, v, mask).transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.mlp(self.norm2(x)))


@torch.no_grad()
def initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    """As the blocks of CLIP's text encoder (Radford et al. 2021, their code), which GLIDE's was made from."""
    into_residual = (2 * len(blocks) * width) ** -0.5
    for block in cast("Iterable[TransformerBlock]", blocks):
        first, _, second = cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(block.mlp))
        stds = {block.qkv: width**-0.5, block.out: into_residual, first: (2 * width) ** -0.5, second: into_residual}
        for layer, std in stds.items():
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


class TextEncoder(nn.Module):
    """(ids [N, L], which of them are of the text [N, L]) → [N, L', width], the positions' embeddings, normed.

    Captions are padded at the end.
    """

    def __init__(
        self, vocabulary: int, positions: int, *, width: int = 512, layers: int = 16, heads: int = 8, activation: str
    ) -> None:
        """
        Args:
            vocabulary: how many ids there are.
            positions: L'.
            heads: of each attention; must divide `width`.
            activation: between the two layers of a block, of `ACTIVATIONS`.

        Raises:
            ValueError: the numbers do not fit together; the message names the key.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"heads is {heads}, which does not divide the width {width}")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def last(self, there: Tensor) -> Tensor:
        """The position that speaks for the whole text, [N] in 0..L'−1.

        Args:
            there: [N, L] bool, which positions are of the text.
        """
        raise NotImplementedError

    def mask(self, there: Tensor) -> Tensor:
        """Which positions are of the text, [N, L'] bool."""
        return there

    @torch.no_grad()
    def _initialise(self) -> None:
        """As CLIP's text encoder."""
        nn.init.normal_(self.tokens.weight, std=0.02)
        for of_positions in self.parameters(recurse=False):
            nn.init.normal_(of_positions, std=0.01)
        initialise_blocks(self.blocks, self.tokens.embedding_dim)


class TextTransformer(TextEncoder):
    """GLIDE's: L' is L, and each position attends to all.

    Where a caption has ended, a position has a learned embedding of its own in place of a token's. So all positions say
    something, and no attention masks any.
    """

    def __init__(self, vocabulary: int, length: int, *, activation: str = "gelu", **sizes: int) -> None:
        """
        Args:
            length: L, the tokens of a caption with its padding.
            sizes: `width`, `layers` and `heads`, as of `TextEncoder`.
        """
        super().__init__(vocabulary, length, activation=activation, **sizes)
        self.padding = nn.Parameter(torch.empty_like(self.positions))
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

    def last(self, there: Tensor) -> Tensor:
        """The last position of all, which GLIDE projects."""
        return there.new_full((there.shape[0],), there.shape[1] - 1, dtype=torch.int64)


class Marks(NamedTuple):
    """The ids that CLIP puts around a text, and in the positions that are left."""

    start: int
    end: int
    filler: int


class CLIPText(TextEncoder):
    """CLIP's (Radford et al. 2021, §2.4), as in transformers' `CLIPTextModel`: a caption is marked at its start and its
    end, so L' is L + 2, and each position attends to itself and those before it."""

    def __init__(
        self, vocabulary: int, length: int, *, marks: Marks, activation: str = "quick_gelu", **sizes: int
    ) -> None:
        """
        Args:
            length: L, the most tokens between the marks.
            sizes: `width`, `layers` and `heads`, as of `TextEncoder`.
        """
        super().__init__(vocabulary, length + 2, activation=activation, **sizes)
        self.marks = marks
        self._initialise()

    def forward(self, ids: Tensor, there: Tensor) -> Tensor:
        """As of `TextTransformer`, but [N, L + 2, width]."""
        marked = self.marked(ids, there)
        length = marked.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        x = self.tokens(marked) + self.positions
        for block in self.blocks:
            x = block(x, causal)
        return self.norm(x)

    def last(self, there: Tensor) -> Tensor:
        """The mark at the end, which has seen the whole text."""
        return there.sum(dim=1) + 1

    def mask(self, there: Tensor) -> Tensor:
        """The text and its marks."""
        return F.pad(there, (2, 0), value=True)

    def marked(self, ids: Tensor, there: Tensor) -> Tensor:
        """The ids with the marks, [N, L + 2]."""
        start, end, filler = self.marks
        padded = F.pad(ids.where(there, filler), (1, 1), value=filler)
        place = torch.arange(padded.shape[1], device=ids.device)
        last = there.sum(dim=1, keepdim=True) + 1
        return padded.masked_fill(place == last, end).masked_fill(place == 0, start)

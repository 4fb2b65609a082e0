"""U-ViT (arXiv 2209.12152): a transformer that takes noise away, with time and label as tokens and long skips.

Shapes, names in the state dict and the order of a patch's values are those of the authors' code (baofff/U-ViT), so that
their class-conditional checkpoints fit. K classes have K + 1 labels: the last one, the null label, is no class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from labelstore.errors import InputError
from pipeline.networks.backbones import Shape

EXTRAS = 2  # tokens before those of the patches: label and time
LONGEST_PERIOD = 10_000


class Attention(nn.Module):
    """Self-attention of ``heads`` heads; queries, keys and values in one layer without bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, L, dim]`` to the same."""
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        found: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim))
        return found


class Mlp(nn.Module):
    """Two linear layers around a GELU, four times as wide between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, L, dim]`` to the same."""
        found: Tensor = self.fc2(gelu(self.fc1(x)))
        return found


class Block(nn.Module):
    """A transformer block; in the second half it takes in the tokens of its twin in the first half."""

    def __init__(self, dim: int, heads: int, *, skip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """``[n, L, dim]`` to the same."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=2))
        x = x + self.attn(self.norm1(x))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, C, S, S]`` to ``[n, (S / patch)^2, dim]``."""
        found: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return found


class UViT(nn.Module):
    """Predicts what was added to noisy images or latents (or another target of that shape).

    Args:
        shape: its numbers.
        channels: C of the input and the output.
        size: side S of the input, a multiple of the patch.
        classes: K; label K is the null label.

    Raises:
        InputError: when the patch does not divide the side.
    """

    def __init__(self, shape: Shape, *, channels: int, size: int, classes: int) -> None:
        super().__init__()
        if size % shape.patch or not size:
            raise InputError(
                f"backbone: expected a side that patches of {shape.patch} divide, found {size}; give another --size or "
                f"--patch"
            )
        dim, half = shape.dim, shape.depth // 2
        self.dim, self.channels, self.patch, self.side, self.null = dim, channels, shape.patch, size, classes
        self.patch_embed = PatchEmbed(shape.patch, channels, dim)
        self.label_emb = nn.Embedding(classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, EXTRAS + (size // shape.patch) ** 2, dim))
        self.in_blocks = nn.ModuleList(Block(dim, shape.heads, skip=False) for _ in range(half))
        self.mid_block = Block(dim, shape.heads, skip=False)
        self.out_blocks = nn.ModuleList(Block(dim, shape.heads, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, shape.patch**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1) if shape.conv else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """The prediction.

        Args:
            x: noisy images or latents, ``[n, C, S, S]``.
            times: of the noise, 0 to 1,000, ``[n]``.
            labels: classes, or K for none, int64 ``[n]``.

        Returns:
            ``[n, C, S, S]``.
        """
        tokens = self.patch_embed(x)
        time = embedded(times, self.dim).to(tokens.dtype)[:, None]
        x = torch.cat([self.label_emb(labels)[:, None].to(tokens.dtype), time, tokens], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        found: Tensor = self.final_layer(self._images(self.decoder_pred(self.norm(x))[:, EXTRAS:]))
        return found

    def _images(self, x: Tensor) -> Tensor:
        """Tokens ``[n, L, patch * patch * C]``, values row by row with the channel last, as images."""
        side, patch = self.side // self.patch, self.patch
        x = x.reshape(-1, side, side, patch, patch, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, self.side, self.side)


def embedded(times: Tensor, dim: int) -> Tensor:
    """Cosines and sines of times at ``dim / 2`` frequencies, float32 ``[n, dim]``."""
    steps = torch.arange(dim // 2, dtype=torch.float32, device=times.device) / (dim // 2)
    angles = times.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)

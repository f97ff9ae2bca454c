"""Small discriminators in the manner of others: what a quantizer meets outside this package."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class ScaleDiscriminator(nn.Module):
    """Conv1d over a waveform, logits and all feature maps: one of HiFi-GAN's scales (arXiv 2010.05646)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [weight_norm(nn.Conv1d(1, 6, 5, 1, 2)), weight_norm(nn.Conv1d(6, 8, 5, 2, 2))]
        )
        self.conv_post = weight_norm(nn.Conv1d(8, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        x = self.conv_post(x)
        maps.append(x)
        return x.flatten(1), maps


class MultiScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList([ScaleDiscriminator(), ScaleDiscriminator()])

    def forward(self, x: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [self.discriminators[0](x), self.discriminators[1](F.avg_pool1d(x, 2))]


class ChannelsLastStage(nn.Module):
    """NHWC maps between stages, as Swin's (arXiv 2103.14030)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.stage = ChannelsLastStage(8)
        self.merge = nn.Linear(32, 12)
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.embed(x).permute(0, 2, 3, 1))
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = self.merge(torch.cat(parts, -1))
        return self.head(x.mean((1, 2)))


class PatchDiscriminator(nn.Sequential):
    """Logits for patches: pix2pix's (arXiv 1611.07004)."""

    def __init__(self, *end: nn.Module) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(6, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, True),
            nn.Conv2d(8, 1, 4, 1, 1), *end,
        )  # fmt: skip


class RunsItsChildren(nn.Module):
    """A block that runs whatever children it has."""

    def __init__(self, *children: nn.Module, residual: bool = False) -> None:
        super().__init__()
        for i, child in enumerate(children):
            self.add_module(f"layer{i}", child)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for child in self.children():
            y = child(y)
        return x + y if self.residual else y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(states)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, dim // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        x = x + self.proj(y)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token and positions (arXiv 2010.11929); as many tokens as channels."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 17, dim))
        self.blocks = nn.ModuleList([TransformerBlock(dim), TransformerBlock(dim)])
        self.head = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class PairOfNetworks(nn.Module):
    """A GAN or autoencoder in one module, of which the training loop calls the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.G = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.D = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))

    def encode(self, x: Tensor) -> Tensor:
        return self.D(x)

    def forward(self, x: Tensor, how: str = "once") -> Tensor:
        if how == "both halves":
            real, fake = x.chunk(2)
            return torch.cat([self.D(real), self.D(fake)])
        logits = self.D(x)
        if how == "stops":
            raise Enough
        return logits


class Enough(Exception):
    """Raised in the middle of a forward whose rest nobody needs, as some feature extractors do."""

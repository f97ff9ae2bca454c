"""What the latent cases work on: GPT-2 small with half its layers and width, a quarter of its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.contender import Problem
from fq_toolkit import inject_latent

#: Names of the cases.
GENERATE, TRAIN = "latent_generate", "latent_train"
BOS = 1
LATENT_SIZE = 32


@dataclass(frozen=True)
class TextShape:
    """``batch`` texts of ``length`` tokens, and the size of the decoder; heads have 64 channels.

    The names of the fields that results files have are those of the quantizer's shapes: ``rows`` are tokens,
    ``dim`` is the width, and there are no codes.
    """

    name: str
    batch: int
    length: int
    layers: int = 6
    width: int = 384
    vocabulary: int = 12_565
    dropout: float = 0.0
    num_codes: int = 0
    layout: str = "text"

    @property
    def rows(self) -> int:
        """Tokens of all texts."""
        return self.batch * self.length

    @property
    def dim(self) -> int:
        """Width of the decoder."""
        return self.width

    @property
    def label(self) -> str:
        """Batch, length, dropout and a size other than the usual, for tables."""
        text = f"B {self.batch}, T {self.length}" + (f", dropout {self.dropout:g}" if self.dropout else "")
        usual = (TextShape.layers, TextShape.width)
        return text if (self.layers, self.width) == usual else f"{text}, {self.layers} x {self.width}"

    def with_few_rows(self) -> TextShape:
        """Return two tokens of the same kind of text, which run the same code with little memory."""
        return replace(self, batch=min(self.batch, 2), length=2, layers=1, width=64, vocabulary=64)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot in every layer for every text, in float32."""
        return 4 * self.batch * self.layers * self.width

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the projection to one slot per layer, in float32."""
        return 4 * LATENT_SIZE * self.layers * self.width


@dataclass(frozen=True)
class TextProblem(Problem[TextShape]):
    """A decoder's configuration, texts and latents: the same for every contender and every process."""

    seed: ClassVar[int] = 2004_04092

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T) int64 texts, uniform over the vocabulary without its two special tokens."""
        size = (self.shape.batch, self.shape.length)
        return torch.randint(2, self.shape.vocabulary, size, generator=self.generator(0)).to(self.device)

    @cached_property
    def latents(self) -> Tensor:
        """(B, 32) draws from the prior."""
        drawn = torch.randn(self.shape.batch, LATENT_SIZE, generator=self.generator(1))
        return drawn.to(self.device, self.dtype)

    @property
    def start(self) -> Tensor:
        """(B, 1) BOS tokens."""
        return torch.full((self.shape.batch, 1), BOS, device=self.device)

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return self._gpt2().state_dict()

    def decoder(self, mode: str | None = None, *, shared: bool = False) -> Any:
        """Return a GPT-2 from scratch in eval mode, always with the same weights.

        Args:
            mode: injects a latent.
            shared: reads the very tensors that the other shared ones of this problem read. Decoding waits for
                its weights, and where in memory they happen to lie moves it by percents, in one process this
                way and in another that way.
        """
        model = self._gpt2()
        if shared:
            model.load_state_dict(self._weights, assign=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return (inject_latent(model, mode, LATENT_SIZE) if mode else model).eval()

    def _gpt2(self) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel  # slow to import, and few cases need it

        shape = self.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: Any = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=shape.vocabulary,
                    n_layer=shape.layers,
                    n_embd=shape.width,
                    n_head=shape.width // 64,
                    attn_pdrop=shape.dropout,
                    embd_pdrop=shape.dropout,
                    resid_pdrop=shape.dropout,
                    bos_token_id=BOS,
                    eos_token_id=None,  # so that every text gets its full length
                    pad_token_id=0,
                )
            )
        return model.to(self.device, self.dtype)

    def prepare(self) -> None:
        """Make the inputs, so that they do not count as a call's memory."""
        self.tokens, self.latents  # noqa: B018 - made once, then kept

    def small(self) -> TextProblem:
        """Return the same problem with few and short texts on a tiny decoder."""
        return TextProblem(self.shape.with_few_rows(), self.device, self.dtype)


#: One text by a decoder of the size that was released: GPT-2 small with its three added tokens.
RELEASED_SHAPE = TextShape("B1 T128 GPT-2 small", 1, 128, layers=12, width=768, vocabulary=50_260)
#: Of generation: the targets are about these batch sizes.
GENERATION_SHAPES = (
    *(TextShape(f"B{batch} T{length}", batch, length) for length in (32, 128) for batch in (1, 8, 32)),
    RELEASED_SHAPE,
)
#: The shape of generation whose memory is measured.
MEMORY_SHAPE = next(shape for shape in GENERATION_SHAPES[::-1] if shape.batch == 8)
#: As the trainers here start from scratch, and as GPT-2 was trained: with dropout, attention has another
#: kernel.
TRAINING_SHAPES = (TextShape("B8 T64", 8, 64), TextShape("B8 T64 dropout", 8, 64, dropout=0.1))
#: For smoke tests: same code paths, milliseconds.
QUICK_TEXT = (
    TextShape("tiny text", 1, 6, layers=2, width=64, vocabulary=64),
    TextShape("tiny texts", 3, 6, layers=2, width=64, vocabulary=64),
)

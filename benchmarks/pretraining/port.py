"""A literal port of the released pretraining: its module names, its arithmetic, sample by sample.

Query, key and value are three products; attention is written out; both streams run through every layer; all
80 positions are kept and projected to the vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.prevalent import PrevalentConfig


class _Attend(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.heads, size = config.num_heads, config.hidden_size
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

        query, key, value = split(self.query(x)), split(self.key(context)), split(self.value(context))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
        mixed = self.dropout(scores.softmax(-1)) @ value
        return mixed.permute(0, 2, 1, 3).contiguous().view(x.shape)


class _Output(nn.Module):
    def __init__(self, config: PrevalentConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + x)


class _Attention(nn.Module):
    def __init__(self, config: PrevalentConfig, inside: str = "self") -> None:
        super().__init__()
        self.inside = inside
        self.add_module(inside, _Attend(config))
        self.output = _Output(config, config.hidden_size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return self.output(getattr(self, self.inside)(x, context, mask), x)


class _Intermediate(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dense(x)
        return hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))


class _TextLayer(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, x, mask)
        return self.output(self.intermediate(x), x)


class _CrossLayer(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.visual_attention = _Attention(config, inside="att")
        for stream in ("lang", "visn"):
            self.add_module(f"{stream}_self_att", _Attention(config))
            self.add_module(f"{stream}_inter", _Intermediate(config))
            self.add_module(f"{stream}_output", _Output(config, config.intermediate_size))

    def forward(
        self, text: Tensor, vision: Tensor, text_mask: Tensor, vision_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        crossed = (
            ("lang", self.visual_attention(text, vision, vision_mask), text_mask),
            ("visn", self.visual_attention(vision, text, text_mask), vision_mask),
        )
        found = []
        for stream, x, mask in crossed:
            x = getattr(self, f"{stream}_self_att")(x, x, mask)
            found.append(getattr(self, f"{stream}_output")(getattr(self, f"{stream}_inter")(x), x))
        return found[0], found[1]


class _Embeddings(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.word_embeddings(ids) + self.position_embeddings(places)
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings(torch.zeros_like(ids))))


class _Vision(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(config.vision_size, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, views: Tensor) -> Tensor:
        return self.dropout(self.visn_layer_norm(self.visn_fc(views)))


class _Pooler(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class _Encoder(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.lalayer = nn.ModuleList(_TextLayer(config) for _ in range(config.text_layers))
        self.addlayer = nn.ModuleList(_CrossLayer(config) for _ in range(config.cross_layers))
        self.vision_encoder = _Vision(config)
        self.pooler = _Pooler(config)

    def forward(self, ids: Tensor, mask: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        text, vision = self.embeddings(ids), self.vision_encoder(views)
        text_mask = (1.0 - mask.to(text.dtype))[:, None, None, :] * -10000.0
        vision_mask = views.new_zeros(len(views), 1, 1, views.shape[1])
        for layer in self.lalayer:
            text = layer(text, text_mask)
        for layer in self.addlayer:
            text, vision = layer(text, vision, text_mask, vision_mask)
        return text, torch.tanh(self.pooler.dense(text[:, 0]))


class _Transform(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class _Predictions(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.transform.dense(x)
        hidden = self.transform.LayerNorm(hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0))))
        return self.decoder(hidden) + self.bias


class _Words(nn.Module):
    def __init__(self, config: PrevalentConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)


class _Action(nn.Module):
    def __init__(self, config: PrevalentConfig, actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, actions)


class ReleasedPretraining(nn.Module):
    """Encoder and both heads under released names.

    Args:
        config: sizes.
        actions: classes.
    """

    def __init__(self, config: PrevalentConfig, actions: int) -> None:
        super().__init__()
        self.bert = _Encoder(config)
        self.next_action = _Action(config, actions)
        self.mlmhead = _Words(config)
        self.mlmhead.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor, views: Tensor, labels: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of both losses; all positions are projected."""
        text, pooled = self.bert(ids, mask, views)
        words = self.mlmhead.predictions(text)
        words_loss = functional.cross_entropy(words.flatten(0, 1), labels.flatten(), ignore_index=-1)
        return words_loss + functional.cross_entropy(self.next_action.linear(pooled), actions)

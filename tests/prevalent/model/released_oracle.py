"""The released architecture, written from its description with plain tensor algebra.

Everything is computed from a dictionary of released names. Nothing here knows the package: all positions are
projected, both directions of every cross-modal layer are computed, attention is a softmax written out, and
padding gets -10000 added to its scores.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def released_weights(
    *, hidden: int, text_layers: int, cross_layers: int, vocab: int, vision: int, actions: int
) -> Weights:
    """Draw weights of a released checkpoint, double precision."""
    inner, found = 4 * hidden, {}

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"] = torch.randn(rows, columns, dtype=torch.float64) / math.sqrt(columns)
        found[f"{name}.bias"] = torch.randn(rows, dtype=torch.float64) * 0.1

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + torch.randn(hidden, dtype=torch.float64) * 0.1
        found[f"{name}.bias"] = torch.randn(hidden, dtype=torch.float64) * 0.1

    def attention(inside: str, output: str) -> None:
        for part in ("query", "key", "value"):
            linear(f"{inside}.{part}", hidden, hidden)
        linear(f"{output}.dense", hidden, hidden)
        norm(f"{output}.LayerNorm")

    def feed_forward(expand: str, output: str) -> None:
        linear(f"{expand}.dense", inner, hidden)
        linear(f"{output}.dense", hidden, inner)
        norm(f"{output}.LayerNorm")

    for table, rows in (("word", vocab), ("position", 40), ("token_type", 2)):
        found[f"bert.embeddings.{table}_embeddings.weight"] = torch.randn(rows, hidden, dtype=torch.float64)
    norm("bert.embeddings.LayerNorm")
    for i in range(text_layers):
        layer = f"bert.lalayer.{i}"
        attention(f"{layer}.attention.self", f"{layer}.attention.output")
        feed_forward(f"{layer}.intermediate", f"{layer}.output")
    for i in range(cross_layers):
        layer = f"bert.addlayer.{i}"
        attention(f"{layer}.visual_attention.att", f"{layer}.visual_attention.output")
        for stream in ("lang", "visn"):
            attention(f"{layer}.{stream}_self_att.self", f"{layer}.{stream}_self_att.output")
            feed_forward(f"{layer}.{stream}_inter", f"{layer}.{stream}_output")
    linear("bert.vision_encoder.visn_fc", hidden, vision)
    norm("bert.vision_encoder.visn_layer_norm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("next_action.linear", actions, hidden)
    linear("mlmhead.predictions.transform.dense", hidden, hidden)
    norm("mlmhead.predictions.transform.LayerNorm")
    found["mlmhead.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
    found["mlmhead.predictions.bias"] = torch.randn(vocab, dtype=torch.float64)
    return found


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _attention(
    weights: Weights, inside: str, output: str, x: Tensor, context: Tensor, mask: Tensor | None, heads: int
) -> Tensor:
    batch, length, hidden = x.shape
    size = hidden // heads

    def split(part: str, source: Tensor) -> Tensor:
        projected = _linear(weights, f"{inside}.{part}", source)
        return projected.view(batch, -1, heads, size).permute(0, 2, 1, 3)

    scores = split("query", x) @ split("key", context).transpose(2, 3) / math.sqrt(size)
    if mask is not None:
        scores = scores - 10000.0 * (1 - mask.double())[:, None, None, :]
    mixed = scores.exp() / scores.exp().sum(-1, keepdim=True) @ split("value", context)
    joined = mixed.permute(0, 2, 1, 3).reshape(batch, length, hidden)
    return _norm(weights, f"{output}.LayerNorm", _linear(weights, f"{output}.dense", joined) + x)


def _feed_forward(weights: Weights, expand: str, output: str, x: Tensor) -> Tensor:
    inner = _gelu(_linear(weights, f"{expand}.dense", x))
    return _norm(weights, f"{output}.LayerNorm", _linear(weights, f"{output}.dense", inner) + x)


def released_forward(
    weights: Weights, ids: Tensor, mask: Tensor | None, views: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return language states, pooled, word logits at all positions, action logits."""
    text = weights["bert.embeddings.word_embeddings.weight"][ids]
    text = text + weights["bert.embeddings.position_embeddings.weight"][torch.arange(ids.shape[1])]
    text = text + weights["bert.embeddings.token_type_embeddings.weight"][torch.zeros_like(ids)]
    text = _norm(weights, "bert.embeddings.LayerNorm", text)
    for i in range(sum(name.endswith("intermediate.dense.bias") for name in weights)):
        layer = f"bert.lalayer.{i}"
        text = _attention(
            weights, f"{layer}.attention.self", f"{layer}.attention.output", text, text, mask, heads
        )
        text = _feed_forward(weights, f"{layer}.intermediate", f"{layer}.output", text)
    vision = _linear(weights, "bert.vision_encoder.visn_fc", views)
    vision = _norm(weights, "bert.vision_encoder.visn_layer_norm", vision)
    for i in range(sum(name.endswith("lang_inter.dense.bias") for name in weights)):
        layer = f"bert.addlayer.{i}"
        shared = (f"{layer}.visual_attention.att", f"{layer}.visual_attention.output")
        crossed_text = _attention(weights, *shared, text, vision, None, heads)
        crossed_vision = _attention(weights, *shared, vision, text, mask, heads)
        text, vision = (
            _feed_forward(
                weights,
                f"{layer}.{stream}_inter",
                f"{layer}.{stream}_output",
                _attention(
                    weights,
                    f"{layer}.{stream}_self_att.self",
                    f"{layer}.{stream}_self_att.output",
                    x,
                    x,
                    own,
                    heads,
                ),
            )
            for stream, x, own in (("lang", crossed_text, mask), ("visn", crossed_vision, None))
        )
    pooled = torch.tanh(_linear(weights, "bert.pooler.dense", text[:, 0]))
    hidden = _gelu(_linear(weights, "mlmhead.predictions.transform.dense", text))
    hidden = _norm(weights, "mlmhead.predictions.transform.LayerNorm", hidden)
    words = hidden @ weights["mlmhead.predictions.decoder.weight"].T + weights["mlmhead.predictions.bias"]
    return text, pooled, words, _linear(weights, "next_action.linear", pooled)

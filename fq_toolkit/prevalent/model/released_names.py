"""Names of the released weights, and their counterparts here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Blocks: released name -> ours. A block is an attention or a feed-forward with its output and norm.
_TEXT = {
    "attention.self": "attention.qkv",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "feed_forward.expand",
    "output.dense": "feed_forward.contract",
    "output.LayerNorm": "feed_forward.norm",
}
_CROSS = {
    "visual_attention.att": "cross.qkv",
    "visual_attention.output.dense": "cross.out",
    "visual_attention.output.LayerNorm": "cross.norm",
    **{
        released.replace("STREAM", short): ours.replace("STREAM", long)
        for short, long in (("lang", "text"), ("visn", "vision"))
        for released, ours in (
            ("STREAM_self_att.self", "STREAM_attention.qkv"),
            ("STREAM_self_att.output.dense", "STREAM_attention.out"),
            ("STREAM_self_att.output.LayerNorm", "STREAM_attention.norm"),
            ("STREAM_inter.dense", "STREAM_feed_forward.expand"),
            ("STREAM_output.dense", "STREAM_feed_forward.contract"),
            ("STREAM_output.LayerNorm", "STREAM_feed_forward.norm"),
        )
    },
}
_REST = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.LayerNorm": "embeddings.norm",
    "vision_encoder.visn_fc": "vision_encoder.linear",
    "vision_encoder.visn_layer_norm": "vision_encoder.norm",
    "pooler.dense": "pooler",
}
_PARTS = ("query", "key", "value")
_OLD = {"gamma": "weight", "beta": "bias"}  # names of LayerNorm's weights in the first BERT code


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights have released names, with or without the prefix of DataParallel."""
    return any(name.removeprefix("module.").startswith("bert.lalayer.") for name in state)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the encoder under our names, without those of the heads.

    Query, key and value become one matrix, in this order. An unknown name under ``bert.`` is kept, so that
    loading complains about it.

    Args:
        state: released name -> weight.

    Example:
        >>> state = {f"bert.lalayer.0.attention.self.{part}.bias": torch.zeros(4) for part in _PARTS}
        >>> {name: tuple(value.shape) for name, value in encoder_state(state).items()}
        {'text_layers.0.attention.qkv.bias': (12,)}
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if not name.startswith("bert."):
            continue
        stem, _, leaf = name.removeprefix("bert.").rpartition(".")
        leaf = _OLD.get(leaf, leaf)
        stem, _, part = stem.rpartition(".") if stem.rpartition(".")[2] in _PARTS else (stem, "", "")
        ours = _rename(stem)
        if ours is None:
            if name.endswith("embeddings.position_ids"):  # a buffer that newer BERT code saves
                continue
            renamed[name] = value
        elif part:
            parts.setdefault(f"{ours}.{leaf}", {})[part] = value
        else:
            renamed[f"{ours}.{leaf}"] = value
    for name, three in parts.items():
        if len(three) == len(_PARTS):  # else it stays missing, and loading says so
            renamed[name] = torch.cat([three[part] for part in _PARTS])
    return renamed


def _rename(stem: str) -> str | None:
    """Return our name of a module, or None for an unknown one."""
    match = re.fullmatch(r"(lalayer|addlayer)\.(\d+)\.(.+)", stem)
    if match is None:
        return _REST.get(stem)
    kind, number, inner = match.groups()
    ours = (_TEXT if kind == "lalayer" else _CROSS).get(inner)
    layers = "text_layers" if kind == "lalayer" else "cross_layers"
    return None if ours is None else f"{layers}.{number}.{ours}"

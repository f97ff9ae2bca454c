"""Checkpoints of the released Optimus, under the names of the release.

Three kinds lie in a run's folder: ``checkpoint-encoder-N/pytorch_model.bin``,
``checkpoint-decoder-N/pytorch_model.bin`` and ``checkpoint-full-N/training.bin``, which holds both networks,
the optimizer and the command line as an ``argparse.Namespace``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fq_toolkit.layers.latent.model import LatentModel
from fq_toolkit.layers.latent.projector import CHILD
from fq_toolkit.layers.latent.spec import LatentSpec

MEMORY_KEY = "transformer.linear.weight"
EMBEDDING_KEY = "transformer.linear_emb.weight"
_FILES = ("training.bin", "pytorch_model.bin")
_PREFIXES = ("module.", "model_vae.")


class OriginalCheckpoint(NamedTuple):
    """A checkpoint of the release.

    Attributes:
        encoder: weights of the encoder, or None where the file has none.
        decoder: weights of the decoder, or None where the file has none.
        args: the command line that trained it, or None where the file has none.
    """

    encoder: dict[str, Tensor] | None
    decoder: dict[str, Tensor] | None
    args: dict[str, Any] | None


def read_original(path: str | Path) -> OriginalCheckpoint:
    """Read a checkpoint of the release, without running code from it.

    Only tensors, numbers, plain containers and ``argparse.Namespace`` are unpickled.

    Args:
        path: a file ``training.bin`` or ``pytorch_model.bin``, or the folder that holds it.

    Returns:
        The weights under the original names, the prefixes ``encoder.`` and ``decoder.`` taken off.

    Raises:
        ValueError: no such file, or one with neither an encoder nor a decoder in it.
    """
    file = Path(path)
    if file.is_dir():
        inside = [file / name for name in _FILES if (file / name).is_file()]
        if not inside:
            raise ValueError(f"{str(file)!r} holds none of {', '.join(_FILES)}; name the file itself")
        file = inside[0]  # training.bin first: it holds both networks
    elif not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}")
    with torch.serialization.safe_globals(_harmless()):
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    state = loaded.get("model_state_dict", loaded)
    args = loaded.get("args")
    options = None if args is None else dict(args if isinstance(args, Mapping) else vars(args))
    checkpoint = split_original(state)._replace(args=options)
    if checkpoint.encoder is None and checkpoint.decoder is None:
        raise ValueError(
            f"{str(file)!r} holds neither an encoder nor a decoder; its keys begin with {list(state)[:3]}"
        )
    return checkpoint


def _harmless() -> list[Any]:
    """Return what may be unpickled besides tensors: the command line and numpy's numbers, as its beta is."""
    scalar: Any = np.float64(0).__reduce__()[0]
    # The release was written by numpy 1, which had the function in another module.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "b1")]
    return [argparse.Namespace, np.dtype, *names, *kinds]


def split_original(state: Mapping[str, Tensor]) -> OriginalCheckpoint:
    """Sort weights under the names of the release into encoder and decoder, without their prefixes."""
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith("decoder."):
            decoder[name.removeprefix("decoder.")] = value
        elif name.startswith(("transformer.", "lm_head.")):
            decoder[name] = value
        elif name.startswith("encoder.") and not name.startswith("encoder.layer."):
            # A full checkpoint says encoder.encoder.layer.0 and encoder.linear; a file of the encoder says
            # encoder.layer.0 and linear.
            encoder[name.removeprefix("encoder.")] = value
        elif name.startswith(("encoder.layer.", "embeddings.", "pooler.", "linear.", "bert.")):
            encoder[name] = value
    return OriginalCheckpoint(encoder or None, decoder or None, None)


def load_original_decoder(model: Any, source: str | Path | Mapping[str, Tensor]) -> Any:
    """Load the weights of a released decoder into an injected GPT-2, strictly.

    Args:
        model: a ``GPT2LMHeadModel`` after `inject_latent` with one slot, a shared key and value and a linear
            projector; its vocabulary must have the checkpoint's size (50260 in the release).
        source: what `read_original` reads, or a state dict under the original names.

    Returns:
        The same model.

    Raises:
        ValueError: no decoder in the source, a model that is built differently, or weights that are missing,
            unknown or of another shape.
    """
    if not isinstance(model, LatentModel):
        raise ValueError(
            f"inject_latent comes before load_original_decoder; got a plain {type(model).__name__}"
        )
    target: Any = model
    spec: LatentSpec = target.latent_spec
    if spec.projector != "linear" or (spec.has_memory and (spec.slots > 1 or not spec.share_kv)):
        raise ValueError(
            "the original has one slot, a shared key and value and a linear projector; inject so"
        )
    checkpoint = split_original(source) if isinstance(source, Mapping) else read_original(source)
    if checkpoint.decoder is None:
        raise ValueError(
            "the checkpoint has no decoder: none of its keys begins with transformer. or decoder."
        )
    # W_M and W_D of arXiv 2004.04092, section 3.2. The causal masks among the weights are made by the model.
    names = {MEMORY_KEY: f"{CHILD}.memory.weight", EMBEDDING_KEY: f"{CHILD}.embedding.weight"}
    unused = ([] if spec.has_memory else [MEMORY_KEY]) + ([] if spec.has_embedding else [EMBEDDING_KEY])
    expected = target.state_dict()
    state = {
        names.get(key, key): value
        for key, value in checkpoint.decoder.items()
        if key not in unused and not key.endswith((".attn.bias", ".attn.masked_bias"))
    }
    # Tied, and so left out by some files of the release.
    if "lm_head.weight" not in state and "transformer.wte.weight" in state:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    problems = [f"{key} is missing" for key in expected if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in expected]
    problems += [
        f"{key} is {tuple(value.shape)}, the model has {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        raise ValueError("the checkpoint does not fit this model: " + "; ".join(problems[:6]))
    target.load_state_dict(state)
    return target

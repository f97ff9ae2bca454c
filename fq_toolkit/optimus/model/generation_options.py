"""The options of ``decode``: which of them belong to ``generate``, and in which form."""

from __future__ import annotations

import copy
import difflib
import inspect
from typing import Any, NamedTuple

# Arguments of generate that `SentenceVAE.decode` sets itself, and why.
_OWN = {
    "inputs": "a sentence begins with BOS",
    "input_ids": "a sentence begins with BOS",
    "inputs_embeds": "a sentence begins with BOS",
    "decoder_input_ids": "a sentence begins with BOS",
    "attention_mask": "a sentence begins with BOS",
    "latent": "give it as z",
    "latents": "give them as z",
    "max_length": "give max_new_tokens",
}
# Options with which generate handles one sentence at a time.
_ONE_BY_ONE = ("streamer", "assistant_model", "prompt_lookup_num_tokens")


class GenerationOptions(NamedTuple):
    """Options of ``decode``, sorted.

    Attributes:
        config: a GenerationConfig: what the caller gave, completed by the defaults of sentence VAEs.
        arguments: the other keywords of ``generate``.
        one_by_one: whether sentences must be written one at a time.
    """

    config: Any
    arguments: dict[str, Any]
    one_by_one: bool


def sort_options(decoder: Any, tokens: dict[str, int], options: dict[str, Any]) -> GenerationOptions:
    """Split the options of ``decode`` into a GenerationConfig and keywords of ``generate``.

    Args:
        decoder: an injected decoder.
        tokens: the default ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
        options: what the caller gave.

    Raises:
        TypeError: an option that generate does not have, or that ``decode`` sets itself.
    """
    from transformers import GenerationConfig

    # A model may override generate and pass **kwargs on: every class in its order of inheritance counts.
    keywords = {
        name
        for kind in type(decoder).__mro__
        if "generate" in vars(kind)
        for name in inspect.signature(vars(kind)["generate"]).parameters
    } - {"self", "args", "kwargs", "generation_config", *_OWN}
    settings = set(vars(GenerationConfig())) - {"transformers_version", *_OWN}
    for name in options:
        if name in _OWN:
            raise TypeError(f"decode has no option {name!r}: {_OWN[name]}")
        if name not in keywords | settings | {"generation_config"} or name.startswith("_"):
            close = difflib.get_close_matches(name, sorted(keywords | settings), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see GenerationConfig of transformers"
            raise TypeError(f"generate has no option {name!r}; {hint}")

    given = options.get("generation_config")
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    changes = {name: value for name, value in options.items() if name in settings}
    defaults: dict[str, Any] = {**tokens, "max_new_tokens": 64}
    if given is None:
        defaults |= {"do_sample": False, "num_beams": 1, "use_cache": True}
        if changes.get("do_sample"):
            defaults["top_k"] = 0  # sample from all tokens; the default of transformers is the best 50
    for name, value in {**defaults, **changes}.items():
        if name in changes or given is None or getattr(config, name, None) is None:
            setattr(config, name, value)
    arguments = {name: value for name, value in options.items() if name in keywords and value is not None}
    _as_lists(arguments)
    one_by_one = any(options.get(name, getattr(config, name, None)) is not None for name in _ONE_BY_ONE)
    return GenerationOptions(config, arguments, one_by_one)


def _as_lists(arguments: dict[str, Any]) -> None:
    """Turn one processor or criterion, or a plain list of them, into the list class that generate expects."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    for name, kind in (
        ("logits_processor", LogitsProcessorList),
        ("stopping_criteria", StoppingCriteriaList),
    ):
        value = arguments.get(name)
        if value is not None and not isinstance(value, kind):
            arguments[name] = kind(value if isinstance(value, list | tuple) else [value])

"""The arithmetic of Optimus' decoder, written out from its definition, and tiny models to inject into.

`original_logits` knows nothing of transformers' code: a GPT-2 in plain torch, fed with a state dict under the
names of the original release.
"""

import math
import os
from typing import Any

import torch
import transformers
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = {"layers": 3, "heads": 2, "width": 16, "latent": 6, "vocabulary": 40, "positions": 32}


def gpt2(seed: int = 0, **settings: Any) -> Any:
    """Return a tiny GPT-2 in eval mode whose tokens depend strongly on everything."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_layer=SIZES["layers"], n_head=SIZES["heads"], n_embd=SIZES["width"], vocab_size=SIZES["vocabulary"],
        n_positions=SIZES["positions"], bos_token_id=1, eos_token_id=None, initializer_range=0.4,
        **{"attn_implementation": "sdpa", **settings},
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def original_state(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights under the original's names."""
    torch.manual_seed(100 + seed)
    width, nz = SIZES["width"], SIZES["latent"]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape) * 0.4

    state = {
        "transformer.wte.weight": draw(SIZES["vocabulary"], width),
        "transformer.wpe.weight": draw(SIZES["positions"], width),
        "transformer.ln_f.weight": 1 + draw(width),
        "transformer.ln_f.bias": draw(width),
        "transformer.linear.weight": draw(SIZES["layers"] * width, nz),
        "transformer.linear_emb.weight": draw(width, nz),
    }
    for layer in range(SIZES["layers"]):
        block = f"transformer.h.{layer}."
        shapes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        shapes |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
        for name, shape in shapes.items():
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = draw(*shape), draw(shape[1])
        for name in ("ln_1", "ln_2"):
            state[f"{block}{name}.weight"], state[f"{block}{name}.bias"] = 1 + draw(width), draw(width)
        size = SIZES["positions"]
        state[f"{block}attn.bias"] = torch.ones(size, size).tril().view(1, 1, size, size)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def original_logits(state: dict[str, Tensor], ids: Tensor, z: Tensor, mode: str) -> Tensor:
    """Logits (B, T, vocabulary) of the original decoder for tokens (B, T) and latents (B, nz)."""
    heads, width = SIZES["heads"], SIZES["width"]
    size = width // heads
    batch, length = ids.shape
    memory, embedding = mode != "embedding", mode != "memory"

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    positions = torch.arange(length) + (1 if memory else 0)
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][positions]
    if embedding:
        x = x + (z @ state["transformer.linear_emb.weight"].T)[:, None]
    slots = (z @ state["transformer.linear.weight"].T).chunk(SIZES["layers"], dim=-1) if memory else []
    for layer in range(SIZES["layers"]):
        block = f"transformer.h.{layer}."
        query, key, value = affine(norm(x, f"{block}ln_1"), f"{block}attn.c_attn").chunk(3, dim=-1)
        if memory:  # one raw vector is key and value, before the text
            key = torch.cat([slots[layer][:, None], key], 1)
            value = torch.cat([slots[layer][:, None], value], 1)
        heard = torch.zeros(batch, length, width, dtype=x.dtype)
        first = 1 if memory else 0
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(length):
                seen = slice(0, first + t + 1)
                scores = (key[:, seen, part] @ query[:, t, part, None])[..., 0] / math.sqrt(size)
                weights = (scores - scores.amax(-1, keepdim=True)).exp()
                weights = weights / weights.sum(-1, keepdim=True)
                heard[:, t, part] = (weights[..., None] * value[:, seen, part]).sum(1)
        x = x + affine(heard, f"{block}attn.c_proj")
        x = x + affine(gelu(affine(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc")), f"{block}mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def randomize(model: nn.Module, std: float = 0.3, seed: int = 0) -> Any:
    """Draw weights large enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 4}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SEQ2SEQ = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}

#: family -> (causal-LM class, config class, settings)
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
              "eos_token_id": None}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**SMALL, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 4}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, **WINDOW}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, **WINDOW}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**SMALL, "num_key_value_heads": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL),
    "opt": ("OPTForCausalLM", "OPTConfig",
            {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 0}),
    "roberta": ("RobertaForCausalLM", "RobertaConfig", {**SMALL, "is_decoder": True, "pad_token_id": 0}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**SMALL, "num_key_value_heads": 2}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**GROUPED, **WINDOW, **EXPERTS}),
}  # fmt: skip
ENCODER_DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", "BartConfig",
             {**SEQ2SEQ, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2,
              "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
              "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None}),
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {**SEQ2SEQ, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0}),
}  # fmt: skip
WITHOUT_MEMORY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bloom": ("BloomForCausalLM", "BloomConfig",
              {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
               "eos_token_id": None}),
    "gptj": ("GPTJForCausalLM", "GPTJConfig",
             {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 64,
              "bos_token_id": 1, "eos_token_id": None}),
    "mamba": ("MambaForCausalLM", "MambaConfig",
              {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4,
               "bos_token_id": 1,
               "eos_token_id": None, "pad_token_id": 0}),
}  # fmt: skip
NEED_TOKENS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fsmt": ("FSMTForConditionalGeneration", "FSMTConfig",
             {"langs": ["en", "de"], "src_vocab_size": 40, "tgt_vocab_size": 40, "d_model": 16,
              "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}),
    "gemma4_text": ("Gemma4ForCausalLM", "Gemma4TextConfig",
                    {**GROUPED, "sliding_window": 4, "vocab_size_per_layer_input": 40}),
}  # fmt: skip
FAMILIES = {**DECODERS, **ENCODER_DECODERS, **WITHOUT_MEMORY}


def build(family: str, attention: str | None = None, **changes: Any) -> Any:
    """Return a tiny random model of a family, in eval mode."""
    kind, config, settings = {**FAMILIES, **NEED_TOKENS}[family]
    made = getattr(transformers, config)(**{**settings, **changes})
    if attention is not None:
        made._attn_implementation = attention
    torch.manual_seed(0)
    return randomize(getattr(transformers, kind)(made))

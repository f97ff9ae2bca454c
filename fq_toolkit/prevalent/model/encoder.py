"""PrevalentModel: the encoder of instruction and panorama that is pretrained and fine-tuned."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fq_toolkit.prevalent.files import DataError, read_json
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.layers import (
    Attention,
    CrossLayer,
    FeedForward,
    Packing,
    TextEmbeddings,
    TextLayer,
    VisionEncoder,
    additive,
    pack_needed,
)
from fq_toolkit.prevalent.model.released_names import encoder_state, is_released
from fq_toolkit.training.config import from_mapping
from fq_toolkit.training.errors import RunError
from fq_toolkit.training.storage.atomic import explain, write_atomic

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FOLDER = "model"
"""Where a run folder keeps its model."""
_KIND = "PrevalentModel"


class PrevalentOutput(NamedTuple):
    """What the model returns.

    language: (B, L, H), one state per token.
    pooled: (B, H), ``tanh(linear(language[:, 0]))``.
    """

    language: Tensor
    pooled: Tensor


class TextCache(NamedTuple):
    """An instruction after the text layers: the same at every step of an episode.

    states: (B, L, H).
    mask: (B, L) as it was given, or None.
    """

    states: Tensor
    mask: Tensor | None


class PrevalentModel(nn.Module):
    """Text layers, a vision encoder, and cross-modal layers; the language stream comes out.

    Args:
        config: sizes; the released ones by default.

    Example:
        >>> model = PrevalentModel(PrevalentConfig.tiny(vocab_size=80, vision_size=192)).eval()
        >>> ids, views = torch.randint(5, 80, (2, 12)), torch.randn(2, 36, 192)
        >>> language, pooled = model(ids, ids > 0, views)
        >>> language.shape, pooled.shape
        (torch.Size([2, 12, 64]), torch.Size([2, 64]))
        >>> cache = model.cache_text(ids, ids > 0)   # once per episode
        >>> bool((model(None, None, views, cache=cache).pooled == pooled).all())
        True

    ``load_state_dict`` takes released weights under their released names too: ``bert.lalayer.*``,
    ``bert.addlayer.*``, ``bert.vision_encoder.*``; what belongs to the heads is left to
    `fq_toolkit.VLNPretrainingHead`, which takes the same dictionary.

    Source: arXiv 2002.10638, section 4.1; 156,701,022 parameters with both heads at the released size.
    """

    def __init__(self, config: PrevalentConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PrevalentConfig()
        self.embeddings = TextEmbeddings(config)
        self.text_layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.vision_encoder = VisionEncoder(config)
        self.cross_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.cross_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.apply(self._initialize)
        with torch.no_grad():
            for module in self.cross_layers.modules():
                if isinstance(module, (Attention, FeedForward)):
                    last_linear = module.out if isinstance(module, Attention) else module.contract
                    last_linear.weight.mul_(config.cross_init)
        last = self.cross_layers[-1]  # its vision stream leads nowhere; the released weights have it
        for unused in (last.vision_attention, last.vision_feed_forward):
            unused.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_accept_released)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings, for ``VLNPretrainingHead(..., tie_to=...)``."""
        return self.embeddings.word_embeddings

    def cache_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> TextCache:
        """Run the layers that see the text alone: once per episode, not once per step.

        Args:
            text_ids: int64 (B, L).
            text_mask: (B, L), True or 1 at tokens; None when nothing is padding.

        Raises:
            ValueError: for another shape, or a text longer than the position table.
        """
        self._check_text(text_ids, text_mask)
        mask = additive(text_mask, self.embeddings.norm.weight.dtype)
        return TextCache(self._read(text_ids, mask), text_mask)

    def _check_text(self, text_ids: Tensor, text_mask: Tensor | None) -> None:
        if text_ids.ndim != 2 or text_ids.shape[1] > self.config.max_positions:
            raise ValueError(
                f"text_ids have shape {tuple(text_ids.shape)}; expected (B, L) with L at most "
                f"{self.config.max_positions}"
            )
        if text_mask is not None and text_mask.shape != text_ids.shape:
            raise ValueError(
                f"text_mask has shape {tuple(text_mask.shape)}; expected that of text_ids, "
                f"{tuple(text_ids.shape)}"
            )

    def _read(self, text_ids: Tensor, mask: Tensor | None, packing: Packing | None = None) -> Tensor:
        """Return what the text layers make of texts: (B, L, H), or the rows (N, H) of a packing."""
        states = self.embeddings(text_ids, packing)
        for layer in self.text_layers:
            states = layer(states, mask, packing)
        return states

    def forward(
        self,
        text_ids: Tensor | None,
        text_mask: Tensor | None,
        vision: Tensor,
        vision_mask: Tensor | None = None,
        cache: TextCache | None = None,
        needed: Tensor | None = None,
    ) -> PrevalentOutput:
        """Encode instructions and what is seen.

        Args:
            text_ids: int64 (B, L); None with a cache.
            text_mask: (B, L), True or 1 at tokens; None when nothing is padding.
            vision: (B, M, F), views with their angle features; M is 36 for a panorama.
            vision_mask: (B, M), True or 1 at views; None when all are there.
            cache: what `cache_text` returned for these instructions.
            needed: (B, L), True or 1 at the positions whose states will be read. The language states of these
                and of the first position are returned, the others are 0, and less is computed: no padding,
                and in the last layer only what is needed. The results are the same. None returns all states.

        Raises:
            ValueError: for shapes that do not fit, or neither or both of text_ids and cache.
        """
        if (text_ids is None) == (cache is None):
            raise ValueError("give either text_ids or the cache of them")
        if cache is None:
            texts = cast(Tensor, text_ids)
            self._check_text(texts, text_mask)
        else:
            texts, text_mask = cache
        self._check_views(vision, vision_mask, len(texts))
        packing = rows = None
        if needed is not None:
            if needed.shape != texts.shape[:2]:
                raise ValueError(
                    f"needed has shape {tuple(needed.shape)}; expected that of the texts, "
                    f"{tuple(texts.shape[:2])}"
                )
            packing, rows, text_mask = pack_needed(needed, text_mask)
        views = self.vision_encoder(vision)
        text_bias, vision_bias = additive(text_mask, views.dtype), additive(vision_mask, views.dtype)
        if cache is None:
            text = self._read(texts, text_bias, packing)
        else:
            text = texts if packing is None else packing.pick(texts)
        for layer in list(self.cross_layers)[:-1]:
            text, views = layer(text, views, text_bias, vision_bias, packing)
        last = cast(CrossLayer, self.cross_layers[-1])
        text = last.text_only(text, views, text_bias, vision_bias, packing, rows)
        language = text if rows is None else rows.restore(text)
        return PrevalentOutput(language, self.pooler(language[:, 0]).tanh())

    def _check_views(self, vision: Tensor, vision_mask: Tensor | None, batch: int) -> None:
        if vision.ndim != 3 or vision.shape[0] != batch or vision.shape[2] != self.config.vision_size:
            raise ValueError(
                f"vision has shape {tuple(vision.shape)}; expected ({batch}, views, "
                f"{self.config.vision_size}), one panorama per instruction"
            )
        if vision_mask is not None and vision_mask.shape != vision.shape[:2]:
            raise ValueError(
                f"vision_mask has shape {tuple(vision_mask.shape)}; expected {tuple(vision.shape[:2])}"
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors into a folder, each atomically, the weights first.

        Returns:
            The folder.

        Raises:
            RunError: when it cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {folder}: {explain(error)}") from error
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_atomic(folder / WEIGHTS, save(weights))
        settings = {"model": _KIND, **dataclasses.asdict(self.config)}
        write_atomic(folder / CONFIG, (json.dumps(settings, indent=2) + "\n").encode())
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PrevalentModel":
        """Read what `save_pretrained` wrote; the folder of a run of ``train prevalent`` works too.

        Raises:
            DataError: when a file is missing, damaged or of another model.
            ConfigError: for unknown or impossible sizes.
        """
        folder = Path(folder)
        if (folder / FOLDER / CONFIG).is_file():
            folder = folder / FOLDER
        settings = read_json(folder / CONFIG)
        if not isinstance(settings, dict) or settings.pop("model", None) != _KIND:
            raise DataError(
                f"{folder / CONFIG} does not describe a {_KIND}: give a folder of save_pretrained, or of a "
                "run of `fq-toolkit train prevalent` that has finished"
            )
        model = cls(from_mapping(PrevalentConfig, settings, source=str(folder / CONFIG)))
        model.load_state_dict(read_weights(folder / WEIGHTS, model))
        return model


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read a file of tensors and check that they are those of a model.

    Raises:
        DataError: when it is missing, damaged, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error})") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{path} does not fit its config: {name} is {found.get(name, 'missing')}, expected "
            f"{wanted.get(name, 'none')} ({len(wrong)} tensors differ)"
        )
    return weights


def _accept_released(
    module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:  # signature of torch's hook
    """Rename released weights in place, before they are loaded."""
    own: Mapping[str, Tensor] = {
        name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
    }
    if not is_released(own):
        return
    for name in own:
        del state[prefix + name]
    state.update({prefix + name: value for name, value in encoder_state(own).items()})


def count_parameters(*modules: nn.Module) -> int:
    """Return the number of parameters, those that are shared counted once.

    Example:
        >>> with torch.device("meta"):
        ...     count_parameters(PrevalentModel())
        156050688
    """
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())

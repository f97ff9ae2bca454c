"""PrevalentModel: the encoder of instruction and panorama that is pretrained and fine-tuned.

A text encoder, a vision encoder and a cross-modal encoder over both: section 4.2 of arXiv 2002.10638.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fq_toolkit.prevalent.files import DataError, make_folder, read_json, write_json
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
from fq_toolkit.prevalent.model.weight_files import read_weights, write_weights
from fq_toolkit.training.config import from_mapping

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FOLDER = "model"
"""Name of the folder in a run folder that holds the model."""
_KIND = "PrevalentModel"


class PrevalentOutput(NamedTuple):
    """Output of the model.

    language: (B, L, H), one state per token.
    pooled: (B, H), ``tanh(linear(language[:, 0]))``.
    """

    language: Tensor
    pooled: Tensor


class TextCache(NamedTuple):
    """An instruction after the text layers, which is the same at every step of an episode.

    states: (B, L, H).
    mask: (B, L) as it was given, or None.
    """

    states: Tensor
    mask: Tensor | None


class PrevalentModel(nn.Module):
    """Text layers, a vision encoder and cross-modal layers, which return the language stream.

    ::

        text     = text_layers(embeddings(ids))
        vision   = vision_encoder(views)
        text, vision = layer(text, vision)      for each cross-modal layer
        pooled   = tanh(W text[0] + b)

    Args:
        config: sizes; by default the released ones.

    Example:
        >>> model = PrevalentModel(PrevalentConfig.tiny(vocab_size=80, vision_size=192)).eval()
        >>> ids, views = torch.randint(5, 80, (2, 12)), torch.randn(2, 36, 192)
        >>> language, pooled = model(ids, ids > 0, views)
        >>> language.shape, pooled.shape
        (torch.Size([2, 12, 64]), torch.Size([2, 64]))
        >>> cache = model.cache_text(ids, ids > 0)   # once per episode
        >>> bool((model(None, None, views, cache=cache).pooled == pooled).all())
        True

    ``load_state_dict`` also accepts released weights under their released names (``bert.lalayer.*``,
    ``bert.addlayer.*``, ``bert.vision_encoder.*``); those of the heads are left to
    `fq_toolkit.VLNPretrainingHead`, which accepts the same dictionary.

    Source: arXiv 2002.10638, sections 4.1 (input embeddings) and 4.2 (encoder architecture); 156,701,022
    parameters with both heads at the released size.
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
            # Each block ends with a residual sum: a small last map lets the layer begin as the identity.
            for module in self.cross_layers.modules():
                if isinstance(module, (Attention, FeedForward)):
                    last_linear = module.out if isinstance(module, Attention) else module.contract
                    last_linear.weight.mul_(config.cross_init)
        # Nothing reads the vision stream of the last layer; it stays because the released weights have it.
        last = self.cross_layers[-1]
        for unused in (last.vision_attention, last.vision_feed_forward):
            unused.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_accept_released)

    def _initialize(self, module: nn.Module) -> None:
        """Initialize a module as BERT does: normal weights, zero biases."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embeddings, for ``VLNPretrainingHead(..., tie_to=...)``."""
        return self.embeddings.word_embeddings

    def cache_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> TextCache:
        """Run the layers that see only the text, once per episode instead of once per step.

        Args:
            text_ids: int64 (B, L).
            text_mask: (B, L), True or 1 at tokens; None if nothing is padding.

        Raises:
            ValueError: for another shape, or a text longer than the position table.
        """
        self._check_text(text_ids, text_mask)
        mask = additive(text_mask, self.embeddings.norm.weight.dtype)
        return TextCache(self._read(text_ids, mask), text_mask)

    def _check_text(self, text_ids: Tensor, text_mask: Tensor | None) -> None:
        """Raise ValueError for texts of a shape that the model cannot read."""
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
        """Run embeddings and text layers: (B, L, H), or the rows (N, H) of a packing."""
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
        """Encode instructions and views.

        Args:
            text_ids: int64 (B, L); None with a cache.
            text_mask: (B, L), True or 1 at tokens; None if nothing is padding.
            vision: (B, M, F), views with their angle features; M is 36 for a panorama.
            vision_mask: (B, M), True or 1 at views; None if all are there.
            cache: the result of `cache_text` for these instructions.
            needed: (B, L), True or 1 at the positions whose states will be read. The language states of these
                and of the first position are returned, the others are 0. The results are the same, but less
                is computed: no padding, and in the last layer only the needed positions. None returns all.

        Raises:
            ValueError: for shapes that do not fit, or neither or both of text_ids and cache.
        """
        if (text_ids is None) == (cache is None):  # exactly one of them is the text
            raise ValueError("give either text_ids or the cache of them")
        if cache is None:
            texts = cast(Tensor, text_ids)
            self._check_text(texts, text_mask)
        else:
            texts, text_mask = cache
        self._check_views(vision, vision_mask, len(texts))
        packing = rows = None  # the whole text, and the positions of it that are returned
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
        # Only the text stream of the last layer is returned, so its vision stream is not computed.
        last = cast(CrossLayer, self.cross_layers[-1])
        text = last.text_only(text, views, text_bias, vision_bias, packing, rows)
        language = text if rows is None else rows.restore(text)  # zeros where nothing was asked for
        return PrevalentOutput(language, self.pooler(language[:, 0]).tanh())

    def _check_views(self, vision: Tensor, vision_mask: Tensor | None, batch: int) -> None:
        """Raise ValueError for views of a shape that the model cannot read."""
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
        """Write config.json and model.safetensors into a folder, each atomically.

        Returns:
            The folder.

        Raises:
            RunError: if something cannot be written.
        """
        folder = make_folder(folder)
        # The weights first: a folder with a config is complete.
        write_weights(folder / WEIGHTS, self)
        write_json(folder / CONFIG, {"model": _KIND, **dataclasses.asdict(self.config)}, indent=2)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PrevalentModel":
        """Read a folder of `save_pretrained`, or the run folder of ``train prevalent``.

        Raises:
            DataError: if a file is missing, damaged or of another model.
            ConfigError: for unknown or impossible sizes.
        """
        folder = Path(folder)
        if (folder / FOLDER / CONFIG).is_file():  # a run folder
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


def _accept_released(
    module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:  # signature of torch's hook
    """Rename released weights in place, before they are loaded."""
    # The model may be a part of another one; its weights are then those with the prefix.
    own: Mapping[str, Tensor] = {
        name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
    }
    if not is_released(own):
        return
    for name in own:
        del state[prefix + name]
    state.update({prefix + name: value for name, value in encoder_state(own).items()})


def count_parameters(*modules: nn.Module) -> int:
    """Return the number of parameters; shared ones count once.

    Example:
        >>> with torch.device("meta"):
        ...     count_parameters(PrevalentModel())
        156050688
    """
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())

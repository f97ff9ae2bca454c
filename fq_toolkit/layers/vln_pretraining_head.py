"""VLNPretrainingHead: masked words and next actions from the outputs of any encoder."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit.layers.checks import at_least_one, between, one_of

#: Labels that are left out of the loss.
IGNORED = (-1, -100)
_NORM_EPS = 1e-12  # of BERT, on which the released model was built

# Released name -> ours. All others belong to the encoder, or are tied to it.
_RELEASED = {
    "mlmhead.predictions.transform.dense.": "mlm_transform.",
    "mlmhead.predictions.transform.LayerNorm.": "mlm_norm.",
    "mlmhead.predictions.decoder.weight": "mlm_decoder.weight",
    "mlmhead.predictions.bias": "mlm_bias",
    "next_action.linear.": "action.",
}


class VLNPretrainingOutput(NamedTuple):
    """What the head returns; None where something was not asked for.

    loss: weighted sum of the losses there are; None without labels.
    mlm_loss: mean cross-entropy over the labelled positions.
    action_loss: mean cross-entropy over the labelled rows.
    mlm_logits: (M, V) of the M labelled positions in reading order; (B, L, V) when no labels were given.
    action_logits: (B, num_actions), or (B, A) over candidates with minus infinity where the mask is False.
    """

    loss: Tensor | None
    mlm_loss: Tensor | None
    action_loss: Tensor | None
    mlm_logits: Tensor | None
    action_logits: Tensor | None


class VLNPretrainingHead(nn.Module):
    """The two pretraining tasks of PREVALENT on the outputs of any encoder.

    ``loss = w0 L_MLM + w1 L_AP``, the attended masked language modelling and action prediction of the paper:

    ``L_MLM = -mean log p(word | other words, images)`` over masked positions, with the logits
    ``W norm(gelu(transform(states))) + b``;

    ``L_AP = -mean log p(action | [CLS] state)``, with the logits ``linear(pooled)`` or, pointing at
    candidates, ``candidates . query(pooled) / sqrt(hidden_size)``.

    Only labelled positions are projected to the vocabulary: with 15 % of the words masked that is about a
    seventh of the work, and the same loss and gradients.

    Args:
        hidden_size: width H of the encoder.
        vocab_size: words V.
        num_actions: classes of the action; unused in pointer mode, in which the candidates are the classes.
        action_mode: "cls" classifies, "pointer" chooses among candidates.
        tie_to: module or tensor with the word embeddings (V, H), used as W. It stays its owner's: it is not
            among the head's parameters and not in its state dict.
        loss_weights: of words and actions.

    Raises:
        TypeError: for settings of another type.
        ValueError: for settings out of range, or embeddings of another shape.

    Example:
        >>> embeddings = nn.Embedding(100, 16)
        >>> head = VLNPretrainingHead(hidden_size=16, vocab_size=100, num_actions=36, tie_to=embeddings)
        >>> states = torch.randn(2, 5, 16)  # an encoder's last_hidden_state
        >>> labels = torch.tensor([[-1, 7, -1, -1, 9], [-1, -1, 3, -1, -1]])
        >>> out = head(states, mlm_labels=labels, action_labels=torch.tensor([0, 35]))
        >>> out.mlm_logits.shape, out.action_logits.shape, out.loss.ndim
        (torch.Size([3, 100]), torch.Size([2, 36]), 0)
        >>> head(states).mlm_logits.shape
        torch.Size([2, 5, 100])

    ``load_state_dict`` takes released weights too (``mlmhead.predictions.*``, ``next_action.linear.*``) and
    passes over those of the encoder.

    Source: "Towards Learning a Generic Agent for Vision-and-Language Navigation via Pre-training",
    arXiv 2002.10638, section 4.3 (pre-training objectives).
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_actions: int = 36,
        *,
        action_mode: Literal["cls", "pointer"] = "cls",
        tie_to: nn.Module | Tensor | None = None,
        loss_weights: tuple[float, float] = (1, 1),
    ) -> None:
        super().__init__()
        self.hidden_size = at_least_one("hidden_size", hidden_size)
        self.vocab_size = at_least_one("vocab_size", vocab_size)
        self.num_actions = at_least_one("num_actions", num_actions)
        self.action_mode = one_of("action_mode", action_mode, ("cls", "pointer"))
        if len(loss_weights) != 2:
            raise ValueError(f"loss_weights must be two numbers, words and actions; got {loss_weights!r}")
        words, actions = (between("loss_weights", weight, 0, math.inf) for weight in loss_weights)
        self.loss_weights = words, actions
        self.mlm_transform = nn.Linear(hidden_size, hidden_size)
        self.mlm_norm = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab_size))
        self._tied = () if tie_to is None else (tie_to,)  # in a tuple: not a child, not a parameter
        if tie_to is None:
            self.mlm_decoder = nn.Linear(hidden_size, vocab_size, bias=False)
        else:
            self._check_tied(self._word_weight())
        if action_mode == "cls":
            self.action = nn.Linear(hidden_size, num_actions)
        else:
            self.query = nn.Linear(hidden_size, hidden_size)
        self.register_load_state_dict_pre_hook(_accept_released)

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        actions = f"num_actions={self.num_actions}" if self.action_mode == "cls" else "action_mode='pointer'"
        return f"{self.hidden_size}, {self.vocab_size}, {actions}, tied={bool(self._tied)}"

    def _word_weight(self) -> Tensor:
        """Return W (V, H)."""
        if not self._tied:
            return self.mlm_decoder.weight
        owner = self._tied[0]
        weight = owner if isinstance(owner, Tensor) else getattr(owner, "weight", None)
        if not isinstance(weight, Tensor):
            raise TypeError(
                f"tie_to must be a tensor or a module with a weight, such as nn.Embedding; "
                f"got {type(owner).__name__}"
            )
        return weight

    def _check_tied(self, weight: Tensor) -> None:
        """Refuse tied embeddings of another shape, now or after their owner has changed them."""
        if weight.shape == (self.vocab_size, self.hidden_size):
            return
        remedy = ""
        if weight.ndim == 2 and weight.shape[0] == self.vocab_size:
            remedy = (
                ". Embeddings narrower than the states, as ALBERT's and ELECTRA's, cannot be tied: leave "
                "tie_to out, and the head has a matrix of its own"
            )
        elif weight.ndim == 2 and weight.shape[1] == self.hidden_size:
            remedy = (
                f". Were the embeddings resized after the head was built? Build it with vocab_size="
                f"{weight.shape[0]}, after resize_token_embeddings"
            )
        raise ValueError(
            f"tie_to has a weight of shape {tuple(weight.shape)}; expected ({self.vocab_size}, "
            f"{self.hidden_size}), vocab_size x hidden_size{remedy}"
        )

    def _words(self, states: Tensor) -> Tensor:
        """Map states (..., H) to word logits (..., V)."""
        weight = self._word_weight()
        if self._tied:
            self._check_tied(weight)
        hidden = self.mlm_norm(functional.gelu(self.mlm_transform(states)))
        return functional.linear(hidden, weight, self.mlm_bias)

    def forward(
        self,
        sequence_output: Tensor,
        pooled: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        action_labels: Tensor | None = None,
        candidates: Tensor | None = None,
        candidate_mask: Tensor | None = None,
    ) -> VLNPretrainingOutput:
        """Compute the losses, or only logits when there are no labels.

        Args:
            sequence_output: (B, L, H), the encoder's states.
            pooled: (B, H), what the action is read from; by default the states at the first position. For a
                decoder give the state of the last token: its first position has seen nothing.
            mlm_labels: integers (B, L), the word at masked positions and -1 or -100 elsewhere.
            action_labels: integers (B,), -1 or -100 leaves a row out.
            candidates: (B, A, H), pointer mode only.
            candidate_mask: bool (B, A), True where there is a candidate; None when all are.

        Returns:
            (loss, mlm_loss, action_loss, mlm_logits, action_logits). With labels of one task only, the words
            are left out when it is the actions' (None), and the actions have logits but no loss when it is
            the words'. When every label is ignored a loss is 0 and still has (zero) gradients.

        Raises:
            TypeError: for what is not a tensor, such as a whole output of an encoder or a list of labels, and
                for labels that are not integers.
            ValueError: for shapes that do not fit, candidates that are missing or not expected, and labels
                out of range or on a masked candidate (on the CPU, outside of torch.compile: looking at
                values elsewhere would make every step wait; a loss of such a label is infinite or an error
                of the device).
        """
        _check_tensor("sequence_output", sequence_output)
        if sequence_output.ndim != 3 or sequence_output.shape[2] != self.hidden_size:
            raise ValueError(
                f"sequence_output has shape {tuple(sequence_output.shape)}; expected (B, L, "
                f"{self.hidden_size})"
            )
        for name, value in (
            ("pooled", pooled),
            ("candidates", candidates),
            ("candidate_mask", candidate_mask),
        ):
            if value is not None:
                _check_tensor(name, value)
        batch, length = sequence_output.shape[:2]
        if pooled is None:
            if not length:
                raise ValueError("sequence_output has no positions: give pooled")
            pooled = sequence_output[:, 0]
        elif pooled.shape != (batch, self.hidden_size):
            raise ValueError(
                f"pooled has shape {tuple(pooled.shape)}; expected ({batch}, {self.hidden_size})"
            )
        action_logits = self._actions(pooled, candidates, candidate_mask, needed=action_labels is not None)
        mlm_logits = mlm_loss = action_loss = None
        if mlm_labels is not None:
            # Before the projection to V words, which is most of the work.
            rows, words = _labelled("mlm_labels", mlm_labels, (batch, length), self.vocab_size)
            mlm_logits = self._words(sequence_output.flatten(0, 1).index_select(0, rows))
            mlm_loss = _mean_cross_entropy(mlm_logits, words)
        elif action_labels is None:
            mlm_logits = self._words(sequence_output)
        if action_labels is not None and action_logits is not None:
            rows, actions = _labelled("action_labels", action_labels, (batch,), action_logits.shape[1])
            if (
                candidate_mask is not None
                and _may_look(candidate_mask)
                and not bool(candidate_mask.bool()[rows, actions].all())
            ):
                raise ValueError(
                    "action_labels point at candidates that candidate_mask excludes: check the numbering"
                )
            action_loss = _mean_cross_entropy(action_logits.index_select(0, rows), actions)
        # Only over the tasks that have labels: batches of one task are common in pretraining.
        parts = [
            weight * value
            for weight, value in zip(self.loss_weights, (mlm_loss, action_loss), strict=True)
            if value is not None
        ]
        loss = torch.stack(parts).sum() if parts else None
        return VLNPretrainingOutput(loss, mlm_loss, action_loss, mlm_logits, action_logits)

    def _actions(
        self, pooled: Tensor, candidates: Tensor | None, mask: Tensor | None, *, needed: bool
    ) -> Tensor | None:
        """Return action logits, or None in pointer mode when there are no candidates and no labels."""
        if self.action_mode == "cls":
            if candidates is not None or mask is not None:
                raise ValueError(
                    "candidates were given, but the head classifies actions: use action_mode='pointer'"
                )
            return self.action(pooled)
        if candidates is None:
            if needed or mask is not None:
                raise ValueError("the head points at candidates, but candidates are missing: give (B, A, H)")
            return None
        batch = len(pooled)
        if candidates.ndim != 3 or candidates.shape[::2] != (batch, self.hidden_size):
            raise ValueError(
                f"candidates have shape {tuple(candidates.shape)}; expected ({batch}, A, {self.hidden_size})"
            )
        scores = torch.einsum("bah,bh->ba", candidates, self.query(pooled)) / math.sqrt(self.hidden_size)
        if mask is None:
            return scores
        if mask.shape != scores.shape:
            raise ValueError(
                f"candidate_mask has shape {tuple(mask.shape)}; expected {tuple(scores.shape)}, True where "
                "there is a candidate"
            )
        # Not a large number: the probability of a missing candidate must be exactly 0 in every dtype.
        return scores.masked_fill(~mask.bool(), -math.inf)


def _check_tensor(name: str, value: Any) -> None:
    """Refuse what is not a tensor, and say what was probably meant."""
    if isinstance(value, Tensor):
        return
    hint = "a tensor"
    if name == "sequence_output" and (hasattr(value, "last_hidden_state") or isinstance(value, dict)):
        hint = "its last_hidden_state"
    elif name == "pooled" and hasattr(value, "pooler_output"):
        hint = "its pooler_output"
    elif isinstance(value, list | tuple):
        hint = "torch.tensor(...) of it"
    raise TypeError(f"{name} is a {type(value).__name__}; give {hint}")


def _may_look(x: Tensor) -> bool:
    """Return whether values can be checked without waiting for a device or breaking a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _labelled(name: str, labels: Tensor, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """Check labels, and return the flat positions of those that count, and these labels."""
    _check_tensor(name, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} are {labels.dtype}; expected integers")
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name} have shape {tuple(labels.shape)}; expected {shape}")
    flat = labels.flatten()
    positions = ((flat != IGNORED[0]) & (flat != IGNORED[1])).nonzero().squeeze(1)
    chosen = flat.index_select(0, positions).long()
    if _may_look(chosen) and len(chosen):
        low, high = (int(value) for value in chosen.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name} hold {low if low < 0 else high}; expected 0 to {classes - 1}, or "
                f"{IGNORED[0]} or {IGNORED[1]} for what has no label"
            )
    return positions, chosen


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy; without labels it is 0, and still has (zero) gradients."""
    # Half precision has too few digits for a sum over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Divided by a tensor: with torch.compile only the graph knows the number of labels.
    count = torch.ones_like(labels).sum().clamp(min=1)
    return functional.cross_entropy(logits, labels, reduction="sum") / count


def _accept_released(
    module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:  # signature of torch's hook
    """Rename released weights in place, before they are loaded."""
    # Full name -> name without the prefix of this module, and that of the release's DataParallel.
    names = {name: name[len(prefix) :].removeprefix("module.") for name in state if name.startswith(prefix)}
    if not any(name.startswith(("mlmhead.", "next_action.")) for name in names.values()):
        return
    tied = bool(module._tied)
    for full, name in names.items():
        value = state.pop(full)
        for released, ours in _RELEASED.items():
            if name.startswith(released) and not (tied and ours.startswith("mlm_decoder")):
                leaf = name[len(released) :]
                # TensorFlow's names of a norm, which early ports of BERT kept.
                state[prefix + ours + {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)] = value

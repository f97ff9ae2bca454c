"""The network of the pretraining: the encoder, and a head for words and actions."""

from torch import Tensor, nn

from fq_toolkit.layers.vln_pretraining_head import VLNPretrainingHead, VLNPretrainingOutput
from fq_toolkit.prevalent.model.encoder import PrevalentModel
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.steps import StepBatch
from fq_toolkit.prevalent.world.angles import VIEWS


class PretrainingNetwork(nn.Module):
    r"""The model and its heads.

    Both objectives read one forward of a time step: an instruction x with some words hidden, and the
    panorama s that the agent sees there,

    .. math::
        L_{MLM} = -E \log p(x_i \mid x_{\setminus i}, s), \quad L_{AP} = -E \log p(a \mid x, s), \quad
        L = w_0 L_{MLM} + w_1 L_{AP},

    with hidden words x_i and the action a that follows the annotated path. The paper has equal weights and
    reads the action from ``[CLS]``.

    Args:
        config: options.
        vocab_size: words.
        vision_size: width of a view with its angles.

    Source: PREVALENT, arXiv 2002.10638, section 4.3: attended masked language modelling, action prediction.
    """

    def __init__(self, config: PretrainingConfig, *, vocab_size: int, vision_size: int) -> None:
        super().__init__()
        self.action_from = config.action_from
        self.model = PrevalentModel(config.model_config(vocab_size=vocab_size, vision_size=vision_size))
        self.head = VLNPretrainingHead(
            config.hidden_size,
            vocab_size,
            VIEWS + 1 if config.action_label == "view36" else VIEWS,
            action_mode="pointer" if config.action_label == "candidate" else "cls",
            tie_to=self.model.get_input_embeddings(),
            loss_weights=config.loss_weights,
        )

    def forward(self, batch: StepBatch, ids: Tensor, labels: Tensor) -> VLNPretrainingOutput:
        """Guess the hidden words and the next actions.

        Args:
            batch: time steps.
            ids: int64 (B, L), their instructions with words hidden.
            labels: int64 (B, L), the hidden words, -1 elsewhere.
        """
        tokens = ids != 0  # padding is 0
        # The last layer computes only the word states that are read afterwards.
        needed = tokens if self.action_from == "words" else labels >= 0
        out = self.model(ids, tokens, batch.views, needed=needed)
        candidates = None if batch.candidates is None else self.model.vision_encoder(batch.candidates)
        pooled = out.pooled  # of [CLS], as released
        if self.action_from == "words":
            words = tokens.unsqueeze(-1)
            pooled = (out.language * words).sum(dim=1) / words.sum(dim=1)
        return self.head(out.language, pooled, labels, batch.actions, candidates, batch.candidate_mask)

"""What pretraining is worth: an agent fine-tuned from it, and one from scratch, at equal steps."""

import copy
from typing import NamedTuple

from fq_toolkit.prevalent.metrics.scoring import R2RScores
from fq_toolkit.prevalent.model.encoder import PrevalentModel
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.r2r.training import fine_tune
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.training.seeding import isolated_rng


class Benefit(NamedTuple):
    """Scores of two agents in unseen buildings, the same number of updates after they began to learn R2R.

    pretrained: of the agent that started from the pretrained model.
    scratch: of the agent that started from fresh weights of the same sizes.
    steps: updates of either.
    instructions: that were followed.
    """

    pretrained: R2RScores
    scratch: R2RScores
    steps: int
    instructions: int

    def __str__(self) -> str:
        lines = [
            f"  {name:<12} SR {100 * scores.SR:5.1f} %  SPL {100 * scores.SPL:5.1f} %  NE {scores.NE:.2f} m"
            for name, scores in (("pretrained", self.pretrained), ("from scratch", self.scratch))
        ]
        where = f"R2R on {self.instructions} instructions in unseen buildings"
        return "\n".join([f"{where}, {self.steps} updates of either agent:", *lines])


def measure_benefit(config: PretrainingConfig, model: PrevalentModel, vocabulary: Vocabulary) -> Benefit:
    """Fine-tune two agents for R2R in MiniWorld, alike in everything but the weights they start from.

    The model and the random state stay as they were.

    Args:
        config: options of the pretraining: worlds, seed, device.
        model: pretrained.
        vocabulary: its words.
    """
    options = R2RConfig(
        feature_dim=config.feature_dim,
        scans=config.scans,
        train_items=config.fine_tune_items,
        steps=config.fine_tune_steps,
        seed=config.seed,
        world_seed=config.world_seed,
        device=config.device,
    )
    with isolated_rng(config.seed):
        fresh = PrevalentModel(model.config)  # the same sizes, so only the weights differ
        scratch = fine_tune(options, model=fresh, vocabulary=vocabulary)["val_unseen"]
        start = copy.deepcopy(model)  # fine-tuning changes it, and the run still writes the pretrained one
        pretrained = fine_tune(options, model=start, vocabulary=vocabulary)["val_unseen"]
    return Benefit(pretrained, scratch, options.steps, options.validation_items)

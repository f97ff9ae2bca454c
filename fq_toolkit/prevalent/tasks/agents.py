"""Agents as the options describe them: on a pretrained model, or from scratch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.encoder import FOLDER, PrevalentModel
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.model.vocabulary_growth import add_words
from fq_toolkit.prevalent.tasks.config import NavigatorConfig
from fq_toolkit.prevalent.text.vocabulary import VOCABULARY, Vocabulary

ANGLES = 128  # numbers that describe the direction of a view


def build_follower(
    config: NavigatorConfig, texts: Sequence[str], *, feature_dim: int | None = None
) -> FollowerAgent:
    """Return an agent: from a pretraining run with the words that some texts add, or from scratch.

    Args:
        config: all options.
        texts: whose words it must know.
        feature_dim: width of the features it sees; by default that of generated ones.

    Raises:
        DataError: for a pretraining run that is unfinished, damaged, of another width of features, or with
            the vocabulary of another model.
    """
    feature_dim = config.synthetic_dim if feature_dim is None else feature_dim
    width = feature_dim + ANGLES
    if config.pretrained is not None:
        # The vocabulary lies beside the weights, because the rows of the embeddings are its words.
        model = PrevalentModel.from_pretrained(config.pretrained)
        words = Path(config.pretrained) / FOLDER / VOCABULARY
        vocabulary = Vocabulary.from_file(words)
        if len(vocabulary) != model.config.vocab_size:
            raise DataError(
                f"{words} has {len(vocabulary)} words, the model beside it {model.config.vocab_size}: it "
                "is the vocabulary of another model"
            )
        if model.config.vision_size != width:
            raise DataError(
                f"{config.pretrained} was pretrained on views of width {model.config.vision_size}; "
                f"these have {width} ({feature_dim} and {ANGLES} of angles)"
            )
        model, vocabulary = add_words(model, vocabulary, texts)
    else:
        # Only texts to train on: words of validation must be unknown, as they would be at test time.
        vocabulary = Vocabulary.train(texts)
        sizes = PrevalentConfig.tiny(vocab_size=len(vocabulary), vision_size=width)
        model = PrevalentModel(
            replace(
                sizes,
                text_layers=config.text_layers,
                cross_layers=config.cross_layers,
                # Two positions more than tokens: [CLS] and [SEP].
                max_positions=max(sizes.max_positions, config.text_limits.token_limit + 2),
            )
        )
    return build_agent(config, model, vocabulary)


def build_agent(config: NavigatorConfig, model: PrevalentModel, vocabulary: Vocabulary) -> FollowerAgent:
    """Return an agent on a given model, as the options describe it."""
    limits = config.text_limits
    return FollowerAgent(
        model,
        vocabulary,
        feature_dim=model.config.vision_size - ANGLES,
        hidden_size=config.hidden_size,
        dropout=config.dropout,
        cross_modal=config.cross_modal,
        max_tokens=limits.token_limit,
        long_instructions=limits.long_instructions,
    )

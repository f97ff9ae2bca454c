"""A pretrained agent learns new words and forgets none."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.encoder import PrevalentModel
from fq_toolkit.prevalent.model.vocabulary_growth import add_words
from fq_toolkit.prevalent.tasks.agents import build_follower
from fq_toolkit.prevalent.tasks.ndh.config import NDHConfig
from fq_toolkit.prevalent.text.vocabulary import Vocabulary

WORDS = st.lists(st.sampled_from(["sofa", "lamp", "<NAV>", "<TAR>", "where", "left", "."]), max_size=6)


def pretrained(vocabulary: Vocabulary) -> PrevalentModel:
    torch.manual_seed(0)
    return PrevalentModel(PrevalentConfig.tiny(vocab_size=len(vocabulary), vision_size=192)).eval()


@given(words=WORDS)
@settings(max_examples=15, deadline=None)
def test_old_texts_mean_what_they_did(words: list[str]) -> None:
    old = Vocabulary.train(["go left to the sofa ."])
    model = pretrained(old)
    grown, vocabulary = add_words(model, old, [" ".join(words)])
    text = "left to the sofa ."
    assert vocabulary.encode(text) == old.encode(text)
    ids, views = torch.tensor([old.encode(text, length=10)]), torch.randn(1, 36, 192)
    torch.testing.assert_close(
        grown.eval()(ids, ids > 0, views).language, model(ids, ids > 0, views).language
    )
    assert vocabulary.unk not in vocabulary.pieces(" ".join(words))
    assert grown.config.vocab_size == len(vocabulary) == len(set(old.tokens) | {w.lower() for w in words})


def test_nothing_new_changes_nothing() -> None:
    old = Vocabulary.train(["go left"])
    model = pretrained(old)
    assert add_words(model, old, ["left go go"]) == (model, old)


def test_pieces_of_known_words_are_not_new() -> None:
    old = Vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "tar", "so", "##fa"])
    assert add_words(pretrained(old), old, ["<TAR> sofa"])[1] == old


def test_an_agent_from_pretraining_reads_dialogs(tmp_path: Path) -> None:
    old = Vocabulary.train(["go left to the sofa ."])
    folder = pretrained(old).save_pretrained(tmp_path / "model")
    old.save(folder / "vocabulary.json")
    agent = build_follower(NDHConfig(pretrained=str(tmp_path), feature_dim=64), ["<TAR> sofa <NAV> where ?"])
    assert agent.vocabulary.tokens[: len(old)] == old.tokens
    assert {"<tar>", "<nav>", "where", "?"} <= set(agent.vocabulary.tokens)
    weights = agent.model.get_input_embeddings().weight
    assert torch.equal(weights[: len(old)], pretrained(old).get_input_embeddings().weight)
    with pytest.raises(DataError, match="views of width 192; these have 160"):
        build_follower(NDHConfig(pretrained=str(tmp_path), feature_dim=32), ["go"])

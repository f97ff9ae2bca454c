"""The speaker: what it says of a path, that it always ends, and that it learns."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import BatchedNavEnv, DataError, MiniWorld
from fq_toolkit.prevalent.model.speaker import Speaker
from fq_toolkit.prevalent.tasks.speaker.evaluation import Told, bleu
from fq_toolkit.prevalent.text.vocabulary import Vocabulary
from fq_toolkit.prevalent.world.path_views import PathViews, observe_paths


@pytest.fixture(scope="module")
def env(mini: MiniWorld) -> BatchedNavEnv:
    return BatchedNavEnv(mini, mini.features(), device="cpu")


@pytest.fixture(scope="module")
def vocabulary(mini: MiniWorld) -> Vocabulary:
    return Vocabulary.train(item.instruction for item in mini.items(20))


def make(vocabulary: Vocabulary, seed: int = 0) -> Speaker:
    torch.manual_seed(seed)
    return Speaker(vocabulary, feature_dim=64, hidden_size=16, word_size=8).eval()


def test_scores_do_not_depend_on_the_rest_of_the_batch(
    mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary
) -> None:
    speaker, items = make(vocabulary), sorted(mini.items(8), key=lambda item: len(item.path))
    tokens = speaker.encode([item.instruction for item in items])
    together = speaker(observe_paths(env, items), tokens)
    alone = speaker(observe_paths(env, items[:1]), tokens[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_cross_entropy_of_real_words(
    mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary
) -> None:
    speaker, items = make(vocabulary), mini.items(4)
    tokens = speaker.encode([item.instruction for item in items])
    scores = speaker(observe_paths(env, items), tokens).detach()
    total, count = 0.0, 0
    for row, words in zip(scores.log_softmax(-1), tokens, strict=True):
        for position, word in enumerate(words[1:].tolist()):
            if word:
                total, count = total - float(row[position, word]), count + 1
    assert float(speaker.loss(scores, tokens)) == pytest.approx(total / count, rel=1e-5)


def test_speaking_step_by_step_is_teacher_forcing_on_its_own_words(
    mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary
) -> None:
    speaker, paths = make(vocabulary, seed=3), observe_paths(env, mini.items(4))
    said = speaker.speak(paths, max_words=12)
    tokens = torch.tensor([vocabulary.encode(text, length=14) for text in said])
    never = sorted(vocabulary.special_ids - {vocabulary.sep})
    scores = speaker(paths, tokens).index_fill(2, torch.tensor(never), -torch.inf)
    scores[:, 0, vocabulary.sep] = -torch.inf
    for row, words in zip(scores, tokens[:, 1:], strict=True):
        spoken = int(((words != 0) & (words != vocabulary.sep)).sum())
        assert row.argmax(-1)[:spoken].tolist() == words[:spoken].tolist()


@given(seed=st.integers(0, 10**6), limit=st.integers(1, 15), sample=st.booleans())
@settings(max_examples=20, deadline=None)
def test_it_ends_surely_and_says_words_only(seed: int, limit: int, sample: bool) -> None:
    vocabulary = Vocabulary.train(["go left , then right to the sofa ."])
    speaker = make(vocabulary, seed)
    generator = torch.Generator().manual_seed(seed)
    width = 64 + 128
    paths = PathViews(
        torch.randn(3, 4, width, generator=generator),
        torch.randn(3, 4, 36, width, generator=generator),
        torch.tensor([[True] * 4, [True] + [False] * 3, [True, True, False, False]]),
    )
    said = speaker.speak(paths, sample=sample, max_words=limit, generator=generator)
    known = set(vocabulary.tokens) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    for text in said:
        assert 1 <= len(text.split()) <= limit
        assert set(text.split()) <= known


def test_draws_repeat_with_their_generator(
    mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary
) -> None:
    speaker, paths = make(vocabulary), observe_paths(env, mini.items(4))

    def draw(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return speaker.speak(paths, sample=True, max_words=10, generator=generator)

    assert draw(1) == draw(1) != draw(2)
    assert speaker.speak(paths, max_words=10) == speaker.speak(paths, max_words=10)


def test_samples_follow_the_distribution(vocabulary: Vocabulary) -> None:
    speaker, count = make(vocabulary), 4000
    paths = PathViews(
        torch.zeros(count, 1, 192), torch.zeros(count, 1, 36, 192), torch.ones(count, 1, dtype=torch.bool)
    )
    said = speaker.speak(paths, sample=True, max_words=1, generator=torch.Generator().manual_seed(0))
    first = speaker(PathViews(*(part[:1] for part in paths)), torch.tensor([[vocabulary.cls, 0]]))[0, 0]
    expected = (
        first.detach().index_fill(0, torch.tensor(sorted(vocabulary.special_ids)), -torch.inf).softmax(-1)
    )
    for word in range(len(vocabulary)):
        share = said.count(vocabulary.tokens[word]) / count
        assert abs(share - float(expected[word])) < 5 * (float(expected[word]) / count) ** 0.5 + 1e-3


def test_it_is_saved_and_read_again(
    mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    speaker = make(vocabulary)
    again = Speaker.from_pretrained(speaker.save_pretrained(tmp_path / "run" / "speaker").parent)
    paths = observe_paths(env, mini.items(3))
    assert again.speak(paths, max_words=9) == speaker.speak(paths, max_words=9)
    assert again.settings == speaker.settings
    assert again.vocabulary == speaker.vocabulary
    weights = tmp_path / "run" / "speaker" / "speaker.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="speaker"):
        Speaker.from_pretrained(tmp_path / "run")
    weights.unlink()
    with pytest.raises(DataError, match="does not exist"):
        Speaker.from_pretrained(tmp_path / "run")


def test_it_learns_what_it_is_told(mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    items = mini.items(6)
    speaker = Speaker(vocabulary, feature_dim=64, hidden_size=32, word_size=16, dropout=0.0)
    paths, tokens = observe_paths(env, items), speaker.encode([item.instruction for item in items])
    optimizer = torch.optim.Adam(speaker.parameters(), lr=1e-2)
    for _ in range(160):
        loss = speaker.loss(speaker(paths, tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = speaker.eval().speak(paths)
    told = [Told(item.instr_id, text, (item.instruction,)) for item, text in zip(items, said, strict=True)]
    assert bleu(told) > 60


def test_impossible_settings_are_refused(mini: MiniWorld, env: BatchedNavEnv, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="hidden_size must be even"):
        Speaker(vocabulary, feature_dim=64, hidden_size=7)
    with pytest.raises(ValueError, match="max_words"):
        make(vocabulary).speak(observe_paths(env, mini.items(1)), max_words=0)
    long = PathViews(torch.zeros(1, 101, 192), torch.zeros(1, 101, 36, 192), torch.ones(1, 101).bool())
    with pytest.raises(ValueError, match="101 steps"):
        make(vocabulary).see(long)

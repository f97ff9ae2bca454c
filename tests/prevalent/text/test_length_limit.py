"""Instructions that are too long: laws of fitting, and what a reader does with them."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fq_toolkit.prevalent import DataError, MiniWorld, PrevalentModel, Vocabulary, collect_triplets
from fq_toolkit.prevalent.data.triplet_files import fit_triplets
from fq_toolkit.prevalent.model.config import PrevalentConfig
from fq_toolkit.prevalent.model.follower import FollowerAgent
from fq_toolkit.prevalent.tasks.hanna.config import HannaConfig
from fq_toolkit.prevalent.tasks.hanna.config import preset as hanna_preset
from fq_toolkit.prevalent.tasks.pretraining.config import PretrainingConfig
from fq_toolkit.prevalent.tasks.pretraining.config import preset as pretraining_preset
from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig
from fq_toolkit.prevalent.tasks.r2r.config import preset as r2r_preset
from fq_toolkit.prevalent.tasks.speaker.config import SpeakerConfig
from fq_toolkit.prevalent.tasks.speaker.config import preset as speaker_preset
from fq_toolkit.prevalent.text.length_limit import fit_encodings, keep_end, keep_start
from fq_toolkit.training.config import from_mapping, to_json
from fq_toolkit.training.errors import ConfigError

ENCODINGS = st.lists(st.lists(st.integers(1, 9), max_size=9), max_size=5)
CONFIGS: list[Any] = [PretrainingConfig, R2RConfig, HannaConfig, SpeakerConfig]


@given(encodings=ENCODINGS, limit=st.integers(1, 9))
def test_cutting_keeps_the_start_of_what_is_too_long_and_counts_it(
    encodings: list[list[int]], limit: int
) -> None:
    names = [str(number) for number in range(len(encodings))]
    options: dict[str, Any] = {"source": "f", "limit": limit}
    fitted = fit_encodings(encodings, names, **options, long_instructions="cut")
    long = [name for name, encoding in zip(names, encodings, strict=True) if len(encoding) > limit]
    assert fitted.cut == len(long)
    assert fitted.encodings == [encoding[:limit] for encoding in encodings]
    assert fit_encodings(fitted.encodings, names, **options) == (fitted.encodings, 0)
    if long:
        with pytest.raises(
            DataError, match=f"f: instruction '{long[0]}' has .* more than the limit of {limit}"
        ):
            fit_encodings(encodings, names, **options)


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(DataError) as error:
        fit_encodings([[1] * 4, [1] * 9, [1]], ["7_0", "7_1", "7_2"], source="R2R_train.json", limit=3)
    assert str(error.value) == (
        "R2R_train.json: instruction '7_0' has 4 tokens, more than the limit of 3 (one of 2 such "
        "instructions): raise the limit (--max-tokens 9 for the longest), or have such instructions cut and "
        "counted (--long-instructions cut)"
    )


@given(
    words=st.lists(st.sampled_from(["go", "sofa,", "<nav>", "o'clock"]), max_size=8), limit=st.integers(0, 9)
)
def test_whole_words_are_kept_from_one_side_as_long_as_they_fit(words: list[str], limit: int) -> None:
    vocabulary = Vocabulary.train(["go sofa , o ' clock"])
    text = " ".join(words)
    for kept, side in ((keep_start(text, vocabulary, limit), 1), (keep_end(text, vocabulary, limit), -1)):
        count = len(kept.split())
        assert kept.split()[::side] == words[::side][:count]
        assert len(vocabulary.pieces(kept)) <= limit
        if count < len(words):
            assert len(vocabulary.pieces(" ".join(words[::side][: count + 1]))) > limit


def test_an_agent_refuses_what_it_cannot_read_or_cuts_it() -> None:
    world = MiniWorld(0, feature_dim=8)
    item = world.items(1)[0]._replace(instr_id="4_2", instruction="go " * 30)
    vocabulary = Vocabulary.train(["go"])
    sizes = dataclasses.replace(
        PrevalentConfig.tiny(vocab_size=len(vocabulary), vision_size=136), max_positions=32
    )

    def agent(**options: Any) -> FollowerAgent:
        torch.manual_seed(0)
        return FollowerAgent(PrevalentModel(sizes), vocabulary, feature_dim=8, dropout=0.0, **options).eval()

    with pytest.raises(DataError, match="instruction '4_2' has 30 tokens, more than the limit of 20"):
        agent(max_tokens=20).read([item])
    cut = agent(max_tokens=20, long_instructions="cut").read([item])
    assert torch.equal(cut.text, agent(max_tokens=30).read([item._replace(instruction="go " * 20)]).text)
    assert agent(max_tokens=30).read([item]).mask.shape == (1, 32)
    with pytest.raises(
        ConfigError, match=r"max_tokens is 31, .* the model has 32 positions: give at most 30"
    ):
        agent(max_tokens=31)


@given(limit=st.integers(60, 100))
def test_triplets_are_those_of_their_instructions_whatever_the_limit(limit: int) -> None:
    world = MiniWorld(0)
    items = [i._replace(instruction="go on " * n) for i, n in zip(world.items(3), (3, 35, 45), strict=True)]
    vocabulary = Vocabulary.train(["go on"])

    def collected(tokens: int) -> list[Any]:
        length = tokens + 2
        return collect_triplets(
            world, items, lambda text: vocabulary.encode(text, length=length, cut="end"), length=length
        )

    fitted = fit_triplets(collected(100), source="f", max_tokens=limit, long_instructions="cut")
    assert fitted.triplets == collected(limit)
    assert fitted.cut == sum(tokens > limit for tokens in (6, 70, 90))
    with pytest.raises(DataError, match=r"item '.*': the text has 90 tokens, more than the limit of 78"):
        collect_triplets(world, items, vocabulary.encode)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_options_go_to_json_and_back(config: Any) -> None:
    changed = config(max_tokens=90, long_instructions="cut")
    values = json.loads(to_json(changed, trainer="t"))
    del values["trainer"]
    assert from_mapping(config, values, source="f") == changed
    old = {name: value for name, value in values.items() if name not in ("long_instructions", "max_tokens")}
    assert from_mapping(config, old, source="f") == config()
    assert (config().token_limit, config().long_instructions) == (78, "refuse")
    with pytest.raises(ConfigError, match=r"max_tokens is 0; expected at least 1"):
        config(max_tokens=0)
    with pytest.raises(ConfigError, match=r"long_instructions is 'shorten'; expected one of 'refuse', 'cut'"):
        from_mapping(config, {"long_instructions": "shorten"}, source="f")


def test_presets_of_released_code_cut_as_it_does() -> None:
    released = [
        pretraining_preset("released"),
        r2r_preset("r2r"),
        hanna_preset("hanna"),
        speaker_preset("r2r"),
    ]
    assert {(config.token_limit, config.long_instructions) for config in released} == {(78, "cut")}

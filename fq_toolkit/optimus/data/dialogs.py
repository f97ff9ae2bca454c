"""Contexts and responses: an embedded corpus with known right answers, and files of dialogs."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fq_toolkit.optimus.data.text_files import (
    EMPTY,
    JSON_LINES,
    LINES,
    NO_TAB,
    TABLES,
    Skip,
    json_object,
    read_lines,
    reasons,
    tidy,
)
from fq_toolkit.training.errors import ConfigError

EMBEDDED = "embedded"
TURN = "__eou__"  # what ends a turn in DailyDialog's files
_EVERY = 20
_HELD_OUT, _SPLIT_SEED = 0.15, 20200410


class Dialogs(NamedTuple):
    """Pairs of context and response; a context may occur more than once.

    contexts: what was said before.
    responses: what is said then.
    """

    contexts: list[str]
    responses: list[str]

    def grouped(self) -> dict[str, list[str]]:
        """Return context -> its different responses."""
        responses: dict[str, list[str]] = {}
        for context, response in zip(self.contexts, self.responses, strict=True):
            known = responses.setdefault(context, [])
            if response not in known:
                known.append(response)
        return responses


class DialogCorpus(NamedTuple):
    """Pairs to train on and pairs to measure with.

    skipped: reason -> number of lines left out, of both parts; of ``valid`` where it is another file.
    answers_are_known: whether the responses of a context are all its right ones.
    """

    train: Dialogs
    valid: Dialogs
    skipped: dict[str, int]
    answers_are_known: bool = False


def questions() -> dict[str, tuple[str, ...]]:
    """Return question -> all its right answers, of the embedded corpus.

    Example:
        >>> questions()["do you like tea ?"]
        ('yes , i like tea .', 'no , i do not like tea .')
    """
    answers: dict[str, tuple[str, ...]] = {}
    for topic in _tables()["topics"]:
        for row, word in enumerate(topic["words"]):
            for asked in topic["questions"]:
                # Each word has its own few of the values, so that an answer can be right or wrong.
                first, values = row * asked["stride"], asked["values"]
                chosen = [values[(first + k) % len(values)] for k in range(asked["count"])]
                answers[asked["question"].format(word)] = tuple(
                    answer.format(word, value) for value in chosen for answer in asked["answers"]
                )
    return answers


@cache
def _tables() -> dict[str, Any]:
    """Return the words of the embedded corpus."""
    return dict(json.loads((files(__package__) / "dialogs.json").read_text(encoding="utf-8")))


def embedded_dialogs() -> DialogCorpus:
    """Return the embedded corpus: questions after greetings, with some combinations held out.

    The split never changes, so that figures of different runs can be compared.
    """
    asked, greetings = questions(), _tables()["greetings"]
    contexts = [f"{greeting} {question}".strip() for greeting in greetings for question in asked]
    answers = [rows for _ in greetings for rows in asked.values()]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(contexts))
    hidden = set(order[: round(_HELD_OUT * len(contexts))].tolist())

    def part(held_out: bool) -> Dialogs:
        pairs = [
            (contexts[i], answer)
            for i in range(len(contexts))
            if (i in hidden) == held_out
            for answer in answers[i]
        ]
        return Dialogs([context for context, _ in pairs], [answer for _, answer in pairs])

    return DialogCorpus(part(False), part(True), {}, answers_are_known=True)


def load_dialogs(
    data: str,
    valid: str | None = None,
    *,
    turns: int = 1,
    limit: int = 0,
    seed: int = 0,
    measure_on: str | None = None,
) -> DialogCorpus:
    """Load pairs of context and response, those to train on in an order that is shuffled by ``seed``.

    Args:
        data: ``"embedded"``; a table CONTEXT-tab-RESPONSE (.tsv, .tsv.gz); JSON lines (.jsonl, .jsonl.gz)
            with ``context``, a text or a list of turns, and ``response``, a text or a list of right ones; or
            dialogs, one a line, each turn ended by ``__eou__`` as in DailyDialog (.txt, .txt.gz).
        valid: the pairs to measure with; None takes every twentieth context of ``data``.
        turns: of a dialog or of a list of turns, how many before the response make the context.
        limit: train on the first so many pairs, after shuffling; 0 for all.
        seed: of the order.
        measure_on: other pairs to measure with, in place of those that are kept from training.

    Raises:
        ConfigError: when something cannot be read or holds no pair.
    """
    if data == EMBEDDED:
        if valid is not None:
            raise ConfigError("the embedded dialogs have their own held-out pairs: leave out --valid")
        corpus = embedded_dialogs()
    else:
        skipped: Counter[str] = Counter()
        pairs = _read(data, turns, skipped)
        if valid is not None:
            corpus = DialogCorpus(pairs, _read(valid, turns, skipped), dict(skipped))
        else:
            # By context: other responses to a held-out context would give it away.
            held_out = set(list(pairs.grouped())[::_EVERY])
            parts = [_where(pairs, held_out, inside) for inside in (False, True)]
            if not parts[0].contexts:
                raise ConfigError(
                    f"{data} has one context; give pairs to measure with by --valid, or more contexts"
                )
            corpus = DialogCorpus(parts[0], parts[1], dict(skipped))
    order = np.random.default_rng(seed).permutation(len(corpus.train.contexts))[: limit or None]
    train = Dialogs(*([rows[i] for i in order] for rows in corpus.train))
    if measure_on is not None:
        skipped = Counter()
        return DialogCorpus(train, _read(measure_on, turns, skipped), dict(skipped))
    return corpus._replace(train=train)


def _where(pairs: Dialogs, contexts: set[str], inside: bool) -> Dialogs:
    chosen = [i for i, context in enumerate(pairs.contexts) if (context in contexts) == inside]
    return Dialogs(*([rows[i] for i in chosen] for rows in pairs))


def _read(source: str, turns: int, skipped: Counter[str]) -> Dialogs:
    if source.endswith(TABLES):
        read = _from_table
    elif source.endswith(JSON_LINES):
        read = _from_json
    elif source.endswith(LINES):
        read = _from_dialog
    else:
        raise ConfigError(
            f"data is {source!r}; expected {EMBEDDED!r} or a file ending in "
            f"{', '.join((*TABLES, *JSON_LINES, *LINES))}"
        )
    contexts, responses = [], []
    for line in read_lines(Path(source)):
        if isinstance(line, Skip) or not line.strip():
            skipped[str(line) if isinstance(line, Skip) else EMPTY] += 1
            continue
        try:
            pairs = [tuple(map(tidy, pair)) for pair in read(line, turns)]
        except _Unusable as reason:
            skipped[str(reason)] += 1
            continue
        for context, response in pairs:
            # A pair is used whole or not at all.
            if skip := next((part for part in (context, response) if isinstance(part, Skip)), None):
                skipped[str(skip)] += 1
            elif context and response:
                contexts.append(context)
                responses.append(response)
            else:
                skipped[EMPTY] += 1
    if not contexts:
        raise ConfigError(f"{source} holds no pair of context and response ({reasons(skipped)})")
    return Dialogs(contexts, responses)


class _Unusable(Exception):
    """A line that holds no pair; the message is the reason."""


def _from_table(line: str, turns: int) -> Iterable[tuple[str, str]]:
    context, tab, response = line.partition("\t")
    if not tab:
        raise _Unusable(NO_TAB)
    return [(context, response)]


def _from_json(line: str, turns: int) -> Iterable[tuple[str, str]]:
    row = json_object(line)
    if isinstance(row, Skip):
        raise _Unusable(row)
    context, responses = row.get("context"), row.get("response")
    if isinstance(context, list) and all(isinstance(turn, str) for turn in context):
        context = _joined(context, turns)
    responses = [responses] if isinstance(responses, str) else responses
    if not isinstance(context, str) or not isinstance(responses, list):
        raise _Unusable("without 'context' and 'response'")
    if not responses or not all(isinstance(response, str) for response in responses):
        raise _Unusable("without 'context' and 'response'")
    return [(context, response) for response in responses]


def _from_dialog(line: str, turns: int) -> Iterable[tuple[str, str]]:
    said = [turn.strip() for turn in line.split(TURN) if turn.strip()]
    if len(said) < 2:
        raise _Unusable("dialogs of one turn")
    return [(_joined(said[:i], turns), said[i]) for i in range(1, len(said))]


def _joined(said: Sequence[str], turns: int) -> str:
    return f" {TURN} ".join(said[-turns:])

"""Instructions that are too long: refused by name, or cut and counted; the same for all trainers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.prevalent.text.vocabulary import LONGEST, Vocabulary
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.training.bounds import Positive

LongInstructions = Literal["refuse", "cut"]
_REMEDY = (
    "raise the limit (--max-tokens {longest} for the longest), or have such instructions cut and counted "
    "(--long-instructions cut)"
)


@dataclass(frozen=True)
class InstructionLimit:
    """The options of trainers that read instructions."""

    max_tokens: Positive[int] | None = None
    """Longest instruction in tokens, without [CLS] and [SEP]; by default 78, as released."""
    long_instructions: LongInstructions = "refuse"
    """What happens to longer ones: refuse names file and item and ends; cut drops their end and counts them,
    as released code does without counting."""

    @property
    def token_limit(self) -> int:
        """Return the length of the longest instruction, without ``[CLS]`` and ``[SEP]``."""
        return LONGEST if self.max_tokens is None else self.max_tokens

    @property
    def text_limits(self) -> "InstructionLimit":
        """Return these options, with which an agent is built."""
        return self


class Fitted(NamedTuple):
    """Encodings of at most the limit, and how many were longer.

    encodings: token numbers without ``[CLS]`` and ``[SEP]``.
    cut: how many lost their end.
    """

    encodings: list[Sequence[Any]]
    cut: int


def fit_encodings(
    encodings: Iterable[Sequence[Any]],
    names: Iterable[str],
    *,
    source: str,
    limit: int,
    long_instructions: LongInstructions = "refuse",
    remedy: str = _REMEDY,
) -> Fitted:
    """Refuse encodings that are longer than a limit, or cut them at their end and count them.

    Args:
        encodings: encodings of instructions, without ``[CLS]`` and ``[SEP]``.
        names: names of the instructions.
        source: file or name of a world, for messages.
        limit: largest number of tokens.
        long_instructions: ``"refuse"`` or ``"cut"``.
        remedy: what the user can do, for messages; ``{longest}`` stands for the length of the longest.

    Raises:
        DataError: naming source, instruction, its tokens and the limit.

    Example:
        >>> fit_encodings([[5, 6, 7], [8]], ["1_0", "1_1"], source="a", limit=2, long_instructions="cut")
        Fitted(encodings=[[5, 6], [8]], cut=1)
    """
    encodings = list(encodings)
    long = [
        (name, len(encoding))
        for name, encoding in zip(names, encodings, strict=True)
        if len(encoding) > limit
    ]
    # Refused by default: a cut instruction has lost where to stop, and nothing would say so.
    if long and long_instructions == "refuse":
        name, count = long[0]
        # The remedy names the longest of all, so that one change of the option is enough.
        others = f" (one of {len(long)} such instructions)" if len(long) > 1 else ""
        raise DataError(
            f"{source}: instruction {name!r} has {count} tokens, more than the limit of {limit}{others}: "
            + remedy.format(longest=max(count for _, count in long))
        )
    return Fitted([encoding[:limit] for encoding in encodings], len(long))


def fit_items(
    items: Sequence[NavItem],
    vocabulary: Vocabulary,
    *,
    source: str,
    limit: int,
    long_instructions: LongInstructions,
) -> Fitted:
    """Encode the instructions of some items; see `fit_encodings`.

    Args:
        items: tasks.
        vocabulary: the tokens in which the length is measured.
        source: file or name of a world, for messages.
        limit: largest number of tokens.
        long_instructions: ``"refuse"`` or ``"cut"``.

    Raises:
        DataError: as `fit_encodings`.
    """
    return fit_encodings(
        [vocabulary.pieces(item.instruction) for item in items],
        [item.instr_id for item in items],
        source=source,
        limit=limit,
        long_instructions=long_instructions,
    )


def check_lengths(
    items: Iterable[NavItem],
    limit: int,
    *,
    tokenize: Callable[[str], Sequence[object]] = str.split,
    source: str,
) -> None:
    """Check that no instruction is longer than a limit.

    Args:
        items: the tasks.
        limit: largest number of tokens.
        tokenize: text -> tokens; by default words.
        source: file or name, for messages.

    Raises:
        DataError: naming the source, the item and both numbers.
    """
    items = list(items)
    fit_encodings(
        [tokenize(item.instruction) for item in items],
        [item.instr_id for item in items],
        source=source,
        limit=limit,
        remedy="raise the limit to {longest}, or cut the instruction before loading",
    )


def keep_start(text: str, vocabulary: Vocabulary, limit: int = LONGEST) -> str:
    """Return the leading words of a text that fit the limit; a speaker's instruction may end anywhere.

    Args:
        text: any text.
        vocabulary: the tokens in which the length is measured.
        limit: largest number of tokens.

    Example:
        >>> from fq_toolkit.prevalent import Vocabulary
        >>> keep_start("one two three", Vocabulary.train(["one two three"]), limit=2)
        'one two'
    """
    return " ".join(_fitting(text.split(), vocabulary, limit))


def keep_end(text: str, vocabulary: Vocabulary, limit: int = LONGEST) -> str:
    """Return the trailing words of a text that fit the limit; a dialog loses its oldest words first.

    Args:
        text: a dialog, or any text.
        vocabulary: the tokens in which the length is measured.
        limit: largest number of tokens.

    Example:
        >>> from fq_toolkit.prevalent import Vocabulary
        >>> keep_end("one two three", Vocabulary.train(["one two three"]), limit=2)
        'two three'
    """
    return " ".join(reversed(_fitting(text.split()[::-1], vocabulary, limit)))  # from the last word back


def _fitting(words: Iterable[str], vocabulary: Vocabulary, limit: int) -> list[str]:
    """Return the words before the first that exceeds the limit."""
    # Word by word, so that no word is cut into pieces and the text of a tag stays whole.
    kept: list[str] = []
    for word in words:
        limit -= len(vocabulary.pieces(word))
        if limit < 0:
            break
        kept.append(word)
    return kept

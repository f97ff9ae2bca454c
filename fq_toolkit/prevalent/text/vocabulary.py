"""Vocabulary: the words of navigation instructions, and instructions as token ids.

The `tokenizers` library splits texts into words and words into pieces. Own code are only the tags of dialogs,
which BERT would split at ``<``, and vocabularies of whole words.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from fq_toolkit.prevalent.files import DataError, check_readable, read_json
from fq_toolkit.training.atomic import write_atomic

VOCABULARY = "vocabulary.json"
"""Name of the file of words in the folder of a model."""

LONGEST = 78
"""Tokens of the longest instruction, as released; with ``[CLS]`` and ``[SEP]`` they are 80."""

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TAG = re.compile(r"(<\w+>)")
_LONGEST_WORD = 100  # characters; longer words are unknown, as in BERT


class Vocabulary:
    """Tokens and their numbers; splits texts into them by WordPiece, the longest match first.

    Text is lower-cased and split as in BERT: accents are dropped, punctuation and Chinese characters are
    words of their own. A tag such as ``<nav>`` is one token if the vocabulary has it. With BERT's vocabulary
    the pieces are BERT's; in a vocabulary trained here every word is whole and unknown words are ``[UNK]``.

    Args:
        tokens: all tokens in the order of their numbers; ``[PAD]`` is number 0.

    Raises:
        DataError: for a repeated token, or without one of ``[PAD] [UNK] [CLS] [SEP] [MASK]``.

    Example:
        >>> vocabulary = Vocabulary.train(["turn left .", "go straight , then turn right ."])
        >>> vocabulary.encode("Turn RIGHT, sir.", length=8)
        [2, 6, 10, 7, 1, 5, 3, 0]
        >>> vocabulary.decode(vocabulary.encode("turn left ."))
        'turn left .'
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        if len(self._numbers) != len(self.tokens):  # one word with two numbers
            twice = next(t for number, t in enumerate(self.tokens) if self._numbers[t] != number)
            raise DataError(f"the token {twice!r} occurs twice in the vocabulary")
        missing = [token for token in SPECIALS if token not in self._numbers]
        if missing or self.tokens[0] != SPECIALS[0]:  # models treat id 0 as padding
            raise DataError(
                f"a vocabulary needs the tokens {' '.join(SPECIALS)}, [PAD] as number 0; "
                + (f"missing: {' '.join(missing)}" if missing else f"number 0 is {self.tokens[0]!r}")
            )
        self.pad, self.unk, self.cls, self.sep, self.mask = (self._numbers[token] for token in SPECIALS)

    @classmethod
    def train(cls, instructions: Iterable[str], *, min_count: int = 1) -> "Vocabulary":
        """Build the vocabulary of some instructions: the most frequent words first, ties in lexical order.

        Args:
            instructions: texts of the training split.
            min_count: rarer words are left out.
        """
        # Ties in lexical order: the numbers, and with them a run, do not depend on the order of the texts.
        counts = Counter(word for text in instructions for word in _words(text))
        words = sorted((word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w))
        return cls([*SPECIALS, *words])

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary: a file of `save`, or BERT's ``vocab.txt`` with one token per line.

        Raises:
            DataError: naming the file, if it is missing or not a vocabulary.
        """
        path = Path(path)
        check_readable(path)
        try:
            if path.suffix == ".json":  # ours; a token of vocab.txt could be any text
                tokens = read_json(path)
                if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
                    raise DataError("expected a JSON list of tokens")
            else:
                tokens = path.read_text(encoding="utf-8").splitlines()
            return cls(tokens)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "Vocabulary":
        """Return the vocabulary of a WordPiece tokenizer of transformers, such as BERT's.

        Raises:
            DataError: if it lacks one of BERT's special tokens.
        """
        numbers: dict[str, int] = tokenizer.get_vocab()
        return cls(sorted(numbers, key=numbers.__getitem__))

    def save(self, path: str | Path) -> Path:
        """Write the tokens as a JSON list.

        Returns:
            The file.

        Raises:
            RunError: if it cannot be written.
        """
        path = Path(path)
        write_atomic(path, (json.dumps(self.tokens, ensure_ascii=False, indent=0) + "\n").encode())
        return path

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the numbers of ``[...]`` tokens, which are never masked nor drawn as a random word."""
        return frozenset(n for n, token in enumerate(self.tokens) if re.fullmatch(r"\[\w+\]", token))

    def pieces(self, text: str) -> list[int]:
        """Return the token numbers of a text, without ``[CLS]`` and ``[SEP]``."""
        numbers: list[int] = []
        for part, is_tag in self._parts(text):
            if is_tag:
                numbers.append(self._numbers[part])
            elif part:
                numbers += self._tokenizer.encode(part, add_special_tokens=False).ids
        return numbers

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the tags that the vocabulary has, and the texts between them."""
        between = ""
        for part in _TAG.split(text):
            if part[:1] == "<" and part.lower() in self._numbers:
                yield between, False
                yield part.lower(), True
                between = ""
            else:
                between += part  # an unknown tag is text, as in BERT: "<", its name, ">"
        yield between, False

    @cached_property
    def _tokenizer(self) -> Any:
        """Return the WordPiece tokenizer of these tokens."""
        # Imported on first use: many runs read encoded texts only, and the library takes time to load.
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece

        model = WordPiece(self._numbers, unk_token=SPECIALS[1], max_input_chars_per_word=_LONGEST_WORD)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = _bert()
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        # The tokenizer is rebuilt in the other process: half the size, and none of its threads' state.
        return {name: value for name, value in self.__dict__.items() if name != "_tokenizer"}

    def encode(
        self, text: str, *, length: int = LONGEST + 2, cut: Literal["end", "start"] | None = None
    ) -> list[int]:
        """Return ``[CLS] text [SEP]`` padded to a length.

        Args:
            text: an instruction or a dialog.
            length: length of the result.
            cut: which side of a text that is too long is dropped; dialogs drop the start. None refuses it.

        Raises:
            ValueError: for a length without room for a token, or a text that is too long.
        """
        if length < 3:
            raise ValueError(f"length must be at least 3, got {length}")
        body, room = self.pieces(text), length - 2
        if cut is None and len(body) > room:
            raise ValueError(
                f"the text has {len(body)} tokens, more than the limit of {room}: raise length to "
                f"{len(body) + 2}, or give cut='end' or 'start'"
            )
        body = body[:room] if cut != "start" else body[max(0, len(body) - room) :]
        return self.frame([body], length=length)[0]

    def frame(self, bodies: Sequence[Sequence[int]], *, length: int | None = None) -> list[list[int]]:
        """Return ``[CLS] body [SEP]`` of each body, padded to one length.

        Args:
            bodies: texts as `pieces` returns them.
            length: at least the length of the longest body with both marks, which is the default.
        """
        rows = [[self.cls, *body, self.sep] for body in bodies]
        length = max(map(len, rows)) if length is None else length
        return [row + [self.pad] * (length - len(row)) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token numbers, without padding, ``[CLS]`` and ``[SEP]``."""
        left_out = {self.pad, self.cls, self.sep}
        text = " ".join(self.tokens[int(number)] for number in ids if int(number) not in left_out)
        return text.replace(" ##", "")  # how WordPiece marks the continuation of a word


@cache
def _bert() -> tuple[Any, Any]:
    """Return BERT's normalizer of texts and its splitter into words."""
    # Imported on first use, as in `_tokenizer`.
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    cleaner = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    return cleaner, BertPreTokenizer()


def _words(text: str) -> list[str]:
    """Split a text into lower-case words without accents, punctuation marks and tags."""
    cleaner, splitter = _bert()
    words: list[str] = []
    for part in _TAG.split(text):
        if _TAG.fullmatch(part):
            words.append(part.lower())
        else:
            words += [word for word, _ in splitter.pre_tokenize_str(cleaner.normalize_str(part))]
    return words

"""A session at the terminal: type sentences, see what the model makes of them."""

import shlex
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import torch

from fq_toolkit.optimus.model.sentence_vae import SentenceVAE

PROMPT = "> "
HELP = """Type a sentence to see what comes back from its latent. Or:
  /interpolate A | B        sentences on the way from A to B
  /analogy A | B | C        what is to C as B is to A
  /sample [N]               N sentences from the prior
  /set steps|degree|max VALUE   sentences of an interpolation, strength of an analogy, longest answer
  /help, /quit"""


class Session:
    """The settings of a session, and the answers to what is typed.

    Args:
        vae: the model.
        seed: of ``/sample``.
    """

    def __init__(self, vae: SentenceVAE, *, seed: int = 0) -> None:
        self.vae = vae
        self.generator = torch.Generator().manual_seed(seed)
        self.settings: dict[str, float] = {"steps": 8, "degree": 1.0, "max": 40}
        self._commands: dict[str, Callable[[str], list[str]]] = {
            "/interpolate": self._interpolate,
            "/analogy": self._analogy,
            "/sample": self._sample,
            "/set": self._set,
            "/help": lambda _: HELP.split("\n"),
        }

    def answer(self, line: str) -> list[str]:
        """Return what to print for a line.

        Raises:
            ValueError: for a line that is not understood; the session continues.
        """
        if not line.startswith("/"):
            return self._reconstruct(line)
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            raise ValueError(f"unknown command {name}; known: {', '.join(self._commands)}, /quit")
        return self._commands[name](rest.strip())

    def _options(self) -> dict[str, Any]:
        return {"max_new_tokens": int(self.settings["max"])}

    def _reconstruct(self, text: str) -> list[str]:
        q = self.vae.encode([text])
        (back,) = self.vae.decode(q.mean, **self._options())
        notes = [f"KL {float(q.kl().sum()):.1f} nats"]
        unknown = unknown_words(self.vae, text)
        if unknown:
            notes.append(f"unknown: {' '.join(unknown)}")
        return [f"{back}   [{'; '.join(notes)}]"]

    def _interpolate(self, rest: str) -> list[str]:
        a, b = _parts(rest, 2, "/interpolate A | B")
        return self.vae.interpolate(a, b, int(self.settings["steps"]), **self._options())

    def _analogy(self, rest: str) -> list[str]:
        a, b, c = _parts(rest, 3, "/analogy A | B | C")
        return [self.vae.analogy(a, b, c, self.settings["degree"], **self._options())]

    def _sample(self, rest: str) -> list[str]:
        if rest and not rest.isdigit():
            raise ValueError(f"got {rest!r}; expected /sample or /sample N")
        return self.vae.sample(int(rest or 1), generator=self.generator, **self._options())

    def _set(self, rest: str) -> list[str]:
        words = shlex.split(rest)
        try:
            name, value = words[0], float(words[1])
        except (IndexError, ValueError):
            raise ValueError(f"got {rest!r}; expected /set NAME NUMBER") from None
        least = {"steps": 2, "max": 1, "degree": float("-inf")}
        if name not in least:
            raise ValueError(f"unknown setting {name!r}; known: {', '.join(least)}")
        if not least[name] <= value < float("inf"):
            raise ValueError(f"{name} is {value:g}; expected at least {least[name]:g}")
        self.settings[name] = value
        return [f"{name} {value:g}"]


def play(vae: SentenceVAE, lines: Iterable[str], out: TextIO, *, prompt: str = "", seed: int = 0) -> None:
    """Answer lines until they end or one says ``/quit``.

    Args:
        vae: the model.
        lines: what is typed, or a pipe.
        out: where answers go.
        prompt: written before each line is read; empty for pipes.
        seed: of ``/sample``.
    """
    session = Session(vae, seed=seed)
    out.write((HELP + "\n" if prompt else "") + prompt)
    out.flush()
    for line in lines:  # one at a time: a reader at the other end of a pipe waits for each answer
        line = " ".join(line.split())
        if line == "/quit":
            break
        if line:
            try:
                answer = session.answer(line)
            except ValueError as error:
                answer = [f"? {error}"]
            out.write("\n".join(answer) + "\n")
        out.write(prompt)
        out.flush()


def unknown_words(vae: SentenceVAE, text: str) -> list[str]:
    """Return the words that the encoder's tokenizer has no token for."""
    tokenizer = vae.tokenizers.encoder
    if tokenizer.unk_token_id is None:
        return []
    return [
        word
        for word in text.split()
        if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]


def _parts(text: str, count: int, usage: str) -> list[str]:
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != count or not all(parts):
        raise ValueError(f"expected {usage}")
    return parts

"""Griffe extension: show docstrings, which are plain text with doctests and reST formulas, as Markdown."""

import re
import textwrap

import griffe

_MATH = re.compile(r"^( *)\.\. math::((?:.*\n)(?:\1 +.*\n|[ \t]*\n)*)", re.MULTILINE)


def _formula(match: re.Match[str]) -> str:
    indent, body = match[1], textwrap.dedent(match[2]).strip()
    return textwrap.indent(f"```latex\n{body}\n```\n", indent)


def to_markdown(text: str) -> str:
    """Turn `Example:` into the section that renders doctests, and formulas into LaTeX code."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = _MATH.sub(_formula, text + "\n")
    return re.sub(r":math:`([^`]*)`", r"`\1`", text).replace("``", "`").strip()


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite the docstring of one object of the package."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

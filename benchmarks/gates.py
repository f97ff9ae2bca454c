"""Correctness gates: no speed is reported for an op that is wrong.

A gate compares an op with its definition, or a model with a peer's, and returns the list of what is wrong:
empty when nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.latent.gate import check_latent
from benchmarks.navigation import gates as navigation_gates
from benchmarks.pretraining.contenders import check_pretraining
from benchmarks.quantizer import gates as quantizer_gates

GATES: dict[str, Callable[..., list[str]]] = {
    **quantizer_gates.GATES,
    "latent": check_latent,
    "vln_pretrain": check_pretraining,
    **navigation_gates.GATES,
}


def run_gates(names: Iterable[str], device: str = "cpu") -> dict[str, list[str]]:
    """Return what is wrong by gate; a gate that raises is red with the error as its finding."""
    findings = {}
    for name in dict.fromkeys(names):
        try:
            findings[name] = GATES[name](device=device)
        except Exception as error:  # a missing or broken op must turn the gate red, whatever it raises
            findings[name] = [f"{name}: {type(error).__name__}: {error}"]
    return findings

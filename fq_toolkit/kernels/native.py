"""Compiled C++ kernels for CPU tensors (placeholder until the build below lands)."""

from fq_toolkit.kernels.reference import ema_commit_, quantize_backward, quantize_forward

__all__ = ["ema_commit_", "problem", "quantize_backward", "quantize_forward"]


def problem() -> str | None:
    """Why the compiled kernels cannot be used, or None."""
    return "is not built"

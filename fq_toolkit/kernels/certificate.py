"""How far a coarse score can be from the truth: the error bound that certifies a lookup.

For a row ``x`` and a code ``c``, both shifted by ``mu``, half the squared distance is ``|x'|^2/2 + s`` with
the score ``s = |c'|^2/2 - <x', c'>``.  The kernels evaluate ``s`` in float32 with a tensor-core product.
With ``u = 2^-24``, C channels, products accumulated over ``L`` channels at a time and the ``ceil(C/L)``
partial results added in float32, the computed score and the float64 direct distance (which has a rounding
error of its own) order two codes the same way whenever their scores differ by more than the sum of their
radii

    r = alpha |x'||c'| + beta |c'|^2/2 + gamma |x'|^2 + tiny (1 + |x'| + |c'|)

because of the following bounds; by Cauchy-Schwarz the sums of ``|x'_i c'_i|`` over all chunks stay below
``|x'||c'|``.

* shift, ``fl(x - mu)``: 2 u on the product, 2 u on ``|c'|^2/2``
* operands of the product: `OPERAND_ERROR` of the format
* accumulation over a chunk: (L + 2) u in float32.  Tensor cores align up to nine terms to the largest and cut
  them off at 2^-23 of it, for every eight channels: 1.125 L 2^-23, three times that when three products share
  an accumulator.  4 L 2^-23 is used for every tensor-core format.
* adding the chunks: u for each
* forming and comparing the bounds: 8 u
* ``|c'|^2/2``: (L + chunks + 2) u
* computed norms: alpha and beta grow by the relative error (C + 16) 2^-23 that the norms may have
* distances in float64: (C + 2) 2^-53 (|x'|^2 + |c'|^2); doubled in gamma, and far below beta for ``|c'|``
* underflow: every product and every operand may lose 2^-126, hence tiny = (C + 8) 2^-124

The bounds are worst cases, hence rigorous; typical errors are far smaller.
"""

from __future__ import annotations

import math
from typing import NamedTuple

#: Relative error of a product of two operands in each format. "tf32" keeps 10 fraction bits, possibly by
#: truncation: 2^-10 for each operand. "tf32x3" splits an operand in a leading part and a remainder below
#: 2^-10 of it, truncates the remainder (2^-20 for each operand) and drops the product of the remainders
#: (2^-20).
OPERAND_ERROR = {"ieee": 0.0, "tf32": 2.0**-9 + 2.0**-20, "tf32x3": 3 * 2.0**-20 + 2.0**-28}

#: Norms from here on are left to float64: products of smaller ones stay far from the overflow of float32.
LARGEST_NORM = 1e18

#: Largest dimension for which the bounds on the norms hold; beyond it nothing is certified.
LARGEST_DIM = 1 << 19

_U = 2.0**-24


class Certificate(NamedTuple):
    """Coefficients of the error radius of a coarse score, see the module docstring."""

    alpha: float
    beta: float
    gamma: float
    tiny: float


def certificate(dim: int, chunk: int, dot: str) -> Certificate:
    """Return the error coefficients of a product in the format ``dot``, ``chunk`` of ``dim`` at a time.

    Args:
        dim: number of channels.
        chunk: channels per matrix product.
        dot: "ieee", "tf32" or "tf32x3".

    Returns:
        The coefficients; infinite beyond `LARGEST_DIM` channels, so that every row is re-scored.

    >>> certificate(256, 64, "tf32x3").alpha < 2e-4 < certificate(256, 64, "tf32").alpha
    True
    """
    if dot not in OPERAND_ERROR:
        raise ValueError(f"no error bound for the product format {dot!r}; known: {', '.join(OPERAND_ERROR)}")
    if dim > LARGEST_DIM:
        return Certificate(math.inf, math.inf, math.inf, 2.0**-100)
    chunks = -(-dim // chunk)
    norms = 1 + (dim + 16) * 2.0**-23
    accumulation = (chunk + 2) * _U if dot == "ieee" else 4 * chunk * 2.0**-23
    alpha = (2 * _U + OPERAND_ERROR[dot] + accumulation + (chunks + 8) * _U) * norms**2
    beta = (2 * _U + (min(chunk, dim) + chunks + 10) * _U) * norms**2
    return Certificate(alpha, beta, (dim + 4) * 2.0**-52, (dim + 8) * 2.0**-124)


def direct_error(dim: int) -> float:
    """Bound the relative error of a float32 sum of ``dim`` squared float32 differences, in any order."""
    return (dim + 16) * 2.0**-23

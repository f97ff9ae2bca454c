"""Spectral norm in the order of the releases: the right vector from the left one, then the left from it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

EPS = 1e-12
# Fresh vectors are drawn at random and say nothing about the weight yet.
FIRST_ITERATIONS = 15


class SpectralNorm(nn.Module):
    """Divide a weight by an estimate of its largest singular value, one power iteration per training forward.

    With W the weight as a matrix with one row per output:

    ``v <- normalize(W^T u)``, ``u <- normalize(W v)``, ``sigma = u^T W v``, result ``W / sigma``

    In training u and v are stored. Evaluation changes nothing. With ``stored`` it takes sigma from the stored
    u and v, as the PyTorch port of U-GAT-IT does. Without, u follows from the stored v, ``sigma = |W v|``:
    the same right after a training forward, and what BigGAN computes from a released state, which has no v.

    Further singular values are estimated by the same steps, each vector made orthogonal to those before it.
    They are there to be looked at and change nothing.

    Source: arXiv 1802.05957, Algorithm 1; BigGAN, arXiv 1809.11096, section 4.1 (further values).

    Args:
        weight: what is normalized; its first dimension counts outputs.
        stored: see above.
    """

    _u: Tensor
    _v: Tensor
    _values: Tensor

    def __init__(self, weight: Tensor, *, stored: bool = False) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.stored, self.iterations = stored, 1
        for name, size in (("_u", matrix.shape[0]), ("_v", matrix.shape[1])):
            self.register_buffer(name, functional.normalize(matrix.new_empty(size).normal_(), dim=0))
        self.register_buffer("_values", matrix.new_ones(1))
        for _ in range(FIRST_ITERATIONS):
            self._iterate(matrix)

    def look_at(self, *, values: int, iterations: int) -> None:
        """Choose how many singular values are estimated, and by how many iterations per training forward."""
        self.iterations = iterations
        for i in range(1, values):
            self.register_buffer(f"_u{i}", functional.normalize(torch.randn_like(self._u), dim=0))
        self._values = self._values.new_ones(values)

    def lefts(self) -> list[Tensor]:
        """Return the left singular vectors, the largest value's first."""
        return [self._u, *(getattr(self, f"_u{i}") for i in range(1, len(self._values)))]

    @torch.no_grad()
    def derive(self, weight: Tensor) -> None:
        """Make the right vector belong to the left one, which is all that the releases of BigGAN keep."""
        self._v.copy_(functional.normalize(weight.flatten(1).t().mv(self._u), dim=0, eps=EPS))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        """Take one power iteration and store its vectors and values, in place: buffers may be shared."""
        us: list[Tensor] = []
        vs: list[Tensor] = []
        for i, left in enumerate(self.lefts()):
            vs.append(functional.normalize(_orthogonal(matrix.t().mv(left), vs), dim=0, eps=EPS))
            product = matrix.mv(vs[i])
            us.append(functional.normalize(_orthogonal(product, us), dim=0, eps=EPS))
            left.copy_(us[i])
            self._values[i] = us[i].dot(product)
        self._v.copy_(vs[0])

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, divided by its largest singular value."""
        matrix = weight.flatten(1)
        if self.training:
            for _ in range(self.iterations):
                self._iterate(matrix.detach())
        # Copies: the next forward overwrites the vectors, perhaps before this one's backward.
        u, v = self._u.clone(), self._v.clone()
        if not self.training and not self.stored:
            v = functional.normalize(v, dim=0, eps=EPS)  # averaged along with the weights it is shorter
            u = functional.normalize(matrix.detach().mv(v), dim=0, eps=EPS)
        return weight / u.dot(matrix.mv(v))

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return what is kept when somebody assigns a weight: the weight itself."""
        return value

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load a state, also one from before the singular values were part of it."""
        state_dict.setdefault(f"{prefix}_values", self._values)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _orthogonal(vector: Tensor, others: list[Tensor]) -> Tensor:
    """Subtract from a vector its parts along others, one after the other (Gram-Schmidt)."""
    for other in others:
        vector = vector - vector.dot(other) / other.dot(other) * other
    return vector


def spectral_norm(module: nn.Module, *, stored: bool = False) -> nn.Module:
    """Give the weight of a module spectral norm; return the module.

    Args:
        module: with a ``weight``.
        stored: see `SpectralNorm`.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    parametrize.register_parametrization(module, "weight", SpectralNorm(weight, stored=stored))
    return module


def look_at_singular_values(model: nn.Module, *, values: int, iterations: int) -> None:
    """Set for every weight with spectral norm what `SpectralNorm.look_at` sets."""
    for module in model.modules():
        if isinstance(module, SpectralNorm):
            module.look_at(values=values, iterations=iterations)

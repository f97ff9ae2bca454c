"""The implementations that ours is measured against, each in its most favourable ordinary use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contender import Contender, Task, Unavailable
from benchmarks.quantizer.problem import FeatureProblem

DECAY = 0.9
_CHUNK = 1024


def _import(module: str, package: str) -> Any:
    """Import an optional peer, or say which package is missing or broken."""
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:  # broken binary packages fail in many ways
        raise Unavailable(f"{package} cannot be imported ({type(error).__name__}: {error})") from None


# ------------------------------------------------------------------------------- lookups on (N, D) rows


def _first(result: Tensor) -> Tensor:
    return result


def _cdist(problem: FeatureProblem) -> Task:
    rows, codebook = problem.rows.float(), problem.codebook
    return Task(lambda _: torch.cdist(rows, codebook).argmin(dim=1), indices=_first)


def _nearest_in_chunk(rows: Tensor, codes: Tensor, half_norms: Tensor) -> Tensor:
    """Return the code with the lowest ``|c|^2 / 2 - x.c``."""
    return torch.addmm(half_norms, rows, codes, alpha=-1).argmin(dim=1)


def _chunked(problem: FeatureProblem, nearest: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Task:
    rows, codebook = problem.rows.float(), problem.codebook
    whole = rows.shape[0] // _CHUNK * _CHUNK

    def run(_: object) -> Tensor:
        codes = codebook.t().contiguous()
        half_norms = codebook.square().sum(dim=1) / 2
        out = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
        for start in range(0, whole, _CHUNK):
            out[start : start + _CHUNK] = nearest(rows[start : start + _CHUNK], codes, half_norms)
        if whole < rows.shape[0]:  # the rest has another size, which a compiled function would compile anew
            out[whole:] = _nearest_in_chunk(rows[whole:], codes, half_norms)
        return out

    return Task(run, indices=_first)


def _plain_chunked(problem: FeatureProblem) -> Task:
    return _chunked(problem, _nearest_in_chunk)


def _compiled_chunked(problem: FeatureProblem) -> Task:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # a pool of compilers would disturb the clock and the memory
    torch._dynamo.reset()
    task = _chunked(problem, torch.compile(_nearest_in_chunk, fullgraph=True, dynamic=False))
    try:
        task.run(None)
    except Exception as error:
        raise Unavailable(f"torch.compile does not work here ({type(error).__name__})") from None
    return task


def _faiss(problem: FeatureProblem) -> Task:
    faiss = _import("faiss", "faiss-cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = problem.rows.float().numpy()
    index = faiss.IndexFlatL2(problem.shape.dim)
    index.add(problem.codebook.numpy())
    return Task(lambda _: index.search(rows, 1)[1], indices=lambda found: torch.from_numpy(found[:, 0]))


def _sklearn(problem: FeatureProblem) -> Task:
    metrics = _import("sklearn.metrics", "scikit-learn")
    from sklearn import config_context

    threadpoolctl = _import("threadpoolctl", "scikit-learn")
    threadpoolctl.threadpool_limits(torch.get_num_threads())
    rows, codebook = problem.rows.float().numpy(), problem.codebook.numpy()

    def run(_: object) -> Any:
        with config_context(assume_finite=True):  # spares it a scan of the input
            return metrics.pairwise_distances_argmin(rows, codebook)

    return Task(run, indices=torch.from_numpy)


def _flash_kmeans(problem: FeatureProblem) -> Task:
    assign = _import("flash_kmeans.assign_euclid_triton", "flash-kmeans").euclid_assign_triton
    rows = problem.rows[None]
    codes = problem.codebook.to(rows.dtype)[None]
    return Task(lambda _: assign(rows, codes, rows.float().square().sum(-1)), indices=lambda found: found[0])


LOOKUPS = (
    Contender("torch.cdist", _cdist, score_arrays=1.1),
    Contender("chunked addmm", _plain_chunked),
    Contender("chunked addmm, compiled", _compiled_chunked),
    Contender("faiss", _faiss, package="faiss-cpu", devices=("cpu",)),
    Contender("scikit-learn", _sklearn, package="scikit-learn", devices=("cpu",)),
    Contender("flash-kmeans", _flash_kmeans, package="flash-kmeans", devices=("cuda",)),
)


# ---------------------------------------------------------------------------------------- whole layers


class ReleasedFormula(nn.Module):
    """The layer of the paper's release, rebuilt from its formulas with the arrays that it materialises.

    Channels-last copy of the features, N x K squared distances and their negative, N x K one-hot rows as
    int64 and as floats, sums as a product with the one-hot rows, perplexity from their mean, a copy back to
    channels first.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.num_codes, self.dim = codebook.shape
        self.register_buffer("codes", codebook.t().contiguous())  # (D, K), as released
        self.register_buffer("counts", torch.ones(self.num_codes, device=codebook.device))
        self.register_buffer("sums", self.codes.clone())
        self.eps = 1e-5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features (B, C, H, W) to quantized features, loss (B, 1) and perplexity."""
        by_position = x.permute(0, 2, 3, 1).contiguous()
        rows = by_position.view(-1, self.dim)
        # |x|^2 - 2 x.c + |c|^2 as released: three passes over an N x K array
        distances = (
            rows.square().sum(1, keepdim=True)
            - 2 * rows @ self.codes
            + self.codes.square().sum(0, keepdim=True)
        )
        index = distances.neg().max(dim=1).indices
        one_hot = F.one_hot(index, self.num_codes).to(rows.dtype)
        quantized = F.embedding(index, self.codes.t()).view_as(by_position)
        if self.training:
            with torch.no_grad():
                self.counts.lerp_(one_hot.sum(0), 1 - DECAY)
                self.sums.lerp_(rows.t() @ one_hot, 1 - DECAY)
                total = self.counts.sum()
                smoothed = (self.counts + self.eps) / (total + self.num_codes * self.eps) * total
                self.codes.copy_(self.sums / smoothed)
        loss = (quantized.detach() - by_position).square().mean(dim=(1, 2)).mean(dim=1, keepdim=True)
        straight = by_position + (quantized - by_position).detach()
        share = one_hot.mean(dim=0)
        perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        return straight.permute(0, 3, 1, 2).contiguous(), loss, perplexity


LayerCall = Callable[[Tensor], tuple[Tensor, Tensor]]
#: Makes the module and the call that takes features in the shape's layout to (quantized, loss).
LayerFactory = Callable[[FeatureProblem], tuple[nn.Module, LayerCall]]


def released_layer(problem: FeatureProblem) -> tuple[nn.Module, LayerCall]:
    """Make the released formula; it takes only four-dimensional features."""
    module = ReleasedFormula(problem.codebook)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        if problem.shape.layout == "blc":
            quantized, loss, _ = module(x.transpose(1, 2).unsqueeze(-1))
            return quantized.squeeze(-1).transpose(1, 2), loss.mean()
        quantized, loss, _ = module(x)
        return quantized, loss.mean()

    return module, call


def lucidrains_layer(problem: FeatureProblem) -> tuple[nn.Module, LayerCall]:
    """Make VectorQuantize with the straight-through gradient, like the others."""
    package = _import("vector_quantize_pytorch", "vector-quantize-pytorch")
    module = package.VectorQuantize(
        problem.shape.dim,
        problem.shape.num_codes,
        decay=DECAY,
        rotation_trick=False,
        accept_image_fmap=problem.shape.layout != "blc",
    ).to(problem.device)
    with torch.no_grad():
        # Its only way to take a given dictionary; k-means on the first batch would give it another.
        state = module._codebook
        state.embed.copy_(problem.codebook[None])
        state.embed_avg.copy_(problem.codebook[None])
        state.cluster_size.fill_(1)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = module(x)
        return quantized, loss.sum()

    return module, call


def _in_training(factory: LayerFactory, problem: FeatureProblem) -> tuple[LayerCall, Tensor]:
    """Return the call of a layer in training mode, and features that take a gradient."""
    module, call = factory(problem)
    module.train()
    return call, problem.features.detach().requires_grad_()


def train_step(factory: LayerFactory) -> Callable[[FeatureProblem], Task]:
    """Measure forward with dictionary update, then backward from a given gradient and the loss."""

    def build(problem: FeatureProblem) -> Task:
        call, x = _in_training(factory, problem)
        grad = problem.grad

        def run(_: object) -> tuple[Tensor, Tensor]:
            out, loss = call(x)
            (dx,) = torch.autograd.grad([out, loss], [x], [grad, torch.ones_like(loss)])
            return out.detach(), dx

        return Task(run)

    return build


def eval_forward(factory: LayerFactory) -> Callable[[FeatureProblem], Task]:
    """Measure forward in evaluation mode without gradients."""

    def build(problem: FeatureProblem) -> Task:
        module, call = factory(problem)
        module.eval()
        x = problem.features

        def run(_: object) -> Tensor:
            with torch.no_grad():
                return call(x)[0]

        return Task(run)

    return build


def backward_only(factory: LayerFactory) -> Callable[[FeatureProblem], Task]:
    """Measure the backward of one training forward, which is not timed."""

    def build(problem: FeatureProblem) -> Task:
        call, x = _in_training(factory, problem)
        grad = problem.grad

        def setup() -> tuple[Tensor, Tensor]:
            return call(x)

        def run(forward: tuple[Tensor, Tensor]) -> Tensor:
            out, loss = forward
            return torch.autograd.grad([out, loss], [x], [grad, torch.ones_like(loss)])[0]

        return Task(run, setup)

    return build


def layer_peers(measure: Callable[[LayerFactory], Callable[[FeatureProblem], Task]]) -> Iterator[Contender]:
    """Yield both peer layers under one kind of measurement."""
    yield Contender("released layer", measure(released_layer), score_arrays=4.1)
    yield Contender(
        "lucidrains", measure(lucidrains_layer), package="vector-quantize-pytorch", score_arrays=6.1
    )


# ---------------------------------------------------------------------------------------------- commit


def batch_statistics(problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    """Return counts (K,) float32 and sums (K, D) of an assignment that gives row n to code n mod K."""
    codes = torch.arange(problem.shape.rows, device=problem.device) % problem.shape.num_codes
    counts = torch.bincount(codes, minlength=problem.shape.num_codes).float()
    return counts, torch.zeros_like(problem.codebook).index_add_(0, codes, problem.rows.float())


def _eager_commit(problem: FeatureProblem) -> Task:
    counts, sums = batch_statistics(problem)
    codebook, moving_sums = problem.codebook.clone(), problem.codebook.clone()
    moving_counts = torch.ones_like(counts)
    num_codes, eps = problem.shape.num_codes, 1e-5

    def run(_: object) -> Tensor:
        moving_counts.lerp_(counts, 1 - DECAY)
        moving_sums.lerp_(sums, 1 - DECAY)
        total = moving_counts.sum()
        smoothed = (moving_counts + eps) / (total + num_codes * eps) * total
        return codebook.copy_(moving_sums / smoothed[:, None])

    return Task(run)


COMMITS = (Contender("plain torch", _eager_commit),)

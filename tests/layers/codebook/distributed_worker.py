"""What each rank runs in the distributed tests; its own module, so that spawned processes can import it."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fq_toolkit.layers import (
    FeatureQuantizer,
    coalesce_updates,
    commit_updates,
    commitment_loss,
    frozen,
    quantize_discriminator,
)
from tests.layers.insertion.foreign_networks import Enough, PairOfNetworks

STEPS = 4


def batches(step: int) -> torch.Tensor:
    """The global batch of a step: 12 samples of 3 positions."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(12, 3, 5, generator=generator) + 0.1 * step


def masks(case: str, step: int) -> torch.Tensor:
    """Real positions of the global batch; in some cases a rank has none in one step."""
    mask = torch.rand(12, 3, generator=torch.Generator().manual_seed(step)) < 0.8
    if case == "masked rank" and step in (0, 2):
        mask[5:] = False
    return mask


def build(case: str) -> FeatureQuantizer:
    options: dict[str, Any] = {
        "kmeans": {"init": "kmeans"},
        "revive": {"revive": 0.5, "decay": 0.5},
        "normal": {"init": "normal"},
        "manual": {"update": "manual"},
        "update_every": {"update_every": 2},
        "cosine": {"metric": "cosine"},
        "debiased": {"ema": "debiased"},
    }.get(case, {})
    torch.manual_seed(0)
    return FeatureQuantizer(5, 7, **options)


def train(layer: FeatureQuantizer, case: str, rank: int | None) -> dict[str, torch.Tensor]:
    """Train on this rank's part of every batch (None: on all of it) and return what must agree."""
    for step in range(STEPS):
        x, mask = batches(step), masks(case, step)
        cut = 0 if case == "empty rank" and step == 1 else 5
        part = slice(None) if rank is None else (slice(0, cut) if rank == 0 else slice(cut, None))
        x[3, 1] = float("nan")
        layer(x[part].clone().requires_grad_(), mask=mask[part])
        commitment_loss(layer)
        if case == "manual" and step % 2 == 1:
            commit_updates(layer)
    state = dict(layer.state_dict())
    state["nonfinite_rows"] = layer.nonfinite_rows
    state["loss"] = torch.tensor(layer.last_loss())
    return state


def run_cases(rank: int, folder: str, cases: list[str], checks: bool) -> None:
    """Run every case on two ranks; the layers are built before the group exists."""
    torch.set_num_threads(1)
    layers = {case: build(case) for case in cases}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for case, layer in layers.items():
        torch.save(train(layer, case, rank), Path(folder) / f"{case}-{rank}.pt")
    for name, check in CHECKS.items() if checks else ():
        torch.save(check(rank), Path(folder) / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), FeatureQuantizer(6, 7), nn.Linear(6, 4), FeatureQuantizer(4, 7))


class Counter:
    """Counts the all_reduces that run inside a block."""

    def __enter__(self) -> Counter:
        self.calls, self._original = 0, dist.all_reduce

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self._original(*args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._original


def count_all_reduces(rank: int) -> dict[str, Any]:
    """Number of all_reduces of a step: one per layer, one per model when coalesced or committed by hand."""
    result: dict[str, Any] = {}
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(rank))
    plain, joined, manual = network(), network(), network()
    coalesce_updates(joined)
    for layer in (manual[1], manual[3]):
        layer.update = "manual"
        layer.staged.make_room(layer.codebook, layer.revive > 0)
    for net in (plain, joined, manual):
        net(x)
    commit_updates(manual)
    for name, net in (("plain", plain), ("coalesced", joined), ("manual", manual)):
        with Counter() as counter:
            net(x)
            if net is manual:
                commit_updates(net)
        result[name] = counter.calls
        result[f"{name} codebook"] = net[3].codebook
    with Counter() as counter:
        joined.eval()(x)
    result["eval"] = counter.calls
    return result


def wrap_in_ddp(rank: int) -> dict[str, Any]:
    """DistributedDataParallel with and without broadcast_buffers and no_sync; state after each."""
    result: dict[str, Any] = {}
    for broadcast in (True, False):
        net = network()
        ddp = nn.parallel.DistributedDataParallel(net, broadcast_buffers=broadcast)
        generator = torch.Generator().manual_seed(rank)
        for step in range(3):
            real, fake = torch.randn(8, 5, generator=generator), torch.randn(8, 5, generator=generator)
            if step == 1:
                with ddp.no_sync():
                    (ddp(real).mean() + commitment_loss(ddp)).backward()
            (ddp(real).mean() - ddp(fake).mean() + commitment_loss(ddp)).backward()
        result[f"broadcast {broadcast}"] = torch.cat(
            [
                *(p.grad.flatten() for p in net.parameters()),
                *(b.float().flatten() for b in net.state_dict().values()),
            ]
        )
    return result


def accumulate(policy: str, rank: int | None) -> torch.Tensor:
    """The dictionary after two commits of two forwards each, of unequal batches; on one rank without DDP."""
    torch.manual_seed(0)
    layer = FeatureQuantizer(5, 7, **({"update": "manual"} if policy == "manual" else {"update_every": 2}))
    net: nn.Module = nn.Sequential(nn.Linear(5, 5), layer)
    if rank is not None:
        net = nn.parallel.DistributedDataParallel(net, broadcast_buffers=True)
    part = slice(None) if rank is None else (slice(0, 5) if rank == 0 else slice(5, None))
    for step in range(4):
        net(batches(step)[part]).sum()
        commitment_loss(net)
        if policy == "manual" and step % 2 == 1:
            commit_updates(net)
    return layer.codebook


def accumulate_in_ddp(rank: int) -> dict[str, Any]:
    """Statistics that wait for a commit while DistributedDataParallel broadcasts buffers."""
    return {policy: accumulate(policy, rank) for policy in ("manual", "update_every")}


def manual_with_an_idle_rank(rank: int) -> dict[str, Any]:
    """Rank 1 runs no forward at all before a commit, and must neither hang nor miss the update."""
    torch.manual_seed(0)
    layer = FeatureQuantizer(5, 7, init="normal", update="manual", revive=0.5)
    if rank == 0:
        layer(torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))
    commit_updates(layer)
    return dict(layer.state_dict())


def shard_with_fsdp(rank: int) -> dict[str, Any]:
    """fully_shard with bfloat16 parameters: the dictionary stays whole, float32 and the same everywhere."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), FeatureQuantizer(6, 7, codebook_dim=3), nn.Linear(6, 1))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    for step in range(2):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(rank + 10 * step))
        (net(x).float().mean() + commitment_loss(net)).backward()
    state = net[1].state_dict()
    return {name: state[name] for name in ("codebook", "ema_counts", "ema_sums", "num_updates")}


def stop_early(model: PairOfNetworks, x: torch.Tensor) -> torch.Tensor:
    """A forward that ends with an exception, then a part."""
    with contextlib.suppress(Enough):
        model(x, "stops")
    return model.D(x)


ENTRIES = {
    "call": lambda model, x: model(x),
    "forward": lambda model, x: model.forward(x),
    "a part": lambda model, x: model.D(x),
    "encode": lambda model, x: model.encode(x),
    "twice": lambda model, x: (model.D(x[: len(x) // 2]), model(x[len(x) // 2 :]))[1],
    "both halves": lambda model, x: model(x, "both halves"),
    "stops": stop_early,
}


def through(entry: str, rank: int | None, *, wrap: bool = False, **options: Any) -> dict[str, Any]:
    """Train a quantized network through one of its entry points; the state after three steps."""
    torch.manual_seed(0)
    model = PairOfNetworks()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    quantize_discriminator(
        model, layers=["D.1", "D.3"], num_codes=4, example_inputs=x, init="normal", **options
    )
    if wrap:
        model.D = nn.parallel.DistributedDataParallel(model.D)
    for step in range(4):
        rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(50 + step))
        # Halves of the halves on each rank, so that two calls see what one process sees in two.
        halves = [part.chunk(2)[rank] if rank is not None else part for part in rows.chunk(2)]
        ENTRIES[entry](model, torch.cat(halves)).sum().backward()
        commitment_loss(model)
        with frozen(model):
            ENTRIES[entry](model, torch.cat(halves))
    return {name.replace("module.", ""): b for name, b in model.state_dict().items() if "quantizer" in name}


def every_entry(rank: int) -> dict[str, Any]:
    """All entry points, with updates each forward and every second one, wrapped and bare."""
    result = {}
    for entry in ENTRIES:
        for every in (1, 2):
            result[f"{entry} {every}"] = through(entry, rank, update_every=every)
    result["wrapped"] = through("a part", rank, wrap=True)
    return result


def uneven_inputs(rank: int) -> dict[str, Any]:
    """DistributedDataParallel.join() with a quantizer inside: an error on every rank, not an abort."""
    net = nn.parallel.DistributedDataParallel(network())
    try:
        with net.join():
            for _ in range(2 + rank):
                net(torch.randn(3, 5)).sum().backward()
    except RuntimeError as error:
        return {"message": str(error)}
    return {"message": ""}


CHECKS = {
    "entries": every_entry,
    "counts": count_all_reduces,
    "ddp": wrap_in_ddp,
    "accumulate": accumulate_in_ddp,
    "idle": manual_with_an_idle_rank,
    "fsdp": shard_with_fsdp,
    "join": uneven_inputs,
}

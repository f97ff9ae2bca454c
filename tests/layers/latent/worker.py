"""What each rank does in the test of DistributedDataParallel with latents."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fq_toolkit import inject_latent
from tests.layers.latent.oracle import gpt2


def build() -> Any:
    """Return an injected model in training mode, without dropout."""
    model = inject_latent(gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "both", 6, init_std=0.7)
    return model.train()


def steps() -> list[tuple[Tensor, Tensor | None]]:
    """Return tokens and latents of three steps, the second of them without a latent."""
    generator = torch.Generator().manual_seed(7)
    ids, z = torch.randint(3, 40, (4, 5), generator=generator), torch.randn(4, 6, generator=generator)
    return [(ids, z), (ids, None), (ids, z)]


def run(rank: int, folder: str) -> None:
    """Take half of each step's batch, and save what DDP made of the gradients."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    model = build()
    wrapped = nn.parallel.DistributedDataParallel(model)
    part, grads = slice(rank * 2, rank * 2 + 2), []
    for ids, latent in steps():
        model.zero_grad()
        given = {} if latent is None else {"latent": latent[part]}
        wrapped(ids[part], labels=ids[part], **given).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.save(grads, f"{folder}/{rank}.pt")
    dist.destroy_process_group()

"""An optimizer step of the pretraining: ours, and a literal port of the released one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.contender import Contender, Task
from benchmarks.pretraining.port import ReleasedPretraining
from benchmarks.pretraining.problem import ACTIONS, StepProblem, StepShape
from fq_toolkit import VLNPretrainingHead
from fq_toolkit.prevalent import PrevalentConfig, PrevalentModel

OURS, PORT = "PrevalentModel", "literal port"
CASE = "vln_pretrain"


class Pretraining(nn.Module):
    """Our model and head.

    Args:
        config: sizes.
        actions: classes.
    """

    def __init__(self, config: PrevalentConfig, actions: int) -> None:
        super().__init__()
        self.model = PrevalentModel(config)
        self.head = VLNPretrainingHead(
            config.hidden_size, config.vocab_size, actions, tie_to=self.model.get_input_embeddings()
        )

    def forward(self, ids: Tensor, mask: Tensor, views: Tensor, labels: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of both losses; only labelled words and the first position are read."""
        out = self.model(ids, mask, views, needed=labels >= 0)
        return self.head(out.language, out.pooled, labels, actions).loss


def batch_of_arrays(problem: StepProblem) -> tuple[Tensor, ...]:
    """Make a batch as `PretrainingSteps` does: gathered at once, cut after the longest instruction."""
    length = int((problem.ids != 0).sum(dim=1).max())
    ids, labels = problem.ids[:, :length], problem.labels[:, :length]
    views = torch.cat([problem.features, problem.angles[problem.headings]], dim=-1)
    return ids, ids != 0, views, labels, problem.actions


def batch_of_samples(problem: StepProblem) -> tuple[Tensor, ...]:
    """Make a batch as a dataset of samples does: four gathers for each, then stacked, 80 tokens long."""
    samples = []
    for row in range(problem.shape.batch):
        ids = problem.ids[row]
        angles = problem.angles[problem.headings[row]]
        views = torch.cat([problem.features[row], angles], dim=-1)
        samples.append((ids, ids != 0, views, problem.labels[row], problem.actions[row]))
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


def _ours(problem: StepProblem) -> Task:
    torch.manual_seed(0)
    network = Pretraining(problem.shape.config(), ACTIONS).to(problem.device, problem.dtype).train()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-5, fused=True)  # part of what our trainer does

    def run(_: object) -> Tensor:
        loss = network(*batch_of_arrays(problem))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return loss.detach()

    return Task(run, note=f"{sum(weight.numel() for weight in weights) / 1e6:.1f} M weights trained")


def _port(problem: StepProblem) -> Task:
    torch.manual_seed(0)
    network = ReleasedPretraining(problem.shape.config(), ACTIONS).to(problem.device, problem.dtype).train()
    weights = list(network.parameters())
    # As released: the optimizer takes one weight after another.
    optimizer = torch.optim.AdamW(weights, lr=5e-5, foreach=False)

    def run(_: object) -> Tensor:
        loss = network(*batch_of_samples(problem))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
        optimizer.step()
        return loss.detach()

    return Task(run)


CONTENDERS = (
    Contender(OURS, _ours, kind="ours", package="fq-toolkit"),
    Contender(PORT, _port, kind="peer"),
)


def check_pretraining(device: str = "cpu", factory: type[nn.Module] = Pretraining) -> list[str]:
    """Compare the loss and each weight's gradient with those of a port with the same weights, in float64.

    Args:
        device: where.
        factory: makes from sizes and actions what is checked.
    """
    # Not a public name: imported by this gate only, so that `compare` can measure older commits without it.
    from fq_toolkit.prevalent.model.released_names import encoder_state

    problem = StepProblem(StepShape("gate", 3, 64, text_layers=2, cross_layers=3), device, torch.float64)
    config = problem.shape.config()
    torch.manual_seed(1)
    port = ReleasedPretraining(config, ACTIONS).to(device, torch.float64).eval()
    mine = factory(config, ACTIONS).to(device, torch.float64).eval()
    mine.get_submodule("model").load_state_dict(port.state_dict())
    mine.get_submodule("head").load_state_dict(port.state_dict())
    expected, found = port(*batch_of_samples(problem)), mine(*batch_of_arrays(problem))
    wrong = []
    if not torch.allclose(found, expected, rtol=1e-10, atol=0):
        wrong.append(f"pretraining: the loss is {found.item():.12g}, the port's {expected.item():.12g}")
    expected.backward()
    found.backward()
    gradients = {
        name: weight.grad if weight.grad is not None else torch.zeros_like(weight)
        for name, weight in port.named_parameters()
    }
    renamed = encoder_state(gradients)
    for name, weight in mine.get_submodule("model").named_parameters():
        gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        if not torch.allclose(gradient, renamed[name], rtol=1e-7, atol=1e-10):
            wrong.append(f"pretraining: the gradient of {name} is not the port's")
    return wrong

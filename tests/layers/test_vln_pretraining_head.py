"""VLNPretrainingHead: its losses, its gradients, what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fq_toolkit import VLNPretrainingHead

H, V, ACTIONS = 8, 20, 6


def states(batch: int = 3, length: int = 7) -> Tensor:
    return torch.randn(batch, length, H, dtype=torch.float64, requires_grad=True)


def all_positions(head: VLNPretrainingHead, x: Tensor, labels: Tensor) -> Tensor:
    """Return the word loss the long way: every position projected, then most left out."""
    hidden = functional.gelu(functional.linear(x, head.mlm_transform.weight, head.mlm_transform.bias))
    hidden = functional.layer_norm(hidden, (H,), head.mlm_norm.weight, head.mlm_norm.bias, 1e-12)
    logits = hidden @ head.mlm_decoder.weight.T + head.mlm_bias
    kept = torch.where(labels < 0, -100, labels)
    total = functional.cross_entropy(logits.flatten(0, 1), kept.flatten(), ignore_index=-100, reduction="sum")
    return total / max(1, int((labels >= 0).sum()))


@settings(deadline=None, max_examples=25)
@given(share=st.sampled_from([0.0, 0.2, 1.0]), ignored=st.sampled_from([-1, -100]), seed=st.integers(0, 99))
def test_projecting_labelled_positions_alone_changes_neither_loss_nor_gradients(
    share: float, ignored: int, seed: int
) -> None:
    torch.manual_seed(seed)
    head = VLNPretrainingHead(H, V, ACTIONS).double()
    x = states()
    labels = torch.where(torch.rand(3, 7) < share, torch.randint(V, (3, 7)), ignored)
    out = head(x, mlm_labels=labels)
    expected = all_positions(head, x, labels)
    torch.testing.assert_close(out.mlm_loss, expected, rtol=0, atol=1e-12)
    assert out.mlm_logits.shape == (int((labels >= 0).sum()), V)
    variables = [x, *(p for name, p in head.named_parameters() if name.startswith("mlm"))]
    for ours, theirs in zip(
        torch.autograd.grad(out.loss, variables), torch.autograd.grad(expected, variables), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_loss_is_the_weighted_sum_and_both_ways_to_ignore_mix() -> None:
    head = VLNPretrainingHead(H, V, ACTIONS, loss_weights=(0.5, 3)).double()
    x, pooled = states(), torch.randn(3, H, dtype=torch.float64)
    words = torch.tensor([[-1, 4, -100, -1, -1, -1, -1]] * 3)
    actions = torch.tensor([5, -1, -100])
    out = head(x, pooled, words, actions)
    torch.testing.assert_close(out.loss, 0.5 * out.mlm_loss + 3 * out.action_loss, rtol=0, atol=0)
    expected = functional.cross_entropy(head.action(pooled)[:1], actions[:1])
    torch.testing.assert_close(out.action_loss, expected, rtol=0, atol=1e-12)
    assert out.action_logits.shape == (3, ACTIONS)


def test_without_pooled_the_first_position_decides() -> None:
    head, x = VLNPretrainingHead(H, V, ACTIONS).double(), states()
    assert torch.equal(head(x).action_logits, head(x, x[:, 0]).action_logits)


def test_what_has_no_labels_has_no_loss() -> None:
    head, x = VLNPretrainingHead(H, V, ACTIONS).double(), states()
    out = head(x)
    assert out.loss is out.mlm_loss is out.action_loss is None
    assert out.mlm_logits.shape == (3, 7, V)
    assert out.action_logits.shape == (3, ACTIONS)
    words = head(x, mlm_labels=torch.randint(V, (3, 7)))
    assert words.action_loss is None
    assert words.action_logits is not None
    assert torch.equal(words.loss, words.mlm_loss)
    torch.testing.assert_close(words.mlm_logits, out.mlm_logits.flatten(0, 1), rtol=0, atol=1e-12)
    actions = head(x, action_labels=torch.zeros(3, dtype=torch.long))
    assert actions.mlm_logits is None
    assert torch.equal(actions.loss, actions.action_loss)


def test_nothing_masked_gives_zero_that_can_be_differentiated() -> None:
    head, x = VLNPretrainingHead(H, V, ACTIONS).double(), states()
    nothing = torch.full((3, 7), -1)
    out = head(x, mlm_labels=nothing, action_labels=torch.tensor([-1, -100, -1]))
    assert out.loss.item() == 0
    out.loss.backward()
    assert (x.grad == 0).all()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_pointing_scores_candidates_and_leaves_out_the_masked() -> None:
    head = VLNPretrainingHead(H, V, action_mode="pointer").double()
    x, candidates = states(), torch.randn(3, 4, H, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [True, False, False, False]])
    out = head(x, candidates=candidates, candidate_mask=mask, action_labels=torch.tensor([3, 2, 0]))
    query = functional.linear(x[:, 0], head.query.weight, head.query.bias)
    for row in range(3):
        scores = candidates[row] @ query[row] / math.sqrt(H)
        torch.testing.assert_close(out.action_logits[row][mask[row]], scores[mask[row]], rtol=0, atol=1e-12)
        assert (out.action_logits[row][~mask[row]] == -math.inf).all()
    probability = out.action_logits.softmax(-1)[[0, 1, 2], [3, 2, 0]]
    torch.testing.assert_close(out.action_loss, -probability.log().mean(), rtol=0, atol=1e-12)
    out.loss.backward()
    assert x.grad.isfinite().all()
    assert head(x).action_logits is None


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99))
def test_pointing_is_equivariant_to_the_order_of_candidates(seed: int) -> None:
    torch.manual_seed(seed)
    head = VLNPretrainingHead(H, V, action_mode="pointer").double()
    x, candidates, order = states(), torch.randn(3, 5, H, dtype=torch.float64), torch.randperm(5)
    plain = head(x, candidates=candidates).action_logits
    turned = head(x, candidates=candidates[:, order]).action_logits
    torch.testing.assert_close(turned, plain[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["embedding", "linear", "tensor"])
def test_tied_words_are_the_owners(kind: str) -> None:
    owner = {
        "embedding": nn.Embedding(V, H),
        "linear": nn.Linear(H, V),
        "tensor": nn.Parameter(torch.randn(V, H)),
    }[kind]
    head = VLNPretrainingHead(H, V, ACTIONS, tie_to=owner)
    weight = owner if kind == "tensor" else owner.weight
    assert all(parameter is not weight for parameter in head.parameters())
    assert not any("decoder" in name for name in head.state_dict())
    before = head(states().float()).mlm_logits
    with torch.no_grad():
        weight.zero_()
    after = head(states().float()).mlm_logits
    assert before.abs().max() > 0
    assert torch.equal(after, torch.zeros_like(after))
    head(states().float(), mlm_labels=torch.randint(V, (3, 7))).loss.backward()
    assert weight.grad.abs().max() > 0


def test_a_copy_of_model_and_head_is_tied_to_the_copy() -> None:
    import copy

    both = nn.ModuleDict({"embedding": nn.Embedding(V, H)})
    both["head"] = VLNPretrainingHead(H, V, ACTIONS, tie_to=both["embedding"])
    twin = copy.deepcopy(both)
    with torch.no_grad():
        twin["embedding"].weight.zero_()
    assert twin["head"](states().float()).mlm_logits.abs().max() == 0
    assert both["head"](states().float()).mlm_logits.abs().max() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_released_names_are_accepted(tied: bool) -> None:
    owner = nn.Embedding(V, H)
    source = VLNPretrainingHead(H, V, ACTIONS).state_dict()
    released = {
        "mlmhead.predictions.transform.dense.weight": source["mlm_transform.weight"],
        "mlmhead.predictions.transform.dense.bias": source["mlm_transform.bias"],
        "mlmhead.predictions.transform.LayerNorm.gamma": source["mlm_norm.weight"] + 1,
        "mlmhead.predictions.transform.LayerNorm.bias": source["mlm_norm.bias"] + 2,
        "mlmhead.predictions.decoder.weight": source["mlm_decoder.weight"],
        "mlmhead.predictions.bias": source["mlm_bias"] + 3,
        "next_action.linear.weight": source["action.weight"],
        "next_action.linear.bias": source["action.bias"],
        "bert.pooler.dense.weight": torch.zeros(H, H),
    }
    head = VLNPretrainingHead(H, V, ACTIONS, tie_to=owner if tied else None)
    head.load_state_dict(released)
    assert torch.equal(head.mlm_norm.weight, source["mlm_norm.weight"] + 1)
    assert torch.equal(head.mlm_norm.bias, source["mlm_norm.bias"] + 2)
    assert torch.equal(head.mlm_bias, source["mlm_bias"] + 3)
    assert torch.equal(head.action.weight, source["action.weight"])
    if not tied:
        assert torch.equal(head.mlm_decoder.weight, source["mlm_decoder.weight"])
    del released["next_action.linear.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*action\.bias"):
        head.load_state_dict(released)


def test_half_precision_states_give_a_float_loss() -> None:
    head = VLNPretrainingHead(H, V, ACTIONS).bfloat16()
    out = head(
        states().bfloat16(), mlm_labels=torch.randint(V, (3, 7)), action_labels=torch.tensor([0, 1, 2])
    )
    assert out.loss.dtype == torch.float32


LABELS = torch.full((3, 7), -1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sequence_output": torch.zeros(3, H)}, ValueError, r"shape \(3, 8\); expected \(B, L, 8\)"),
        ({"pooled": torch.zeros(2, H)}, ValueError, r"pooled has shape \(2, 8\); expected \(3, 8\)"),
        ({"mlm_labels": LABELS[:, :6]}, ValueError, r"mlm_labels have shape \(3, 6\); expected \(3, 7\)"),
        ({"mlm_labels": LABELS + V + 1}, ValueError, "mlm_labels hold 20; expected 0 to 19"),
        ({"mlm_labels": LABELS - 1}, ValueError, "mlm_labels hold -2; expected 0 to 19"),
        ({"mlm_labels": LABELS.float()}, TypeError, "mlm_labels are torch.float32; expected integers"),
        ({"action_labels": torch.tensor([0, 1, 6])}, ValueError, "action_labels hold 6; expected 0 to 5"),
        ({"action_labels": torch.tensor([0])}, ValueError, r"action_labels have shape \(1,\)"),
        ({"candidates": torch.zeros(3, 4, H)}, ValueError, "use action_mode='pointer'"),
    ],
)
def test_bad_inputs_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    head = VLNPretrainingHead(H, V, ACTIONS)
    with pytest.raises(error, match=message):
        head(**{"sequence_output": torch.zeros(3, 7, H), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_labels": torch.tensor([0, 0, 0])}, "candidates are missing"),
        ({"candidate_mask": torch.ones(3, 4)}, "candidates are missing"),
        ({"candidates": torch.zeros(3, 4, 5)}, r"candidates have shape \(3, 4, 5\); expected \(3, A, 8\)"),
        (
            {"candidates": torch.zeros(3, 4, H), "candidate_mask": torch.ones(3, 5)},
            r"candidate_mask has shape \(3, 5\); expected \(3, 4\)",
        ),
        (
            {"candidates": torch.zeros(3, 4, H), "action_labels": torch.tensor([0, 0, 4])},
            "action_labels hold 4; expected 0 to 3",
        ),
        (
            {
                "candidates": torch.zeros(3, 2, H),
                "candidate_mask": torch.tensor([[True, False]] * 3),
                "action_labels": torch.tensor([0, 1, 0]),
            },
            "candidates that candidate_mask excludes",
        ),
    ],
)
def test_bad_candidates_are_refused(arguments: dict, message: str) -> None:
    head = VLNPretrainingHead(H, V, action_mode="pointer")
    with pytest.raises(ValueError, match=message):
        head(torch.zeros(3, 7, H), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1"),
        ({"num_actions": 1.5}, TypeError, "num_actions must be an integer"),
        ({"action_mode": "point"}, ValueError, "action_mode must be one of 'cls', 'pointer'"),
        ({"loss_weights": (1,)}, ValueError, "loss_weights must be two numbers"),
        ({"loss_weights": (1, -1)}, ValueError, "loss_weights must be in"),
        ({"tie_to": nn.Embedding(V, H + 1)}, ValueError, r"shape \(20, 9\); expected \(20, 8\)"),
        ({"tie_to": nn.ReLU()}, TypeError, "tie_to must be a tensor or a module with a weight"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VLNPretrainingHead(**{"hidden_size": H, "vocab_size": V, **arguments})


@pytest.mark.parametrize("name", ["mlm_labels", "action_labels", "pooled", "candidate_mask"])
def test_a_list_is_no_tensor(name: str) -> None:
    head = VLNPretrainingHead(H, V, ACTIONS)
    with pytest.raises(TypeError, match=rf"{name} is a list; give torch.tensor\(...\) of it"):
        head(torch.randn(2, 3, H), **{name: [1, 2]})


@pytest.mark.parametrize("mode", ["cls", "pointer"])
def test_it_compiles_whole_and_looks_at_no_value(mode: str) -> None:
    """With the default backend and a cold cache; the number of labels changes from step to step."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    head = VLNPretrainingHead(H, V, ACTIONS, action_mode=mode)
    compiled = torch.compile(head, fullgraph=True)
    for share in (0.3, 0.6, 0.1):
        x = torch.randn(4, 9, H, requires_grad=True)
        words = torch.where(torch.rand(4, 9) < share, torch.randint(V, (4, 9)), -1)
        options = {"mlm_labels": words, "action_labels": torch.tensor([0, 2, -1, 1])}
        if mode == "pointer":
            options |= {"candidates": torch.randn(4, 5, H), "candidate_mask": torch.ones(4, 5) > 0}
        ours, theirs = compiled(x, **options), head(x, **options)
        torch.testing.assert_close(ours.loss, theirs.loss)
        gradients = [torch.autograd.grad(out.loss, x)[0] for out in (ours, theirs)]
        torch.testing.assert_close(*gradients)

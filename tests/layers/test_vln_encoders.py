"""VLNPretrainingHead on encoders of other people: BERT, DistilBERT, a decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fq_toolkit import VLNPretrainingHead

H, V = 32, 60


def encoder(name: str) -> nn.Module:
    """Build a tiny model of transformers, without dropout."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if name == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=V, hidden_size=H, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return transformers.BertModel(config)
    if name == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=V, dim=H, n_layers=1, n_heads=2, hidden_dim=64, dropout=0.0, attention_dropout=0.0
        )
        return transformers.DistilBertModel(config)
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=H, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2Model(config)


def embeddings(model: nn.Module) -> nn.Embedding:
    return model.get_input_embeddings()


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_it_learns_on_any_encoder(name: str) -> None:
    torch.manual_seed(1)
    model = encoder(name)
    head = VLNPretrainingHead(hidden_size=H, vocab_size=V, num_actions=36, tie_to=embeddings(model))
    ids = torch.randint(5, V, (4, 10))
    labels = torch.where(torch.rand(4, 10) < 0.3, ids, -1)
    actions = torch.tensor([0, 7, 35, 12])
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)

    def loss() -> Tensor:
        states = model(input_ids=ids).last_hidden_state
        pooled = states[:, -1] if name == "gpt2" else None  # its first position has seen one token only
        return head(states, pooled, mlm_labels=labels, action_labels=actions).loss

    first = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * first


def test_the_block_of_the_documentation() -> None:
    bert = encoder("bert")
    ids = torch.randint(5, V, (2, 6))
    labels, actions = torch.where(torch.rand(2, 6) < 0.5, ids, -100), torch.tensor([1, 2])
    head = VLNPretrainingHead(
        hidden_size=H, vocab_size=V, num_actions=36, tie_to=bert.embeddings.word_embeddings
    )
    out = head(bert(ids).last_hidden_state, mlm_labels=labels, action_labels=actions)
    out.loss.backward()
    assert bert.embeddings.word_embeddings.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["albert", "electra"])
def test_narrow_embeddings_are_refused_with_a_remedy(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name = {"albert": "Albert", "electra": "Electra"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=V, embedding_size=16, hidden_size=H, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    model = getattr(transformers, f"{name}Model")(config)
    with pytest.raises(ValueError, match="as ALBERT's and ELECTRA's, cannot be tied: leave tie_to out"):
        VLNPretrainingHead(hidden_size=H, vocab_size=V, tie_to=embeddings(model))
    head = VLNPretrainingHead(hidden_size=H, vocab_size=V)
    ids = torch.randint(5, V, (2, 6))
    head(model(input_ids=ids).last_hidden_state, mlm_labels=ids).loss.backward()


def test_embeddings_resized_after_tying_are_noticed() -> None:
    model = encoder("bert")
    head = VLNPretrainingHead(hidden_size=H, vocab_size=V, tie_to=embeddings(model))
    model.resize_token_embeddings(V + 3)
    with pytest.raises(ValueError, match=rf"Build it with vocab_size={V + 3}, after resize_token_embeddings"):
        head(model(input_ids=torch.randint(5, V, (2, 6))).last_hidden_state)


def test_a_whole_output_is_refused_by_name() -> None:
    model = encoder("bert")
    head = VLNPretrainingHead(hidden_size=H, vocab_size=V)
    out = model(input_ids=torch.randint(5, V, (2, 6)))
    with pytest.raises(TypeError, match=r"sequence_output is a BaseModel.*; give its last_hidden_state"):
        head(out)
    with pytest.raises(TypeError, match="sequence_output is a dict; give its last_hidden_state"):
        head(dict(out))
    with pytest.raises(TypeError, match=r"pooled is a BaseModel.*; give its pooler_output"):
        head(out.last_hidden_state, out)

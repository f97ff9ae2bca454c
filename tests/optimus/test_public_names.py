"""The names and the journey of the documentation."""

from pathlib import Path

import torch

import fq_toolkit.optimus as optimus
from fq_toolkit.optimus import SentenceVAE
from tests.optimus.toys import toy_tokenizers

NAMES = {
    "BetaSchedule", "Distinct", "LanguageScores", "OptimusConfig", "Phase", "Posterior", "SentenceVAE",
    "TextBatch", "Tokenizers", "VAEOutput", "active_units", "add_text_tokens", "analogy_latents",
    "convert_optimus", "corpus_bleu", "cyclical_beta", "distinct_ngrams", "free_bits",
    "interpolate_latents", "load_model", "make_batch", "measure_language", "mutual_information",
    "self_bleu", "train", "train_tokenizers",
}  # fmt: skip


def test_the_names_of_the_documentation_are_there() -> None:
    assert set(optimus.__all__) >= NAMES
    assert set(dir(optimus)) >= NAMES


CORPUS = [
    "a girl runs .", "two girls run .", "a dog jumps .", "a man rides a horse .",
    "two dogs play in the snow .",
]  # fmt: skip


def overfitted() -> SentenceVAE:
    """A model that knows five sentences by heart, and the shift from one to two."""
    words = sorted({word for text in [*CORPUS, "two dogs jump ."] for word in text.split()})
    torch.manual_seed(0)
    vae = SentenceVAE.from_scratch(
        toy_tokenizers(words), width=32, layers=1, positions=16, dropout=0.0, latent_size=32
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    batch = vae.batch([*CORPUS, "two dogs jump ."])
    for _ in range(300):
        loss = vae(batch, beta=0.0, deterministic=True).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval()


def test_the_journey_of_a_sentence_vae(tmp_path: Path) -> None:
    overfitted().save_pretrained(tmp_path / "runs" / "optimus" / "model")
    vae = SentenceVAE.from_pretrained(tmp_path / "runs" / "optimus")
    assert vae.encode(["a man rides a horse ."]).mean.shape == (1, 32)
    path = vae.interpolate("a man rides a horse .", "two dogs play in the snow .", steps=8)
    assert len(path) == 8
    assert path[0] == "a man rides a horse ."
    assert path[-1] == "two dogs play in the snow ."
    assert vae.reconstruct(CORPUS) == CORPUS
    assert vae.analogy("a girl runs .", "two girls run .", "a girl runs .") == "two girls run ."
    assert isinstance(vae.analogy("a girl runs .", "two girls run .", "a dog jumps ."), str)

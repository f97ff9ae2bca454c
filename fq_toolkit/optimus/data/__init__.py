"""Sentences: corpora, files, tokenizers and batches of similar length."""

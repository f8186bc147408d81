"""Tokenizers, prompts, corpora and batches of tokens."""

"""Helpers that several test rooms share: tiny random checkpoints, tokenizers, data files."""

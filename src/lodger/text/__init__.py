"""Tokens and words: tokenizer, chat template, incremental text, stop strings. No torch, no transformers."""

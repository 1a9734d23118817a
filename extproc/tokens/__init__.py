"""Prefixes as chains of block hashes: `text.TextBlocks` works on bytes, without a tokenizer."""

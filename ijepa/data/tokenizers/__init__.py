"""Tokenizers: one module each, whose file name is the tokenizer's name (ijepa.data.tokenizer)."""

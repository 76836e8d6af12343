"""Rhapsode: small recurrent language models with self-attention, on the computer that you already have."""

__version__ = "0.1.0"

"""Accord aligns a causal language model with whatever feedback there is, and shows what that did to it."""

__version__ = "0.1.0"

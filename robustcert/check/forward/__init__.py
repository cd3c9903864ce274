"""Logits of a network with proved errors."""

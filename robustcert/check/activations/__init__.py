"""Activations that the checker knows."""

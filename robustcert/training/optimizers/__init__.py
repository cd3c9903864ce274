"""Optimizers of other packages, called as torch's own are; each is imported by its own path."""

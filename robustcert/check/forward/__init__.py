"""Evaluation of a network with proved bounds on the errors of its logits."""

"""Proofs of the radii of networks whose logits are quadratic functions of features."""

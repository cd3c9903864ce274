"""Pairwise Lipschitz constants by semidefinite programs."""

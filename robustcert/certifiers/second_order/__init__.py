"""Radii from gradients and curvature."""

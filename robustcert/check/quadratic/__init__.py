"""Radii of networks that end in quadratics."""

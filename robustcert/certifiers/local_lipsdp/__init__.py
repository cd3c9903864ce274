"""Semidefinite bounds on the ball around a sample."""

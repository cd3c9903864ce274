"""Proved upper bounds on the norms of operations."""

"""Runs: what the commands do."""

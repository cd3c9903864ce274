"""Configurations: their schema, what they build, and what is wrong with a command line."""

"""A folded network: constant operations, and what is proved of each."""

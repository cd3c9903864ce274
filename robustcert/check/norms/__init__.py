"""Upper bounds on norms of operations, proved."""

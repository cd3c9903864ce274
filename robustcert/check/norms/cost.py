"""How long the proof of a norm takes on one core: products counted, over a speed."""

# Speed of one core of an Intel Xeon of 2.1 GHz: products a second in the proof of a norm.
PROOF_SPEED = 1.2e11


def proof_work(out: int, inner: int) -> float:
    """Products in the proof of the norm of a matrix: its Gram matrix, a factor, two residuals."""
    small, large = sorted((out, inner))
    return 24.0 * small**2 * (small + large)


def proof_seconds(work: float) -> float:
    """Time of the proof of a norm."""
    return work / PROOF_SPEED

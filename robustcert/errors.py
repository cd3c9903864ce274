"""What the package raises. Every message names the thing, what was expected and what to change."""


class BrokenCertificate(RuntimeError):
    """An attack changed a prediction inside its certified radius: a defect of ours, always."""


class JobError(ValueError):
    """A job failed in a process of its own; the message is the error's, the traceback is logged."""


class UnsoundNetworkError(ValueError):
    """A network for which no certificate can be given: a NaN, a wrong shape, an overflow.

    ``path`` is the module that it speaks of; whoever knows more of the path puts it in front.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class UnknownLipschitz(UnsoundNetworkError, TypeError):
    """No Lipschitz constant is known for a module."""


class DivergedError(ValueError):
    """Training produced NaN or infinity."""

    def __init__(self, epoch: int, reason: str) -> None:
        super().__init__(
            f"training diverged in epoch {epoch + 1}: {reason}. Lower optimizer.lr, or clip the "
            "gradients more with trainer.gradient_clip_val"
        )


class ReportError(ValueError):
    """There is nothing to report, or a file cannot be read; the message names it."""


class NormBoundError(ValueError):
    """No bound can be proved: NaN, infinity, an unsafe range, or a failed factorisation."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""

"""What the package raises. Every message names the thing, what was expected and what to change."""

import os
import sys


class BrokenCertificate(RuntimeError):
    """An attack changed a prediction inside its certified radius.

    A defect of ours, or of a bound that a class of the user's states.
    """


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


class NotCertifiedError(ValueError):
    """A run without the certificate that is asked for; the message says how to write it."""


# Files and scripts that commands are started by.
_FILES = ("train.py", "certify.py")
_SCRIPTS = ("robustcert-train", "robustcert-certify", "robustcert-check")
_MODULES = ("report", "export", "convert", "dashboard", "board")


def typed(command: str) -> str:
    """How a command is typed, in the way in which the user started this process.

    Args:
        command: ``train``, ``certify``, ``check``, ``report``, ``export``, ``convert``,
            ``board`` or ``dashboard``.

    Returns:
        For ``certify``, ``python certify.py`` to whoever typed ``python train.py``,
        ``robustcert-certify`` to whoever typed ``robustcert-train``, and else ``robustcert
        certify``; for the modules, ``python -m robustcert.report`` unless ``robustcert`` was typed.
    """
    # What was typed comes first: a command may have replaced the name in sys.argv.
    words = (os.path.basename(word).removesuffix(".exe") for word in (*sys.orig_argv, sys.argv[0]))
    by = next((word for word in words if word in ("robustcert", *_FILES, *_SCRIPTS)), "")
    if by in _FILES and f"{command}.py" in _FILES:
        return f"python {command}.py"
    if by in _SCRIPTS and f"robustcert-{command}" in _SCRIPTS:
        return f"robustcert-{command}"
    if by != "robustcert" and by not in _SCRIPTS and command in _MODULES:
        return f"python -m robustcert.{command}"
    return f"robustcert {command}"

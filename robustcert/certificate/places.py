"""Where things are: a run's checkpoint and certificate, named by the run or by one another.

This module imports only ``os``, so that ``robustcert check`` can use it in a folder whose files
must not be executed.
"""

import os

from robustcert.errors import NotCertifiedError, typed

CLAIM = "certificate.json"
BEST = os.path.join("checkpoints", "best.ckpt")


def certificate_of(path: str) -> str:
    """The certificate folder that is meant by a path.

    Args:
        path: A certificate folder, its ``certificate.json``, a run's folder, a run's checkpoint or
            an ONNX file. Anything else is returned as it is, for whoever reads it to say what is
            wrong with it.

    Raises:
        NotCertifiedError: the run or the checkpoint has no certificate.
    """
    if os.path.isfile(path) and os.path.basename(path) == CLAIM:
        return os.path.dirname(path) or "."
    if _holds(path, CLAIM):
        return path
    if os.path.isfile(path) and path.endswith((".ckpt", ".onnx")):
        found = certificate_beside(path)
    elif _holds(path, os.path.join("certificate", CLAIM)) or _holds(path, BEST):
        found = os.path.join(path, "certificate")
    else:
        return path
    if not _holds(found, CLAIM):
        raise NotCertifiedError(
            f"{path}: no certificate yet: expected {found}; write it by {typed('certify')} {path}"
        )
    return found


def certificate_beside(checkpoint: str) -> str:
    """Where the certificate of a checkpoint is by default: ``certificate`` in the run's folder.

    That of another checkpoint than ``best.ckpt`` has the difference in its name.
    """
    folder, name = os.path.split(checkpoint)
    stem = os.path.splitext(name)[0]
    run = os.path.dirname(folder) if os.path.basename(folder) == "checkpoints" else folder
    return os.path.join(run, "certificate" if stem == "best" else f"certificate-{stem}")


def checkpoint_of(path: str) -> str:
    """The checkpoint that is meant by a path.

    Args:
        path: A checkpoint, a run's folder, its ``checkpoints``, or a certificate folder in it: then
            ``best.ckpt`` of that run. Anything else is returned as it is.
    """
    for folder in (path, os.path.dirname(os.path.abspath(path))):
        if os.path.isdir(path) and _holds(folder, BEST):
            return os.path.join(folder, BEST)
    return path


def _holds(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))

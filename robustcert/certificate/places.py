"""Where things are: a run's checkpoint and certificate, and the networks that are handed out.

This module imports only ``os``, so that ``robustcert check`` can use it in a folder whose files
must not be executed.
"""

import os

from robustcert.errors import NotCertifiedError, typed

CLAIM = "certificate.json"
BEST = os.path.join("checkpoints", "best.ckpt")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Where a wheel keeps the released networks, and where a checkout does.
_RELEASED = (
    os.path.join(_PACKAGE, "pretrained"),
    os.path.join(os.path.dirname(_PACKAGE), "docs", "pretrained"),
)


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


def only_certificate_of(path: str) -> str:
    """The same of a path that can be nothing else.

    Raises:
        NotCertifiedError: as above, or the path is a folder that is neither.
    """
    found = certificate_of(path)
    if os.path.isdir(found) and not _holds(found, CLAIM):
        raise NotCertifiedError(
            f"{path}: neither a run nor a certificate: expected a folder with {CLAIM} or {BEST}"
        )
    return found


def released_networks() -> dict[str, str]:
    """Certificate folders of the networks that come with the package, by their names."""
    root = next((folder for folder in _RELEASED if os.path.isdir(folder)), "")
    names = sorted(os.listdir(root)) if root else []
    folders = {name: os.path.join(root, name) for name in names}
    return {name: folder for name, folder in folders.items() if _holds(folder, CLAIM)}


def named_certificate(name: str) -> str:
    """The certificate folder of a path, or of a released network that no path hides.

    Only loading takes names: a command that proves a folder must never prove another one.

    Raises:
        NotCertifiedError: there is neither a path nor a network of this name, or the run that it
            names has no certificate.
    """
    if os.path.lexists(name):
        return only_certificate_of(name)
    released = released_networks()
    if name not in released:
        raise NotCertifiedError(
            f"{name}: expected a certificate folder, a run, a checkpoint, or the name of a "
            f"released network ({', '.join(released) or 'none comes with this copy'})"
        )
    return released[name]


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

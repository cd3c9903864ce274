"""A certificate in use, whoever wrote the classes that its network is made of."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from robustcert.certificate import predictor, regressor
from robustcert.certificate.places import named_certificate
from robustcert.certificate.predictor import Predictor, require_constants
from robustcert.certificate.regressor import Regressor
from robustcert.certifiers import LipschitzCertifier, Task
from robustcert.runs.own_classes import naming_packages, own_certified, task_of


def load(
    path: str | Path,
    *,
    least_radius: float = 0.0,
    dtype: Literal["float64", "float32"] = "float64",
    device: str | torch.device = "cpu",
    allow_targets: Sequence[str] = (),
) -> Predictor:
    """The predictor of a certificate, see :func:`robustcert.certificate.predictor.load`.

    A network with classes of ``allow_targets`` is built again from its run's checkpoint, compared
    with that of the certificate, and bounded here: its constants then rest on what these classes
    say of themselves, and no independent checker has proved them again.

    Args:
        path: The certificate folder, a run's folder, its checkpoint, or the name of a network that
            comes with the package, ``"mnist_1.58"``.
        least_radius: As for :class:`robustcert.Predictor`.
        dtype: As for :class:`robustcert.Predictor`.
        device: As for :class:`robustcert.Predictor`.
        allow_targets: Packages of yours whose classes the network may have.

    Raises:
        ConfigError: the network has classes of a package that is not allowed.
        NotCertifiedError: nothing has this name, the run has no certificate yet, or its checkpoint
            holds another network.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder does not speak of the network.
    """
    folder = named_certificate(str(path))
    own = own_certified(folder, Task.CLASSIFICATION, allow_targets)
    if own is None:
        with naming_packages(folder):
            return predictor.load(folder, least_radius=least_radius, dtype=dtype, device=device)
    network, proof = own
    require_constants(path, proof)
    pairwise = LipschitzCertifier().pairwise_bound(network)
    return Predictor(network, pairwise, least_radius=least_radius, dtype=dtype, device=device)


def load_regressor(
    path: str | Path,
    *,
    dtype: Literal["float64", "float32"] = "float64",
    allow_targets: Sequence[str] = (),
) -> Regressor:
    """The regressor of a certificate, see :func:`robustcert.certificate.regressor.load_regressor`.

    Args:
        path: As for :func:`load`.
        dtype: As for :class:`robustcert.Regressor`.
        allow_targets: As for :func:`load`.

    Raises:
        ConfigError: as for :func:`load`.
        NotCertifiedError: as for :func:`load`.
        UnreadableError: the folder is malformed.
        UnsoundNetworkError: a constant is not proved, or the folder is of classes.
    """
    folder = named_certificate(str(path))
    own = own_certified(folder, Task.REGRESSION, allow_targets)
    if own is None:
        with naming_packages(folder):
            return regressor.load_regressor(folder, dtype=dtype)
    return Regressor(own[0], dtype=dtype)


def load_any(
    path: str | Path,
    *,
    dtype: Literal["float64", "float32"] = "float64",
    allow_targets: Sequence[str] = (),
) -> Predictor | Regressor:
    """The predictor or the regressor of a certificate, whichever its claim says that it is of.

    Args:
        path: As for :func:`load`.
        dtype: As for :func:`load`.
        allow_targets: As for :func:`load`.

    Raises:
        ValueError: as :func:`load` and :func:`load_regressor` do.
    """
    # What is of no known task is for the reader of classes to refuse.
    loader = _LOADERS.get(task_of(named_certificate(str(path))), load)
    return loader(path, dtype=dtype, allow_targets=allow_targets)


_LOADERS: Mapping[str, Callable[..., Predictor | Regressor]] = {
    Task.CLASSIFICATION: load,
    Task.REGRESSION: load_regressor,
}

"""Certificates of networks with classes of a user's own package.

The independent checker knows nothing of these classes, so that such a network is built again from
the checkpoint that the certificate is of, as ``certify`` does: only with the user's permission, and
only if it is the network of the certificate, operation by operation and weight by weight.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustcert.certificate.places import checkpoint_of
from robustcert.certificate.space import space_record
from robustcert.certifiers import Task
from robustcert.config.build import COMMAND_LINE_TARGETS
from robustcert.errors import BrokenCertificate, ConfigError, NotCertifiedError, UnsoundNetworkError
from robustcert.network.network import PlainNetwork
from robustcert.runs.permission import WORD
from robustcert.runs.subject import Subject, read_run


def own_packages(folder: str | Path) -> list[str]:
    """Packages beside ours and torch whose classes a certificate's network is made of."""
    found = _targets((_record(folder).get("config") or {}).get("model"))
    return sorted({name.partition(".")[0] for name in found})


@contextmanager
def naming_packages(folder: str | Path) -> Iterator[None]:
    """A refusal of a certificate, with the packages of the user's that it may be for want of.

    Raises:
        ConfigError: the certificate is refused, and its network has classes of such a package.
    """
    try:
        yield
    except ValueError as error:
        found = own_packages(folder)
        if not found or WORD in str(error):
            raise
        raise ConfigError(
            f"{error}. Its network has classes of {', '.join(found)}: if you trust them, add "
            f"{WORD}[{','.join(found)}]"
        ) from error


@contextmanager
def naming_classes(config: Mapping[str, Any]) -> Iterator[None]:
    """A broken certificate, with the user's classes whose stated bounds may have broken it."""
    try:
        yield
    except BrokenCertificate as error:
        found = sorted({*_targets(config.get("model")), *_targets(config.get("certifier"))})
        if not found:
            raise
        raise BrokenCertificate(
            f"{error}. What {', '.join(found)} says of itself is taken as it stands: one of its "
            "bounds is too small"
        ) from error


def own_subject(folder: str | Path, allow_targets: Sequence[str]) -> Subject | None:
    """What a certificate is of, built again from its checkpoint with the classes that are allowed.

    Args:
        folder: The certificate folder.
        allow_targets: Packages of the user's; without any, or where the network has no class of
            them, nothing is built.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: a class is not allowed.
        NotCertifiedError: the checkpoint holds another network than the certificate is of.
    """
    if not allow_targets or not own_packages(folder):
        return None
    record = _record(folder)
    config = record.get("config") or {}
    places = {key: config["dataset"].get(key) for key in ("root", "checksum", "download")}
    name = str((record.get("checkpoint") or {}).get("file", "best.ckpt"))
    path = Path(checkpoint_of(str(folder))).with_name(Path(name).name)
    subject = read_run(str(path), {}, places, config.get("norm") or {}, allow_targets)
    here = subject.network.digest(), space_record(subject.network)["metric"]
    there = record.get("network", {}).get("digest"), record.get("claim", {}).get("metric")
    if here != there:
        raise NotCertifiedError(
            f"{path} holds another network than the certificate {folder} is of: certify it again"
        )
    return subject


def own_certified(
    folder: str | Path, task: str, allow_targets: Sequence[str]
) -> tuple[PlainNetwork, str] | None:
    """The network of :func:`own_subject` and what its certificate was proved by.

    Raises:
        UnsoundNetworkError: the certificate is of outputs for another task.
    """
    subject = own_subject(folder, allow_targets)
    if subject is None:
        return None
    found = subject.dataset.targets.task
    if found != task:
        raise UnsoundNetworkError(f"{folder} is of a {found}, not of a {task}")
    return subject.network, str(_record(folder)["claim"]["proof"])


def task_of(folder: str | Path) -> str:
    """What a certificate folder says that its outputs are for; nothing is proved."""
    claim = _record(folder).get("claim")
    said = claim.get("task") if isinstance(claim, dict) else None
    return str(said or Task.CLASSIFICATION)


def _record(folder: str | Path) -> dict[str, Any]:
    try:
        record = json.loads((Path(folder) / "certificate.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _targets(value: object) -> Iterator[str]:
    """Classes that a configuration names, ours and torch's left out."""
    if isinstance(value, Mapping):
        name = str(value.get("_target_", ""))
        yield from [name] if name and name.partition(".")[0] not in COMMAND_LINE_TARGETS else []
    if isinstance(value, Mapping | list):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _targets(entry)

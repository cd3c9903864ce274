"""An earlier certificate in the place of a new one: kept, if it says something else."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcert.certificate.claim import FORMAT, is_certificate
from robustcert.certifiers import Certifier, LipschitzCertifier
from robustcert.errors import ConfigError
from robustcert.runs.attack import in_words


def keep_earlier(
    folder: Path,
    certifier: Certifier,
    named: Mapping[str, Any],
    radii: Sequence[float],
    attacked: int,
    metric: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to replace a certificate by one of another certifier, metric, radii or less attacked.

    Args:
        folder: Where the new certificate would be written, with nobody having named that folder.
        certifier: The new certificate's.
        named: Its node.
        radii: Its radii.
        attacked: Number of samples to attack.
        metric: What the new certificate's claim says of its metric, if it has one.

    Raises:
        ConfigError: the folder holds another certificate; the message names what differs.
    """
    if not is_certificate(folder):
        return
    claim = json.loads((folder / "certificate.json").read_text())
    if claim.get("format") != FORMAT:
        return  # nothing reads it any more
    found = _difference(claim, certifier, named, radii, attacked)
    earlier = claim["claim"]["metric"]
    if earlier != metric:
        changes = [m["change"] if m else "the l2 distance of inputs" for m in (earlier, metric)]
        found = f"norm: {changes[0]}, not {changes[1]}", "norm"
    if found is not None:
        what, suffix = found
        raise ConfigError(
            f"{folder} holds a certificate of other settings ({what}): add "
            f"output={folder}-{suffix} to keep both, or output={folder} to replace it"
        )


def _difference(
    claim: Mapping[str, Any],
    certifier: Certifier,
    named: Mapping[str, Any],
    radii: Sequence[float],
    attacked: int,
) -> tuple[str, str] | None:
    """What differs first, in words, and a name for the new certificate."""
    was, had = _settings(claim.get("certifier") or {}, certifier)
    now, has = _settings(in_words(named), certifier)
    if was != now:
        return f"{was}, not {now}", now.removesuffix("Certifier").lower()
    for key in sorted({*had, *has}):
        if had.get(key) != has.get(key):
            return f"certifier.{key} {had.get(key)}, not {has.get(key)}", f"{key}-{has.get(key)}"
    before = [row["decimal"] for row in claim["summary"]["certified"]]
    if sorted(before) != sorted(radii):
        return f"radii {_listed(before)}, not {_listed(radii)}", f"radii-{'-'.join(_texts(radii))}"
    earlier = (claim.get("attack") or {}).get("samples", 0)
    if attacked < earlier:
        return f"{earlier} samples attacked, not {attacked}", f"attack-{attacked}"
    return None


def _settings(node: Mapping[str, Any], certifier: Certifier) -> tuple[str, dict[str, Any]]:
    """A certifier's class and options, with the defaults of the options that are not named."""
    name = node.get("_target_", LipschitzCertifier.__name__).rpartition(".")[2]
    options = {key: value for key, value in node.items() if key != "_target_"}
    if name != type(certifier).__name__:
        return name, options
    parameters = inspect.signature(type(certifier)).parameters.values()
    defaults = {p.name: in_words(p.default) for p in parameters if p.default is not p.empty}
    return name, {**defaults, **options}


def _listed(radii: Sequence[float]) -> str:
    return ", ".join(_texts(radii))


def _texts(radii: Sequence[float]) -> list[str]:
    return [f"{radius:.4g}" for radius in sorted(radii)]

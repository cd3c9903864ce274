"""HTML from templates: one file, everything in it, nothing fetched."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcert import __version__
from robustcert.atomic import complete_file
from robustcert.report.pictures import Picture
from robustcert.report.summary import Estimate

# What stands where a table has no value.
DASH = "\N{EN DASH}"


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template of ``templates/`` and write it, completely or not at all."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustcert.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "percent": percent,
        "estimate": show_estimate,
        "number": number,
    }
    text = environment.get_template(template).render(version=__version__, **values)
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_pictures(pictures: Sequence[Picture], out: Path, formats: Sequence[str]) -> list[Path]:
    """Write pictures as files for papers, ``<name>.pdf`` and so on; returns their paths."""
    written = []
    for picture in pictures:
        for kind in formats:
            if picture.paper is None:
                continue
            path = out / f"{picture.name}.{kind}"
            with complete_file(path) as temporary:
                temporary.write_bytes(picture.paper(kind))
            written.append(path)
    return written


def data_uri(png: bytes) -> str:
    """A PNG as an address that carries it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where there is none."""
    return DASH if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with a few significant digits and thousands apart; a dash where there is none."""
    if value is None:
        return DASH
    if 10**digits - 0.5 <= abs(value) < 1e15:
        # As 1.3e+02 nobody reads it.
        value = round(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{digits}g}"


def show_estimate(found: Estimate | None, share: bool, runs: int) -> str:
    """A mean with its interval, a share in percent; and its n where that is not the group's."""
    if found is None:
        return DASH
    scale = 100 if share else 1
    digits = 1 if share or found.mean >= 10 else 2
    text = f"{scale * found.mean:.{digits}f}"
    if found.half is not None:
        text += f" ± {scale * found.half:.{digits}f}"
    return text + (f" (n={found.count})" if found.count != runs else "")

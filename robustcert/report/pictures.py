"""Pictures in two colour schemes, as bytes that only depend on what is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from robustcert.certificate.style import drawing, encoded


@dataclass(frozen=True)
class Picture:
    """A picture for a page.

    Attributes:
        name: Its file name without suffix.
        alt: What it shows, for those who cannot see it.
        caption: What stands below it.
        wide: Whether it is too wide to be shrunk to a narrow screen.
        light: PNG on white.
        dark: PNG on black.
        paper: The same as a file for papers, by kind: ``pdf`` and ``svg``.
    """

    name: str
    alt: str
    caption: str
    wide: bool
    light: bytes
    dark: bytes
    paper: Callable[[str], bytes] | None = None


def render(
    name: str,
    draw: Callable[[Any], None],
    *,
    alt: str,
    caption: str,
    size: tuple[float, float] = (6.4, 4.2),
) -> Picture:
    """Draw on a matplotlib figure once for each colour scheme."""

    def paper(kind: str) -> bytes:
        with drawing(size) as figure:
            draw(figure)
            return encoded(figure, kind)

    with drawing(size, "dark") as figure:
        draw(figure)
        dark = encoded(figure)
    return Picture(name, alt, caption, size[0] > 7, paper("png"), dark, paper)

"""Numbers as a reader wants them, and a model's card as safe HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

LONGEST_CARD = 200_000
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def thousands(value: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


NOTHING = "–"
"""Printed for a number that is not there."""


def significant(value: float | None, digits: int = 4, factor: float = 1.0) -> str:
    """``value * factor`` with so many significant digits; a power of ten where there would be many zeros.

    None and what is not finite are a dash.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    value *= factor
    if value == 0:
        return "0"
    if abs(value) >= min(1000, 10**digits - 0.5):
        return f"{value:,.0f}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value / 10.0**exponent:.{digits}g} × 10{str(exponent).translate(_SUPERSCRIPT)}"
    return f"{value:.{digits}g}"


def readable(unit: str, largest: float) -> tuple[float, str]:
    """Factor and unit that keep numbers up to ``largest`` short: mm from 1000 µm on, mm³ from a million µm³ on."""
    if unit == "µm" and largest >= 1e3:
        return 1e-3, "mm"
    if unit == "µm³" and largest >= 1e6:
        return 1e-9, "mm³"
    return 1.0, unit


def quantity(value: float | None, unit: str) -> str:
    """A number with the unit that keeps it short."""
    if value is None or not math.isfinite(value):
        return NOTHING
    factor, unit = readable(unit, abs(value))
    return f"{significant(value * factor)} {unit}".rstrip()


def volume(cubic_micrometres: float) -> str:
    """A volume in the unit that keeps it readable: µm³ below a million, mm³ above 10⁻³."""
    return quantity(cubic_micrometres, "µm³")


def plural(number: int, noun: str, many: str = "") -> str:
    """ "1 object", "1,234 objects"."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def share(part: int, whole: int) -> str:
    """Percentage with two digits behind the point; something that is not nothing never reads as 0."""
    if part == 0 or whole == 0:
        return "0 %"
    percent = 100 * part / whole
    return "< 0.01 %" if percent < 0.01 else f"{percent:.2f} %"


def size(number: float) -> str:
    """Bytes with decimal prefixes and three digits."""
    power = 0 if number < 1000 else min(int(math.log10(number) // 3), len(_BYTES) - 1)
    value = number / 1000**power
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {_BYTES[power]}"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def dimensions(values: tuple[float, ...]) -> str:
    """Shape or spacing as z × y × x."""
    return " × ".join(f"{value:,}" if isinstance(value, int) else f"{value:.5g}" for value in values)


def card(markdown: str) -> Markup:
    """HTML of a model's card.

    The card is a stranger's text: HTML in it is shown as text, links may only lead to the web, of a picture its text
    is left, and its headings start below those of the report. A YAML block at its top is shown as it is.
    """
    parser = MarkdownIt("js-default")
    parser.add_render_rule("image", _picture_text)
    markdown = markdown[:LONGEST_CARD]
    front = ""
    if markdown.startswith("---\n") and "\n---\n" in markdown[3:]:
        front, _, markdown = markdown[4:].partition("\n---\n")
    tokens = parser.parse(markdown)
    headings = [token for token in tokens if token.type in ("heading_open", "heading_close")]
    levels = sorted({token.tag for token in headings})
    for token in headings:
        token.tag = f"h{min(6, levels.index(token.tag) + 4)}"
    body = Markup(parser.renderer.render(tokens, parser.options, {}))
    return (Markup("<pre>{}</pre>").format(front) if front else Markup("")) + body


def _picture_text(renderer: object, tokens: Sequence[Token], index: int, options: object, env: object) -> str:
    return escape(tokens[index].content)

"""Picture: panels of horizontal bars as one SVG file, with what it needs and nothing else.

Called by: summary.
Never break: a bar starts at zero, and all bars of a panel share one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, ROW, HEAD, GAP, NAME, VALUE = 880, 22, 46, 18, 130, 120
COLOURS = {"hub": "#0a6cc4", "c-loop": "#8a8a8a", "c-topics": "#8a8a8a"}
OTHERS = "#c9ced6"


class Bar(NamedTuple):
    """low and high: the spread, drawn as a thin line; the same as `value` for none."""

    name: str
    value: float
    low: float
    high: float
    text: str


class Panel(NamedTuple):
    """title says which way is better."""

    title: str
    bars: Sequence[Bar]


def svg(panels: Sequence[Panel], footer: str) -> str:
    """The whole file."""
    parts, top = [], GAP
    for panel in panels:
        parts.append(_panel(panel, top))
        top += HEAD + ROW * len(panel.bars) + GAP
    parts.append(_text(GAP, top, footer, 11, "#57606a"))
    height = top + GAP
    begin = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif">'
    )
    return "\n".join([begin, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def _panel(panel: Panel, top: int) -> str:
    scale = (WIDTH - NAME - VALUE - 2 * GAP) / max(bar.high for bar in panel.bars)
    parts = [_text(GAP, top + 20, panel.title, 15, "#1f2328", "bold")]
    parts += [_bar(bar, top + HEAD - 12 + ROW * i, scale) for i, bar in enumerate(panel.bars)]
    return "\n".join(parts)


def _bar(bar: Bar, top: int, scale: float) -> str:
    left, middle = GAP + NAME, top + ROW / 2
    colour = COLOURS.get(bar.name, OTHERS)
    parts = [
        _text(GAP, top + 15, bar.name, 13, "#1f2328", "bold" if bar.name == "hub" else "normal"),
        f'<rect x="{left}" y="{top + 3}" width="{bar.value * scale:.1f}" height="{ROW - 6}" fill="{colour}"/>',
    ]
    if bar.high > bar.low:
        parts.append(
            f'<path d="M{left + bar.low * scale:.1f} {middle}H{left + bar.high * scale:.1f}" stroke="#1f2328"/>'
        )
    parts.append(_text(left + bar.high * scale + 6, top + 15, bar.text, 12, "#1f2328"))
    return "\n".join(parts)


def _text(x: float, y: float, words: str, size: int, colour: str, weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f"<text {place}>{escape(words)}</text>"

"""Colours that survive colour-blindness, greyscale and a dark page.

Heat maps run through cividis (values) or from blue over white to orange (signed), both monotone in
lightness away from their middle; the number is printed in the cell. Curves take Okabe and Ito's
colours (2008), neighbours also apart in lightness, and a dash pattern each.
"""

from __future__ import annotations

# cividis at ten equal steps (Nuñez, Anderton, Renslow 2018).
_CIVIDIS = (
    (0, 34, 78),
    (18, 53, 112),
    (59, 73, 108),
    (87, 93, 109),
    (112, 113, 115),
    (138, 134, 120),
    (165, 156, 116),
    (195, 179, 105),
    (225, 204, 85),
    (254, 232, 56),
)
_SIGNED = ((5, 77, 143), (120, 170, 214), (247, 247, 247), (240, 170, 90), (158, 76, 0))

# How many curve colours page/document.css names, --c0 and on, for light and for dark pages.
CURVES = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")

RGB = tuple[int, int, int]


def heat(share: float, *, signed: bool = False) -> RGB:
    """The colour at `share` in [0, 1] of the scale."""
    stops = _SIGNED if signed else _CIVIDIS
    position = min(1.0, max(0.0, share)) * (len(stops) - 1)
    low = min(int(position), len(stops) - 2)
    part = position - low
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(stops[low], stops[low + 1], strict=True)
    )
    return (red, green, blue)


def ink(background: RGB) -> RGB:
    """Black or white, whichever reads better on `background` (WCAG 2 contrast)."""
    luminance = _luminance(background)
    on_white = 1.05 / (luminance + 0.05)
    on_black = (luminance + 0.05) / 0.05
    return (0, 0, 0) if on_black >= on_white else (255, 255, 255)


def css(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _luminance(colour: RGB) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""RGB colours 0..255 and their mixtures."""

from __future__ import annotations

Colour = tuple[float, float, float]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Blend two RGB colours: share 0 is a, 1 is b."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor below 1) or lighten (above 1, towards white) an RGB colour."""
    if factor <= 1:
        return tuple(x * factor for x in colour)  # type: ignore[return-value]
    return mix(colour, (255.0, 255.0, 255.0), factor - 1)

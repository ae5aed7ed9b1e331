"""How large a given file may be: said before anything of it is decoded, lifted by --unlimited."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from uniavgen_cli.errors import InputError

MOST_PIXELS = 100_000_000  # of a still picture
MOST_FRAME_PIXELS = 40_000_000  # of a video: 8192 x 4320 and a little more
MOST_SECONDS = 3600.0
MOST_FRAMES = 500_000
MOST_CHANNELS = 16
MOST_SAMPLE_RATE = 768_000

_lifted: ContextVar[bool] = ContextVar("limits_lifted", default=False)


@contextmanager
def lifted(unlimited: bool = True) -> Iterator[None]:
    """Within the block nothing is too large, if `unlimited`; limits that were lifted before stay so."""
    token = _lifted.set(unlimited or _lifted.get())
    try:
        yield
    finally:
        _lifted.reset(token)


def limit(value: float) -> float | None:
    """`value`, or None where limits are lifted."""
    return None if _lifted.get() else value


def check(name: str, value: float, most: float, unit: str, hint: str) -> None:
    """Raise InputError when the file `name` (as shown) has more than `most` of something."""
    if value > most and not _lifted.get():
        raise InputError(
            f"{name} has {value:,.10g} {unit}, and at most {most:,.10g} are taken",
            f"{hint}, or say --unlimited",
        )

"""Names of files: what a clip is called by default, and what a text becomes as a name. No torch."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen_cli.errors import UsageError

if TYPE_CHECKING:
    from uniavgen_cli.engine.request import Request

_LONGEST = 120  # bytes of a cleaned name; most file systems take 255


def parse_size(text: str | None) -> tuple[int, int] | int | None:
    """`256` is the short side, `384x256` width and height; as Request has it, (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text.strip())
    if not match:
        raise UsageError(f"--size {text} is no size", "give the short side in pixels, or WIDTHxHEIGHT")
    width, height = match.groups()
    return int(width) if height is None else (int(height), int(width))


def slug(request: "Request") -> str:
    """A short file name from what was asked for: its file, prompt or speech; of a private clip nothing."""
    if request.private:
        return "clip"
    file = request.video or request.sound
    text = (
        file.stem
        if file
        else request.prompt or request.speech or (request.face.stem if request.face else "clip")
    )
    words = re.sub(r"\W+", "-", text.lower().replace("_", "-")).strip("-")
    short = words if len(words) <= 40 else words[:41].rpartition("-")[0] or words[:40]
    return short or "clip"


def clean(text: str) -> str:
    """`text` as the name of one visible file: no folder, no control character, no leading dash or dot."""
    name = re.sub(r"[\x00-\x1f\x7f<>:\"/\\|?*]+", "-", text).lstrip(" .-").rstrip(" .")
    name = name.encode("utf-8", "ignore").decode()  # what stood for bytes that are no UTF-8
    suffix = Path(name).suffix
    stem, suffix = (Path(name).stem, suffix) if len(suffix.encode()) < 10 else (name, "")
    room = _LONGEST - len(suffix.encode())
    return (stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + suffix) if stem else ""


def container(request: "Request") -> str:
    """The ending of the result: .mp4, unless that can't keep the packets of a video that is dubbed."""
    if request.task != "dub" or request.video is None:
        return ".mp4"
    from uniavgen_cli.media.limits import lifted
    from uniavgen_cli.media.video import dub_container

    with lifted(request.unlimited):
        return dub_container(request.video)

"""`uniavgen info`: what a file holds, and how a clip of ours was made."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output


def info(
    file: Annotated[Path, o.Argument(help="A clip, or any picture, video or sound.", metavar="FILE")],
    unlimited: o.UnlimitedOption = False,
    json: o.JsonOption = False,
) -> None:
    """Say how a clip was made, from its own metadata, and what it holds.

    \b
    Examples:
      uniavgen info outputs/generate-hello.mp4
      uniavgen info outputs/generate-hello.mp4 --json
    """
    from uniavgen_cli.engine.provenance import from_tags
    from uniavgen_cli.media.limits import lifted
    from uniavgen_cli.media.probe import probe
    from uniavgen_cli.media.video import read_metadata

    with lifted(unlimited):
        media = probe(file)
        made = from_tags(read_metadata(file))
    if json:
        _output.data_json({"media": asdict(media), "made": made})
        return
    rows = [("file", str(file)), *_media_rows(asdict(media))]
    if made is None:
        rows.append(("made", "not by uniavgen, or its metadata was taken off"))
    else:
        rows += [(key.replace("_", " "), _shown(value)) for key, value in made.items()]
    _output.table(rows)


def _media_rows(media: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("length", f"{media['duration_s']:.3f} s")] if media["image"] is None else []
    if image := media["image"]:
        rows.append(("picture", f"{image['width']}x{image['height']}, {media['format']}"))
    if video := media["video"]:
        shape = (
            f"{video['width']}x{video['height']}, {video['num_frames']} frames at {video['fps']:g} a second"
        )
        rows.append(("video", f"{shape}, {video['codec']}"))
    if audio := media["audio"]:
        sound = f"{audio['sample_rate']} Hz, {audio['channels']} channels, {audio['codec']}"
        rows.append(("sound", f"{sound}, {audio['duration_s']:.3f} s"))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    if value is None:
        return "-"
    return str(value)

"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

import html
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen_cli import __version__
from uniavgen_cli.codecs.mel import N_FFT
from uniavgen_cli.errors import InputError
from uniavgen_cli.evaluation import plots
from uniavgen_cli.evaluation.runner import METRICS, LeftOut, Measured, how_measured
from uniavgen_cli.media.output import check_output

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; }
td { vertical-align: top; }
td.number { text-align: right; white-space: nowrap; } .note { opacity: .7; }
.met { color: #15803d; } .missed { color: #c2410c; font-weight: 600; }
img { max-width: 100%; display: block; margin: .5rem 0; } img.wide { width: 100%; height: 130px; }
svg { display: block; margin: .5rem 0; } svg .grid { stroke: #8883; }
svg .tick, svg .name { font-size: 11px; fill: currentColor; } svg .tick { text-anchor: middle; opacity: .7; }
figure { margin: 1rem 0; } figcaption { opacity: .7; font-size: .9em; }
"""
_CURVE_NAMES = {"opening": "opening of the mouth", "sound": "loudness", "heard": "opening the phonemes want"}
LARGEST_SECONDS = 60  # of sound in a spectrogram


def page(title: str, body: Iterable[str]) -> str:
    """The whole page."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *body,
        f'<p class="note">uniavgen {__version__}</p></body></html>\n',
    ]
    return "\n".join(parts)


def clips_body(clips: Sequence[Measured]) -> Iterable[str]:
    """A section a clip, with what can be seen of it, and how each figure is measured."""
    if len(clips) > 1:
        yield table(*overview(clips))
    for measured in clips:
        yield from _clip(measured)
    yield "<h2>How it is measured</h2>"
    for metric in METRICS:
        yield f"<p><b>{html.escape(metric.name)}</b>: {html.escape(how_measured(metric))}</p>"


def overview(clips: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of metrics by clips, those that any clip has."""
    metrics = [metric for metric in METRICS if any(metric.key in clip.values for clip in clips)]
    head = ["", "unit", "better", *(clip.clip.path.name for clip in clips)]
    rows = [
        [metric.name, metric.unit, metric.better, *(shown(clip.values.get(metric.key)) for clip in clips)]
        for metric in metrics
    ]
    return head, rows


def shown(value: Any) -> str:
    """A value for a person."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of text."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = [f"<table><tr>{cells}</tr>"]
    for row in rows:
        cells = "".join(f"<td{_class(cell)}>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "".join([*lines, "</table>"])


def figure(picture: np.ndarray, caption: str, wide: bool = False) -> str:
    """A picture (h, w, 3) uint8 RGB with words under it."""
    name = ' class="wide"' if wide else ""
    return (
        f'<figure><img{name} alt="{html.escape(caption)}" src="{plots.jpeg_uri(picture)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def write_page(path: Path, text: str, overwrite: bool = False) -> Path:
    """Write the page, whole or not at all. Raises OutputError."""
    check_output(path, overwrite, (".html", ".htm"))
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


def _clip(measured: Measured) -> Iterable[str]:
    clip = measured.clip
    yield f"<h2>{html.escape(str(clip.path))}</h2>"
    media = clip.media
    what = [f"{media.duration_s:.2f} s"]
    if media.video is not None:
        what.append(f"{media.video.width}x{media.video.height}, {media.video.fps:g} frames a second")
    if clip.record is not None:
        what.append(f"made by uniavgen {clip.record.get('task')}, preset {clip.record.get('preset')}")
    yield f'<p class="note">{html.escape("; ".join(what))}</p>'
    with suppress(LeftOut, InputError):  # the table says why
        yield figure(plots.contact_sheet(clip.frames), "frames spread over the clip")
    curves = {_CURVE_NAMES[name]: curve for name, curve in measured.curves.items()}
    if curves:
        ordered = {name: curves[name] for name in _CURVE_NAMES.values() if name in curves}
        yield plots.curves_svg(ordered, len(next(iter(ordered.values()))) / clip.fps)
    with suppress(LeftOut, InputError):
        samples = clip.samples[: LARGEST_SECONDS * 24_000]
        if len(samples) > N_FFT:
            yield figure(plots.spectrogram_for_page(samples), "sound, 0 to 8 kHz on the mel scale", wide=True)
    rows = [
        [metric.name, shown(measured.values[metric.key]), metric.unit, metric.better]
        for metric in METRICS
        if metric.key in measured.values
    ]
    yield table(["", "value", "unit", "better"], rows)
    if measured.left_out:
        names = {metric.key: metric.name for metric in METRICS}
        reasons: dict[str, list[str]] = {}
        for key, reason in measured.left_out.items():
            reasons.setdefault(reason, []).append(names[key])
        left_out = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in reasons.items())
        yield f'<p class="note">Left out: {html.escape(left_out)}</p>'


def _class(cell: str) -> str:
    if cell in ("met", "missed"):
        return f' class="{cell}"'
    return ' class="number"' if cell[:1].isdigit() or cell[:1] == "-" else ""

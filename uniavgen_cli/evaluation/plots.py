"""What of a clip can be looked at: a contact sheet, the mouth's opening against the sound, a spectrogram.

Pictures are uint8 RGB (h, w, 3); curves become SVG, which stays sharp and small.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from uniavgen_cli.codecs.mel import HOP, log_mel, normalize, peak_normalize
from uniavgen_cli.data.preview import tiled

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 150, 8, 18
COLOURS = ("#c2410c", "#0f766e", "#6d28d9", "#64748b")


def contact_sheet(frames: np.ndarray, most: int = 16, columns: int = 8, side: int = 128) -> np.ndarray:
    """At most `most` frames spread over a clip (n, h, w, 3), short side `side` or less, in rows."""
    frames = frames[np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))]
    scale = min(1.0, side / min(frames.shape[1:3]))
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    return tiled(np.stack(small), columns)


def compared_sheet(truth: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Every fourth frame, the truth above what was made; of one size, in any number, white where none."""
    shown = max(len(truth), len(made))
    strips = [np.concatenate(list(_lengthened(frames, shown)[::4]), axis=1) for frames in (truth, made)]
    return np.concatenate(strips)


def spectrogram(sounds: Sequence[np.ndarray], pixels: int = 2) -> np.ndarray:
    """The log-mels of mono 24 kHz sounds one above the other, low tones at the bottom."""
    mels = [normalize(log_mel(peak_normalize(torch.from_numpy(sound)[None])))[0].numpy() for sound in sounds]
    longest = max(len(mel) for mel in mels)
    pictures = []
    for mel in mels:
        grey = np.clip((mel.T[::-1] + 3) / 6 * 255, 0, 255).astype(np.uint8)  # normalised: about -3 to 3
        grey = np.pad(grey, ((0, 4), (0, longest - len(mel))))
        pictures.append(cv2.applyColorMap(grey.repeat(pixels, 0).repeat(pixels, 1), cv2.COLORMAP_VIRIDIS))
    return np.concatenate(pictures)[:, :, ::-1]


def spectrogram_for_page(samples: np.ndarray, most: int = 1200) -> np.ndarray:
    """A spectrogram at most `most` pixels wide, for sound of any length that a mel takes."""
    picture = spectrogram([samples], pixels=1)[:-4]
    columns = min(most, max(400, 2 * len(samples) // HOP))
    return cv2.resize(np.ascontiguousarray(picture), (columns, 160), interpolation=cv2.INTER_LINEAR)


def curves_svg(curves: Mapping[str, np.ndarray], seconds: float) -> str:
    """Curves over the same time, each from its least to its most, as one SVG element with a legend."""
    right, low = _WIDTH - _LEFT, _HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" width="100%" role="img" '
        f'aria-label="{html.escape(", ".join(curves))} over time">'
    ]
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 60) if seconds / s <= 16)
    for tick in np.arange(0, seconds + 1e-6, step):
        x = _LEFT + tick / seconds * (right - _LEFT)
        parts.append(f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{low}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{low + 13}" class="tick">{tick:g} s</text>')
    for number, (name, curve) in enumerate(curves.items()):
        span = float(curve.max() - curve.min()) or 1.0
        x = _LEFT + (np.arange(len(curve)) + 0.5) / len(curve) * (right - _LEFT)
        y = low - 4 - (curve - curve.min()) / span * (low - 12)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = _LEFT + number * 290
        parts.append(f'<rect x="{at}" y="{_HEIGHT + 5}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{at + 18}" y="{_HEIGHT + 15}" class="name">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def jpeg_uri(picture: np.ndarray, quality: int = 85) -> str:
    """A picture as a data URI, JPEG: for frames."""
    bgr = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """The picture as PNG or JPEG, by the ending of `path`."""
    bgr = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(path.suffix, bgr)[1].tobytes())


def read_picture(path: Path) -> np.ndarray:
    """A picture that `write_picture` wrote."""
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


def _lengthened(frames: np.ndarray, length: int) -> np.ndarray:
    white = np.full((length - len(frames), *frames.shape[1:]), 255, np.uint8)
    return np.concatenate([frames, white])

"""Where the faces are: insightface when its pack is on disk, else the two built-in detectors."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from uniavgen_cli.config import find_weights
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media import drawn_faces

PACKS = Path("~/.insightface/models")  # where insightface itself keeps its packs; nothing is downloaded
_DRAWN_SCORE = 0.5
_SURE_SCORE = 0.75  # of the drawn detector, which gives avatars 0.9 and photographs 0.7
_SECOND_SCORE = 0.92  # of the cascade: beside one sure face, a hand or a flower is easily taken for another
_OVERLAP = 0.4  # boxes that share more are one face

Box = tuple[float, float, float, float]

# Of a face's box, forehead to chin: all of it, brows and eyes, and where nine in ten of 60 drawn mouths
# lie, open or shut.
FACE: Box = (0.0, 0.0, 1.0, 1.0)
EYES: Box = (0.1, 0.24, 0.9, 0.5)
MOUTH: Box = (0.22, 0.64, 0.78, 0.91)


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: x0 y0 x1 y1 in pixels, forehead to chin and cheek to cheek, and a score 0..1."""

    box: Box
    score: float

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)


def detect_faces(frame: np.ndarray, detector: str = "auto") -> list[Face]:
    """Faces in a uint8 RGB frame (h, w, 3), the largest first; boxes end at the frame's edges.

    `auto` is insightface when `find_pack` has one, else the built-in pair: the network for drawn faces, and
    OpenCV's cascade where that is unsure. Raises UsageError for a detector that isn't there.
    """
    if detector == "auto":
        detector = "insightface" if find_pack() else "built-in"
    if detector not in DETECTORS:
        raise UsageError(f"no face detector {detector!r}", f"there are auto, {', '.join(DETECTORS)}")
    height, width, _ = frame.shape
    faces = []
    for face in DETECTORS[detector](np.ascontiguousarray(frame)):
        x0, y0, x1, y1 = (float(v) for v in np.clip(face.box, 0, (width, height, width, height)))
        faces.append(Face(box=(x0, y0, x1, y1), score=face.score))
    return sorted((face for face in faces if face.area > 0), key=lambda face: face.area, reverse=True)


def choose_face(faces: list[Face], index: int = 0) -> Face:
    """The face number `index`, 0 the largest. Raises InputError when there are not that many."""
    if not 0 <= index < len(faces):
        found = f"{len(faces)} face{'s' * (len(faces) != 1)} found"
        hint = (
            f"--face-index takes 0 to {len(faces) - 1}, the largest first"
            if faces
            else "give a picture of a face"
        )
        raise InputError(f"no face number {index}: {found}", hint)
    return faces[index]


def face_mask(box: Box, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """How much of each cell the box covers: float32 (rows, columns), 0..1.

    `box` is in pixels of a picture of `height` x `width`, which the cells divide evenly.
    """
    x0, y0, x1, y1 = box

    def cover(low: float, high: float, size: int, cells: int) -> np.ndarray:
        edges = np.linspace(0, size, cells + 1)
        inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return np.clip(inside / (size / cells), 0, 1)

    return np.outer(cover(y0, y1, height, rows), cover(x0, x1, width, columns)).astype(np.float32)


def part_of(face: Box, part: Box) -> Box:
    """About where a part of the face is, such as MOUTH, in a picture with this box of the face."""
    x0, y0, x1, y1 = face
    left, top, right, bottom = part
    width, height = x1 - x0, y1 - y0
    return x0 + left * width, y0 + top * height, x0 + right * width, y0 + bottom * height


def find_pack() -> Path | None:
    """A folder of insightface's detection models; None without the library or without such a folder."""
    if importlib.util.find_spec("insightface") is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    for folder in sorted(PACKS.expanduser().glob("*/")):
        if any(folder.glob("det_*.onnx")) or any(folder.glob("scrfd_*.onnx")):
            return folder
    return None


def describe_detectors() -> dict[str, str]:
    """Each detector's name and one line on whether it can run, for `uniavgen doctor`."""
    pack = find_pack()
    installed = importlib.util.find_spec("insightface") is not None
    missing = f"no pack in {PACKS}" if installed else "pip install 'uniavgen[faces]'"
    drawn = _drawn_weights()
    return {
        "insightface": f"pack {pack}" if pack else f"not used: {missing}",
        "drawn faces": f"weights {drawn}" if drawn.is_file() else f"not used: no file {drawn}",
        "photographs": f"OpenCV {cv2.__version__} cascade",
    }


# ---- detectors -------------------------------------------------------------------------------------------


def _insightface(frame: np.ndarray) -> list[Face]:
    pack = find_pack()
    if pack is None:
        raise UsageError("insightface has no pack on disk", f"install uniavgen[faces] and put one in {PACKS}")
    found = _insightface_app(pack).get(np.ascontiguousarray(frame[:, :, ::-1]))  # BGR
    return [Face(box=_box(face.bbox, 1.0), score=float(face.det_score)) for face in found]


@lru_cache(maxsize=1)
def _insightface_app(pack: Path) -> Any:
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(pack), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(640, 640))
    return app


def _built_in(frame: np.ndarray) -> list[Face]:
    """The drawn detector where it is sure; of a photograph it isn't, and the cascade's box fits better."""
    drawn = _drawn(frame)
    if any(face.score > _SURE_SCORE for face in drawn):
        return drawn
    return _cascade(frame) or drawn


def _cascade(frame: np.ndarray) -> list[Face]:
    """Frontal faces in a photograph, by OpenCV's Haar cascade, which also looks at the picture enlarged."""
    height, width, _ = frame.shape
    scale = 640 / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = cv2.equalizeHist(
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    )
    boxes, _, levels = _cascade_model().detectMultiScale3(
        grey, scaleFactor=1.1, minNeighbors=6, minSize=(40, 40), outputRejectLevels=True
    )
    faces = []
    for (x, y, side, _), level in zip(boxes, levels, strict=True):
        # its square stands a little wide and a little high on the face
        box = (x + 0.1 * side, y + 0.02 * side, x + 0.9 * side, y + 1.06 * side)
        score = float(1 / (1 + np.exp(-level / 2)))
        faces.append(Face(box=_box(box, scale), score=score))
    best = _distinct(faces)
    return best[:1] + [face for face in best[1:] if face.score > _SECOND_SCORE]


@lru_cache(maxsize=1)
def _cascade_model() -> Any:
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))


def _drawn(frame: np.ndarray) -> list[Face]:
    """Drawn faces, by the network that `training/face_stage.py` trains; none without its weights."""
    path = _drawn_weights()
    if not path.is_file():
        return []
    height, width, _ = frame.shape
    scale = drawn_faces.LONG_SIDE / max(height, width)
    small = cv2.resize(
        frame, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    bottom, right = (-side % drawn_faces.MULTIPLE for side in small.shape[:2])
    small = cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    scores, boxes = drawn_faces.look(drawn_faces.load(path), small)
    picked = scores > _DRAWN_SCORE
    found = zip(boxes[picked].tolist(), scores[picked].tolist(), strict=True)
    return _distinct([Face(box=_box(box, scale), score=score) for box, score in found])


def _drawn_weights() -> Path:
    return find_weights("nano/face_detector.safetensors")


DETECTORS: dict[str, Callable[[np.ndarray], list[Face]]] = {
    "insightface": _insightface,
    "built-in": _built_in,
    "drawn": _drawn,
    "cascade": _cascade,
}


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    shared = max(0.0, x1 - x0) * max(0.0, y1 - y0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / max(sum(areas) - shared, 1e-9)


def _box(values: Sequence[float], scale: float) -> Box:
    """A box found in a picture `scale` times as large."""
    x0, y0, x1, y1 = (float(value) / scale for value in values)
    return x0, y0, x1, y1


def _distinct(faces: list[Face]) -> list[Face]:
    """The best-scored of every group of boxes that overlap."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        if all(overlap(face.box, other.box) < _OVERLAP for other in kept):
            kept.append(face)
    return kept

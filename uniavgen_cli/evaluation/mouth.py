"""How open a mouth looks on any face, by the contrast within it: for pictures no network of ours knows."""

import numpy as np

from uniavgen_cli.media.face import Box, detect_faces

# where a mouth lies in a face's box, forehead to chin and cheek to cheek, in shares of it
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.28, 0.72, 0.66, 0.94
_LOOKED_AT = 5  # frames of a clip in which the face is looked for


def mouth_contrast(frames: np.ndarray) -> np.ndarray | None:
    """The spread of brightness around the mouth in frames (n, h, w, 3) uint8, float32 (n,); None: no face.

    From 0 to about 0.4: the dark inside of an open mouth and its teeth stand out from lips and skin, so the
    curve rises with the opening (on drawn faces it follows the true one at r = 0.8); its height says nothing
    of two people. The region lies still, in the clip's median face box.
    """
    box = median_face(frames)
    if box is None:
        return None
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = box
    left, right = (round(x0 + share * (x1 - x0)) for share in (_LEFT, _RIGHT))
    top, bottom = (round(y0 + share * (y1 - y0)) for share in (_TOP, _BOTTOM))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    region = frames[:, top : max(bottom, top + 1), left : max(right, left + 1)].astype(np.float32)
    luma = region @ np.array([0.299, 0.587, 0.114], np.float32)
    return luma.std((1, 2)) / 255


def median_face(frames: np.ndarray) -> Box | None:
    """The median box of the largest face in some frames of a clip; None when most of them show none."""
    looked_at = np.unique(np.linspace(0, len(frames) - 1, _LOOKED_AT).round().astype(int))
    found = [faces[0].box for i in looked_at if (faces := detect_faces(frames[i]))]
    if 2 * len(found) < len(looked_at):
        return None
    x0, y0, x1, y1 = (float(v) for v in np.median(np.array(found), axis=0))
    return x0, y0, x1, y1

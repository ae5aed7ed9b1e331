"""SyncNet's view of lips and sound, when its weights are on disk: LSE-C and LSE-D.

The network, its input and its scores are those of Chung and Zisserman, "Out of time: automated lip sync in
the wild" (2016), as published with its weights (syncnet_v2.model); the scores' names are those of Wav2Lip
(arXiv 2008.10010).
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.evaluation.mouth import median_face

FPS, SAMPLE_RATE = 25, 16_000  # what the network was taught
SIDE = 224  # pixels of the face it sees
_FRAMES, _FEATURES = 5, 20  # a window of pictures and, at 100 a second, of sound
_MAX_LAG = 15  # frames
_MARGIN = 0.4  # of the face's half side, around it


class SyncNet(nn.Module):
    """Faces (b, 3, 5, 224, 224) in 0..255 BGR and MFCCs (b, 1, 13, 20) to embeddings (b, 1024) each."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_sound(1, 64, 3, 1), nn.MaxPool2d((1, 1), (1, 1)),
            *_sound(64, 192, 3, 1), nn.MaxPool2d((3, 3), (1, 2)),
            *_sound(192, 384, 3, 1), *_sound(384, 256, 3, 1), *_sound(256, 256, 3, 1),
            nn.MaxPool2d((3, 3), (2, 2)), *_sound(256, 512, (5, 4), 0),
        )  # fmt: skip
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_lips(3, 96, (5, 7, 7), 2, 0), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_lips(96, 256, (1, 5, 5), 2, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_lips(256, 256, (1, 3, 3), 1, 1), *_lips(256, 256, (1, 3, 3), 1, 1),
            *_lips(256, 256, (1, 3, 3), 1, 1), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_lips(256, 512, (1, 6, 6), 1, 0),
        )  # fmt: skip

    def forward(self, faces: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        lips = self.netfclip(self.netcnnlip(faces).flatten(1))
        return lips, self.netfcaud(self.netcnnaud(features).flatten(1))


def _sound(before: int, after: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, kernel, padding=padding), nn.BatchNorm2d(after), nn.ReLU()


def _lips(
    before: int, after: int, kernel: tuple[int, int, int], stride: int, padding: int
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv3d(before, after, kernel, (1, stride, stride), (0, padding, padding))
    return convolution, nn.BatchNorm3d(after), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


@torch.inference_mode()
def lip_sync_errors(frames: np.ndarray, samples: np.ndarray, weights: Path) -> tuple[float, float] | None:
    """LSE-C and LSE-D of frames (n, h, w, 3) uint8 at 25 a second and mono 16 kHz samples; None: no face.

    LSE-D is the mean distance of lips and sound at the best of 31 shifts, 0 or more, lower is better (real
    talking heads: 6 to 8); LSE-C how much nearer that is than the median shift, 0 or more, higher is better
    (6 to 8). Raises WeightsError for weights of another network, ValueError for less than 0.2 s.
    """
    box = median_face(frames)
    if box is None:
        return None
    net = load(weights)
    faces = torch.from_numpy(face_crops(frames, box)).permute(3, 0, 1, 2)[None].float()  # 1 c n h w
    features = torch.from_numpy(mfcc(samples))[None, None]  # 1 1 13 t
    last = min(faces.shape[2] - _FRAMES, (features.shape[3] - _FEATURES) // 4)
    if last < 1:
        raise ValueError(f"{len(frames)} frames and {len(samples)} samples are too few for SyncNet")
    lips, sound = [], []
    for i in range(last + 1):
        one, other = net(faces[:, :, i : i + _FRAMES], features[..., 4 * i : 4 * i + _FEATURES])
        lips.append(one)
        sound.append(other)
    return scores(torch.cat(lips), torch.cat(sound))


def scores(lips: Tensor, sound: Tensor) -> tuple[float, float]:
    """LSE-C and LSE-D of embeddings (n, d) of the same moments."""
    padded = F.pad(sound, (0, 0, _MAX_LAG, _MAX_LAG))
    shifts = [F.pairwise_distance(lips, padded[s : s + len(lips)]).mean() for s in range(2 * _MAX_LAG + 1)]
    distances = torch.stack(shifts)
    return float(distances.median() - distances.min()), float(distances.min())


@lru_cache(maxsize=1)
def load(weights: Path) -> SyncNet:
    """The network with the published weights. Raises WeightsError when they are another's."""
    net = SyncNet()
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:  # pickles fail in many ways
        raise WeightsError(
            f"{weights} does not hold SyncNet's weights ({str(error).splitlines()[0]})",
            "give syncnet_v2.model as its authors publish it, or take the file away",
        ) from error
    return net.eval()


def face_crops(frames: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The square around a face, set lower by the margin as the authors' crops are, (n, 224, 224, 3) BGR."""
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) / 2
    left, right = (x0 + x1) / 2 - half * (1 + _MARGIN), (x0 + x1) / 2 + half * (1 + _MARGIN)
    top, bottom = (y0 + y1) / 2 - half, (y0 + y1) / 2 + half * (1 + 2 * _MARGIN)
    scale_x, scale_y = SIDE / (right - left), SIDE / (bottom - top)
    move = np.array([[scale_x, 0, -left * scale_x], [0, scale_y, -top * scale_y]])
    grey = (110, 110, 110)
    return np.stack(
        [cv2.warpAffine(frame, move, (SIDE, SIDE), borderValue=grey)[..., ::-1] for frame in frames]
    )


def mfcc(samples: np.ndarray) -> np.ndarray:
    """13 cepstral coefficients of mono 16 kHz samples, 100 a second, float32 (13, t).

    Frames of 25 ms, a pre-emphasis of 0.97, 26 mel filters over a 512-point power spectrum of samples in
    16-bit units, a lifter of 22, the first coefficient the logarithm of the frame's energy: the customary
    settings (Davis and Mermelstein 1980, as python_speech_features has them), which the weights expect.
    """
    scaled = samples.astype(np.float64) * 32768
    emphasised = np.append(scaled[:1], scaled[1:] - 0.97 * scaled[:-1])
    count = 1 + max(0, -(-(len(emphasised) - 400) // 160))
    padded = np.pad(emphasised, (0, max(0, (count - 1) * 160 + 400 - len(emphasised))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:count]
    power = np.abs(np.fft.rfft(windows, 512)) ** 2 / 512  # t 257
    energy = np.maximum(power.sum(1), 1e-10)
    cepstra = np.log(np.maximum(power @ _mel_filters().T, 1e-10)) @ _cosines().T
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra[:, 0] = np.log(energy)
    return cepstra.T.astype(np.float32)


def _mel_filters(count: int = 26, size: int = 512) -> np.ndarray:
    """Triangles between whole bins, (26, 257)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hz = 700 * (10 ** (np.linspace(0, top, count + 2) / 2595) - 1)
    edges = np.floor((size + 1) * hz / SAMPLE_RATE)
    bins = np.arange(size // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.maximum(edges[1:-1] - edges[:-2], 1)[:, None]
    falling = (edges[2:, None] - bins) / np.maximum(edges[2:] - edges[1:-1], 1)[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def _cosines(count: int = 13, size: int = 26) -> np.ndarray:
    """The orthonormal DCT-II, (13, 26)."""
    table = np.cos(np.pi * np.arange(count)[:, None] * (2 * np.arange(size) + 1) / (2 * size))
    table *= np.sqrt(2 / size)
    table[0] /= np.sqrt(2)
    return table

"""A tiny convolutional detector of drawn faces: for every cell of 8x8 pixels, is a face's middle here."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

STRIDE = 8  # pixels a cell
MULTIPLE = 16  # both sides of a picture are multiples of this
RARITY = 4.0  # faces are rare among cells, so training starts from "no face"
LONG_SIDE = 160  # pixels: the scale at which it was taught


class FaceDetector(nn.Module):
    """Frames (b, 3, h, w) in [-1, 1] -> logits (b, h/8, w/8) and boxes (b, h/8, w/8, 4).

    Both sides are multiples of 16. A box is x0 y0 x1 y1 in pixels, forehead to chin and cheek to cheek. One
    scale, without anchors (FCOS, arXiv 1904.01355, at a single level).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, stride=2), _conv(16, 24, stride=2), _conv(24, 40, stride=2))
        self.down = _conv(40, 56, stride=2)
        self.context = nn.ModuleList([_conv(56, 56, dilation=dilation) for dilation in (1, 2, 4)])
        self.lateral = nn.Conv2d(40, 56, 1)
        self.merge = _conv(56, 40)
        self.head = nn.Conv2d(40, 5, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(frames)  # b 40 h/8 w/8
        coarse = self.down(fine)  # b 56 h/16 w/16
        for layer in self.context:
            coarse = coarse + layer(coarse)
        merged = self.merge(self.lateral(fine) + F.interpolate(coarse, scale_factor=2.0))
        logits, distances = self.head(merged).split([1, 4], dim=1)
        logits = logits - RARITY
        reach = (
            2 * STRIDE * distances.clamp(-4, 4).exp()
        )  # from the cell's middle to left, top, right, bottom
        left, top, right, bottom = reach.unbind(1)  # b h/8 w/8
        rows, columns = cell_middles(logits.shape[2], logits.shape[3], frames.device)
        boxes = torch.stack([columns - left, rows - top, columns + right, rows + bottom], dim=-1)
        return logits[:, 0], boxes


def cell_middles(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel rows (h, 1) and columns (1, w) of the middles of the cells."""
    rows = (torch.arange(height, device=device) + 0.5) * STRIDE
    columns = (torch.arange(width, device=device) + 0.5) * STRIDE
    return rows[:, None], columns[None, :]


def load_face_detector(path: Path) -> FaceDetector:
    """The detector with the weights of a file, strictly."""
    detector = FaceDetector()
    detector.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return detector.eval().requires_grad_(False)


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, outputs), nn.SiLU())

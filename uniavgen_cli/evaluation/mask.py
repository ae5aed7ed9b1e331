"""How well the model's face-aware mask and the face go together."""

from torch import Tensor


def mask_iou(mask: Tensor, face: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of M (..., n) above `threshold` and the face's coverage (..., n) above a half.

    From 0 to 1, higher is better: 1 when both mark the same of the n tokens of each frame, 0 when they share
    none; 1 as well where neither marks any. Shapes are broadcast; the last axis is summed, the rest stays.
    UniAVGen, arXiv 2511.03334, section 3.4.
    """
    ours, theirs = mask > threshold, face > 0.5
    both = (ours & theirs).sum(-1).float()
    either = (ours | theirs).sum(-1).float()
    return (both + (either == 0)) / (either + (either == 0))

"""The face-aware mask: where in the picture sound and mouth meet."""

from torch import Tensor

from uniavgen_cli.models.branch import Head, Modulation


class FaceMaskHead(Head):
    """Logits of M, one head a cross-modal layer (UniAVGen, arXiv 2511.03334, section 3.4)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1)

    def forward(self, x: Tensor, time: Modulation, prior: Tensor | None = None) -> Tensor:
        """States x (b, f*n, d) of the clip's frames -> logits (b, f*n); a `prior` of that shape is added."""
        logits = super().forward(x, time).squeeze(-1).float()
        return logits if prior is None else logits + prior

"""Every relation of seconds, frames, latent frames, mel tokens and samples, in one place."""

import math
from dataclasses import dataclass

TEMPORAL_STRIDE = 4  # pixel frames a latent frame, after the first, which stands alone
SPATIAL_STRIDE = 16  # pixels a latent cell
PATCH = 2  # latent cells a token, each way
SIZE_MULTIPLE = SPATIAL_STRIDE * PATCH
ROUNDING_S = 0.001  # of the times in an MP4, as some versions of ffmpeg write them


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """One clip as the model sees it.

    `num_frames` is 1 + 4k pixel frames at `fps`; `height` and `width` are pixels, multiples of 32. Raises
    ValueError otherwise.
    """

    num_frames: int
    height: int
    width: int
    fps: int = 16
    sample_rate: int = 24_000
    hop: int = 240

    def __post_init__(self) -> None:
        if self.num_frames < 1 or (self.num_frames - 1) % TEMPORAL_STRIDE:
            raise ValueError(f"num_frames {self.num_frames} is not 1 + {TEMPORAL_STRIDE}k")
        for name, side in (("height", self.height), ("width", self.width)):
            if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
                raise ValueError(f"{name} {side} is not a positive multiple of {SIZE_MULTIPLE}")

    @property
    def latent_frames(self) -> int:
        return (self.num_frames - 1) // TEMPORAL_STRIDE + 1

    @property
    def latent_height(self) -> int:
        return self.height // SPATIAL_STRIDE

    @property
    def latent_width(self) -> int:
        return self.width // SPATIAL_STRIDE

    @property
    def token_rows(self) -> int:
        return self.latent_height // PATCH

    @property
    def token_columns(self) -> int:
        return self.latent_width // PATCH

    @property
    def tokens_per_frame(self) -> int:
        return self.token_rows * self.token_columns

    @property
    def mel_hz(self) -> int:
        return self.sample_rate // self.hop

    @property
    def audio_tokens(self) -> int:
        return tokens_of_frames(self.num_frames, self.fps, self.mel_hz)

    @property
    def num_samples(self) -> int:
        return self.audio_tokens * self.hop

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps


def tokens_of_frames(num_frames: int, fps: int, mel_hz: int) -> int:
    """Mel tokens that fit in `num_frames` pixel frames: 81 at 16 fps and 100 Hz are 506."""
    return num_frames * mel_hz // fps


def frames_of_seconds(duration_s: float, fps: int) -> int:
    """Pixel frames that cover `duration_s` but for the rounding of files' times; at least one."""
    return max(1, math.ceil((duration_s - ROUNDING_S) * fps))


def padded_frames(num_frames: int) -> int:
    """The next 1 + 4k at or above `num_frames`."""
    return 1 + TEMPORAL_STRIDE * math.ceil(max(0, num_frames - 1) / TEMPORAL_STRIDE)


def latent_frames_of(num_frames: int) -> int:
    """Latent frames wholly known when the first `num_frames` pixel frames are given."""
    return 0 if num_frames < 1 else (num_frames - 1) // TEMPORAL_STRIDE + 1


def fit_size(height: int, width: int, short_side: int, multiple: int = SIZE_MULTIPLE) -> tuple[int, int]:
    """Height and width with the short side at `short_side`, both rounded up to multiples of `multiple`."""
    scale = short_side / min(height, width)

    def side(pixels: int) -> int:
        return math.ceil(round(pixels * scale) / multiple) * multiple

    return side(height), side(width)

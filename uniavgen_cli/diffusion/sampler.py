"""From noise to a clip: the state, what is given of it, and the Euler loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uniavgen_cli.models.uniavgen import AudioStream, VideoStream, on_device


@dataclass(frozen=True)
class State:
    """Both streams between noise and data: video latents (b, c, f, h, w), mels (b, t, mel_bins)."""

    video: Tensor
    audio: Tensor


def noise(video_shape: tuple[int, ...], audio_shape: tuple[int, ...], seed: int) -> State:
    """Standard normal noise from a CPU generator: one seed, one noise, whatever the device."""
    generator = torch.Generator().manual_seed(seed)
    return State(
        video=torch.randn(video_shape, generator=generator),
        audio=torch.randn(audio_shape, generator=generator),
    )


def sample(state: State, timesteps: tuple[float, ...], denoise: Callable[[State, float], State]) -> State:
    """Euler steps along the velocity noise - data that `denoise(state, t)` gives."""
    for now, following in zip(timesteps[:-1], timesteps[1:], strict=True):
        velocity = denoise(state, now)
        step = (now - following) / 1000
        state = State(state.video - step * velocity.video, state.audio - step * velocity.audio)
    return state


@dataclass(frozen=True, kw_only=True)
class Given:
    """The clean parts the model sees; None is not given.

    reference_frame (b, c, 1, h, w) and reference_audio (b, t, mel_bins) stand before the clip; video
    (b, c, k, h, w) and audio (b, k, mel_bins) are its first k frames and tokens.
    """

    reference_frame: Tensor | None = None
    video: Tensor | None = None
    reference_audio: Tensor | None = None
    audio: Tensor | None = None

    @property
    def num_frames(self) -> int:
        return 0 if self.video is None else self.video.shape[2]

    @property
    def num_tokens(self) -> int:
        return 0 if self.audio is None else self.audio.shape[1]

    def to(self, device: str) -> "Given":
        """The same on another device."""
        return on_device(self, device)

    def put_back(self, state: State) -> State:
        """The state with its given parts as they were given."""
        video, audio = state.video, state.audio
        if self.video is not None:
            video = torch.cat((self.video, video[:, :, self.num_frames :]), dim=2)
        if self.audio is not None:
            audio = torch.cat((self.audio, audio[:, self.num_tokens :]), dim=1)
        return State(video, audio)

    def video_stream(self, state: State, timestep: Tensor) -> VideoStream:
        """What the model reads of the video at timestep (b,): 0 for the reference and the given frames."""
        latents = self.put_back(state).video
        if self.reference_frame is not None:
            latents = torch.cat((self.reference_frame, latents), dim=2)
        num_reference = latents.shape[2] - state.video.shape[2]
        times = timestep[:, None].repeat(1, latents.shape[2])
        times[:, : num_reference + self.num_frames] = 0
        return VideoStream(
            latents=latents, timesteps=times, num_reference=num_reference, num_given=self.num_frames
        )

    def audio_stream(self, state: State, timestep: Tensor) -> AudioStream:
        """What the model reads of the sound at timestep (b,): 0 for the given tokens.

        The reference voice, though clean, goes by the noisy tokens' timestep as in the released model, or
        by 0 once there are none.
        """
        mels = self.put_back(state).audio
        if self.reference_audio is not None:
            mels = torch.cat((self.reference_audio, mels), dim=1)
        num_reference = mels.shape[1] - state.audio.shape[1]
        times = timestep[:, None].repeat(1, mels.shape[1])
        times[:, num_reference : num_reference + self.num_tokens] = 0
        if self.num_tokens == state.audio.shape[1]:
            times[:] = 0
        return AudioStream(mels=mels, timesteps=times, num_reference=num_reference, num_given=self.num_tokens)

"""The one engine behind every command, and the Python API: `Engine.from_preset("nano").generate(...)`."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from uniavgen_cli.codecs import CaptionReader, PictureCodec, SoundCodec
from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
from uniavgen_cli.config import Preset, load_preset, weights_files, weights_folder
from uniavgen_cli.diffusion.guidance import Guidance, Pass, batch_passes, guided
from uniavgen_cli.diffusion.sampler import State, noise, sample
from uniavgen_cli.diffusion.schedule import timesteps
from uniavgen_cli.engine import memory, provenance
from uniavgen_cli.engine.conditions import Prepared, prepare
from uniavgen_cli.engine.request import Plan, Request, check
from uniavgen_cli.engine.weights import weights_sha256
from uniavgen_cli.errors import OutOfMemoryError
from uniavgen_cli.media.limits import lifted
from uniavgen_cli.media.video import write_animated, write_clip, write_continued, write_dub
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import Runtime, choose

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was made: frames (n, h, w, 3) uint8 at `fps`, samples (m,) float32 at `sample_rate`.

    For `dub` the frames are the model's view of the given ones and the file keeps the given packets; for
    `animate` the file keeps the given sound; for `continue` these are the new part alone, the file has both.
    """

    plan: Plan
    frames: np.ndarray
    samples: np.ndarray
    record: dict[str, Any]
    timings: dict[str, float]

    @property
    def fps(self) -> int:
        return self.plan.spec.fps

    @property
    def sample_rate(self) -> int:
        return self.plan.spec.sample_rate

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        return self.frames.shape[2]

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the clip, whole or not at all, with how it was made in its metadata. Raises OutputError."""
        with lifted(self.plan.request.unlimited):
            return self._write(path, provenance.to_tags(self.record), overwrite)

    def _write(self, path: str | Path, tags: dict[str, str], overwrite: bool) -> Path:
        request = self.plan.request
        if request.task == "dub":
            assert request.video is not None
            return write_dub(
                path,
                request.video,
                self.samples,
                self.sample_rate,
                tags,
                overwrite,
                keep_sound=request.keep_sound,
            )
        if request.task == "animate":
            assert request.sound is not None
            return write_animated(path, self.frames, request.sound, self.fps, tags, overwrite)
        if request.task == "continue":
            assert request.video is not None
            return write_continued(
                path, request.video, self.frames, self.samples, self.fps, self.sample_rate, tags, overwrite
            )
        return write_clip(path, self.frames, self.samples, self.fps, self.sample_rate, tags, overwrite)


class Engine:
    """A preset with its weights in memory; makes as many clips as it is asked for."""

    def __init__(
        self,
        preset: Preset,
        runtime: Runtime,
        *,
        model: UniAVGen,
        video_vae: PictureCodec,
        vocoder: SoundCodec,
        captions: CaptionReader,
        weights_hash: str,
        vocabulary: Mapping[str, int] | None = None,
        mode: memory.Mode = memory.MODES[0],
    ) -> None:
        self.preset = preset
        self.runtime = runtime
        self.model = model
        self.video_vae = video_vae
        self.vocoder = vocoder
        self.captions = captions
        self.weights_hash = weights_hash
        self.mode = mode
        self.vocabulary = vocabulary  # of speech text; None where it is counted in characters

    @classmethod
    def from_preset(cls, preset: Preset | str = "nano", overrides: Sequence[str] = ()) -> "Engine":
        """The engine of a preset, its name or its YAML file.

        Raises UsageError, WeightsError, and OutOfMemoryError when no mode fits the memory that is free.
        """
        if not isinstance(preset, Preset):
            preset = load_preset(preset, overrides)
        files = weights_files(preset)
        runtime = choose(preset.runtime.device, preset.runtime.dtype, preset.runtime.attention)
        device = runtime.device.value
        dtype = runtime.torch_dtype if device != "cpu" else torch.float32
        if device == "cpu":
            memory.give_back_freed()
        mode, why = memory.mode_for(preset, runtime)
        logger.info("memory mode %s: %s", mode.name, why)
        parts: dict[str, Any]
        if preset.layout == "released":
            from uniavgen_cli.codecs.released import load_codecs  # diffusers and transformers

            parts = load_codecs(
                preset, files, device=device, dtype=dtype, captions_device=memory.encoder_home(mode, device)
            )
            memory.tile(parts["video_vae"], mode)
            if mode.encoder == "stays" and device != "cpu":
                parts["captions"].keep()
        else:
            parts = {
                "video_vae": VideoVAE.load(files["video_vae"], VideoVAEConfig(**preset.video_vae)).to(device),
                "vocoder": Vocoder.load(files["vocoder"], VocoderConfig(**preset.vocoder)).to(device),
                "captions": CaptionEncoder.load(files["caption"], CaptionConfig(**preset.caption)),
            }
        model = load_module(
            lambda: UniAVGen(UniAVGenConfig(**preset.model), runtime.attention.value),
            files["joint"],
            device=memory.joint_home(mode, device),
            dtype=dtype,
        )
        weights_hash = weights_sha256(weights_folder(preset))
        return cls(preset, runtime, model=model, weights_hash=weights_hash, mode=mode, **parts)

    def generate(self, prompt: str, **fields: Any) -> Clip:
        """Picture and voice from text; `fields` as in Request, such as speech, face, voice, seed."""
        return self.run(_request("generate", prompt=prompt, **fields))

    def dub(self, video: str | Path, **fields: Any) -> Clip:
        """Speech for a video."""
        return self.run(_request("dub", video=video, **fields))

    def animate(self, face: str | Path, sound: str | Path, **fields: Any) -> Clip:
        """A face that speaks a recording."""
        return self.run(_request("animate", face=face, sound=sound, **fields))

    def continue_(self, video: str | Path, **fields: Any) -> Clip:
        """A clip that goes on."""
        return self.run(_request("continue", video=video, **fields))

    def run(self, asked: Request | Plan, progress: Progress = silent) -> Clip:
        """Make the clip of a request, or of the plan that `check` made of one.

        Raises what `check` raises, InputError for a file that can't be read, and OutOfMemoryError.
        """
        plan = asked if isinstance(asked, Plan) else check(asked, self.preset)
        inputs = provenance.hash_inputs(plan.request)
        timings: dict[str, float] = {}
        device = self.runtime.device.value
        try:
            with lifted(plan.request.unlimited), torch.inference_mode(), self.runtime.autocast():
                with _timed("encoding", timings, progress):
                    prepared = prepare(plan, self.video_vae, self.captions, self.vocabulary)
                with _timed("sampling", timings), memory.apply_mode(self.model, self.mode, device):
                    state = self._sample(plan, prepared, progress)
                with _timed("decoding", timings, progress):
                    frames, samples = self._decode(plan, prepared, state)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(
                f"{plan.spec.num_frames} frames of {plan.spec.width}x{plan.spec.height} do not fit "
                f"the memory of {device}",
                memory.advice(self.mode) if device != "cpu" else "take a smaller --size or a shorter clip",
            ) from error
        record = provenance.build(
            plan,
            inputs=inputs,
            weights_hash=self.weights_hash,
            runtime={
                "device": self.runtime.device.value,
                "dtype": self.runtime.dtype.value,
                "attention": self.runtime.attention.value,
                "threads": str(torch.get_num_threads()),
                "torch": torch.__version__,
            },
        )
        return Clip(plan=plan, frames=frames, samples=samples, record=record, timings=timings)

    def _sample(self, plan: Plan, prepared: Prepared, progress: Progress) -> State:
        spec, sampling, row = plan.spec, plan.preset.sampling, plan.row
        device = self.runtime.device.value
        steps = plan.request.steps or sampling.steps
        times = timesteps(steps, sampling.shift)
        given = prepared.given.to(device)
        denoise = guided(
            self.model,
            Guidance(
                video_scale=sampling.video_guidance,
                audio_scale=sampling.audio_guidance,
                skip_block=sampling.skip_block,
                modality_fraction=sampling.modality_guidance_fraction,
                interval=(sampling.guidance_from, sampling.guidance_to),
            ),
            times,
            given,
            Pass(conditions=prepared.positive.to(device), a2v=row.a2v, v2a=row.v2a),
            Pass(conditions=prepared.negative.to(device), a2v=row.negative_a2v, v2a=row.negative_v2a),
            batched=batch_passes(torch.device(device).type, spec.latent_frames * spec.tokens_per_frame),
        )
        done = 0

        def watched(state: State, time: float) -> State:
            nonlocal done
            progress("sampling", done, steps)
            done += 1
            return denoise(state, time)

        start = noise(
            (
                1,
                self.model.config.video_latent_channels,
                spec.latent_frames,
                spec.latent_height,
                spec.latent_width,
            ),
            (1, spec.audio_tokens, self.model.config.mel_bins),
            plan.request.seed,
        )
        state = sample(State(start.video.to(device), start.audio.to(device)), times, watched)
        progress("sampling", steps, steps)
        return given.put_back(state)

    def _decode(self, plan: Plan, prepared: Prepared, state: State) -> tuple[np.ndarray, np.ndarray]:
        """The part of the window that is new and asked for: frames at the written size, and its samples."""
        spec = plan.spec
        video = self.video_vae.decode(state.video)[0, :, plan.context_frames : plan.num_frames]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        frames = pixels.permute(1, 2, 3, 0).cpu().numpy()  # c f h w -> f h w c
        if frames.shape[1:3] != (plan.out_height, plan.out_width):
            size = (plan.out_width, plan.out_height)
            frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        sound = self.vocoder.decode(state.audio)[0].float().cpu().numpy() / prepared.gain
        first = round(plan.context_frames / spec.fps * spec.sample_rate)
        last = round(plan.num_frames / spec.fps * spec.sample_rate)
        return frames, np.pad(sound, (0, max(0, last - len(sound))))[first:last]


def _request(task: str, **fields: Any) -> Request:
    """The request of an API call: file names become paths."""
    request = Request(task=task, **fields)
    paths = {
        name: Path(value)
        for name in ("face", "voice", "video", "sound")
        if (value := getattr(request, name)) is not None
    }
    return replace(request, **paths)  # type: ignore[arg-type]


@contextmanager
def _timed(stage: str, timings: dict[str, float], progress: Progress = silent) -> Iterator[None]:
    progress(stage, 0, 1)
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
    progress(stage, 1, 1)

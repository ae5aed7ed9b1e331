"""The one engine behind every command, and the Python API: `Engine.from_preset("nano").generate(...)`."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uniavgen_cli.codecs import CaptionReader, PictureCodec, SoundCodec
from uniavgen_cli.codecs.load import load_codecs
from uniavgen_cli.config import Preset, load_preset, weights_files, weights_folder
from uniavgen_cli.diffusion.guidance import Guidance, Pass, batch_passes, guided
from uniavgen_cli.diffusion.sampler import State, noise, sample
from uniavgen_cli.diffusion.schedule import timesteps
from uniavgen_cli.engine import memory, provenance
from uniavgen_cli.engine.conditions import Prepared, Preparer
from uniavgen_cli.engine.reel import Reel
from uniavgen_cli.engine.request import Plan, Request, check
from uniavgen_cli.engine.steady import steadied
from uniavgen_cli.engine.store import Store, kept_seed, key_of
from uniavgen_cli.engine.weights import weights_sha256
from uniavgen_cli.errors import Interrupted, OutOfMemoryError, OutputError, WeightsError, ran_out_of_memory
from uniavgen_cli.media.limits import lifted
from uniavgen_cli.media.video import write_animated, write_clip, write_continued, write_dub
from uniavgen_cli.models.lora import add_lora
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig, VideoStream
from uniavgen_cli.runtime import Runtime, choose

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was made: `frames` (n, h, w, 3) uint8 at `fps`, `samples` (m,) float32 at `sample_rate`.

    For `dub` the frames are the model's view of the given ones and the file keeps the given packets; for
    `animate` the file keeps the given sound; for `continue` these are the new part alone, the file has both.
    A clip of several windows is decoded as it is written, and its arrays each time they are asked for.
    """

    plan: Plan
    reel: Reel
    record: dict[str, Any]
    timings: dict[str, float]
    store: Store | None = None  # of a clip of several windows

    @property
    def frames(self) -> np.ndarray:
        return self.reel.all_frames()

    @property
    def samples(self) -> np.ndarray:
        return self.reel.all_sound()

    @property
    def fps(self) -> int:
        return self.plan.spec.fps

    @property
    def sample_rate(self) -> int:
        return self.plan.spec.sample_rate

    @property
    def num_frames(self) -> int:
        return self.plan.num_frames - self.plan.context_frames

    @property
    def height(self) -> int:
        return self.plan.out_height

    @property
    def width(self) -> int:
        return self.plan.out_width

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def save(self, path: str | Path, *, overwrite: bool = False, progress: Progress = silent) -> Path:
        """Write the clip, whole or not at all, with how it was made in its metadata. Raises OutputError."""
        runtime = self.record["runtime"]  # a clip of several windows is decoded only now
        with (
            _fitting(_size_of(self.plan), memory.mode_named(runtime["memory"]), runtime["device"]),
            lifted(self.plan.request.unlimited),
            _interruptible(self.store, self.plan),
        ):
            self.reel.watch = progress
            return self._write(path, provenance.to_tags(self.record), overwrite)

    def close(self, *, done: bool = True) -> None:
        """Let go of the windows it was made in; when not `done`, they stay where a later run finds them."""
        if self.store is not None:
            self.store.close(done=done)

    def _write(self, path: str | Path, tags: dict[str, str], overwrite: bool) -> Path:
        request, reel, rate, count = self.plan.request, self.reel, self.sample_rate, self.num_frames
        if request.task == "dub":
            assert request.video is not None
            keep = request.keep_sound
            return write_dub(path, request.video, reel.sound(), rate, tags, overwrite, keep_sound=keep)
        if request.task == "animate":
            assert request.sound is not None
            return write_animated(path, reel.frames(), request.sound, self.fps, tags, overwrite, count)
        if request.task == "continue":
            assert request.video is not None
            return write_continued(
                path, request.video, reel.frames(), reel.sound(), self.fps, rate, tags, overwrite, count
            )
        return write_clip(path, reel.frames(), reel.sound(), self.fps, rate, tags, overwrite, count)


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
        mode_reason: str = "",
    ) -> None:
        self.preset = preset
        self.runtime = runtime
        self.model = model
        self.video_vae = video_vae
        self.vocoder = vocoder
        self.captions = captions
        self.weights_hash = weights_hash
        self.mode = mode
        self.mode_reason = mode_reason  # empty where there was nothing to choose
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
        load = memory.loader(mode)
        alone = "close other programs, or take --preset nano"
        with _fitting(f"the weights of preset {preset.name}", mode, device, on_cpu=alone):
            parts = load_codecs(
                preset,
                files,
                device=device,
                dtype=dtype,
                captions_device=memory.encoder_home(mode, device),
                load_captions=load,
            )
            if preset.layout == "released":
                memory.tile(parts["video_vae"], mode)
                if mode.encoder == "stays" and device != "cpu":
                    parts["captions"].keep()
            with torch.device("meta"):
                model = UniAVGen(UniAVGenConfig(**preset.model), runtime.attention.value).eval()
            load(model, files["joint"], device=memory.joint_home(mode, device), dtype=dtype)
        if preset.lora is not None:
            add_lora(model, Path(preset.lora))
        weights_hash = weights_sha256(weights_folder(preset))
        return cls(
            preset,
            runtime,
            model=model,
            weights_hash=weights_hash,
            mode=mode,
            mode_reason=why,
            **parts,
        )

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

    def run(self, asked: Request | Plan, progress: Progress = silent, keep_in: Path | None = None) -> Clip:
        """Make the clip of a request, or of the plan that `check` made of one.

        The windows of a long clip are kept in a hidden folder of `keep_in` until the clip is closed; the same
        call takes them up there when it was stopped, and gives the same clip. Raises what `check` raises,
        InputError for a file that can't be read, and OutOfMemoryError.
        """
        plan = asked if isinstance(asked, Plan) else check(asked, self.preset)
        inputs = provenance.hash_inputs(plan.request)
        store = reel = None
        if len(plan.windows) > 1:
            store = Store(keep_in, self._key(plan, inputs), plan.request.seed)
        timings: dict[str, float] = {}
        device = self.runtime.device.value
        try:
            with (
                _fitting(_size_of(plan), self.mode, device),
                _interruptible(store, plan),
                lifted(plan.request.unlimited),
                torch.inference_mode(),
                self.runtime.autocast(),
            ):
                reel = self._make(plan, [] if store is None else store, timings, progress)
                with _timed("decoding", timings, progress):
                    reel.decode()
        finally:
            if store is not None and reel is None:  # another run takes up what there is
                store.close(done=False)
        record = provenance.build(
            plan, inputs=inputs, weights_hash=self.weights_hash, runtime=self._settings()
        )
        return Clip(plan=plan, reel=reel, record=record, timings=timings, store=store)

    def seed_begun(self, plan: Plan, keep_in: Path) -> int | None:
        """The seed of the same clip that was begun in that folder and stopped; None when there is none."""
        if len(plan.windows) == 1:
            return None
        return kept_seed(keep_in, self._key(plan, provenance.hash_inputs(plan.request)))

    def _key(self, plan: Plan, inputs: Mapping[str, Any]) -> str:
        """What is the same for all seeds."""
        unseeded = replace(plan, request=replace(plan.request, seed=0))
        return key_of(provenance.content_of(unseeded, inputs, self.weights_hash), self._settings())

    def _settings(self) -> dict[str, str]:
        """What is chosen by rule and can change bytes."""
        return {
            "device": self.runtime.device.value,
            "dtype": self.runtime.dtype.value,
            "attention": self.runtime.attention.value,
            "memory": self.mode.name,
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
        }

    def _make(
        self, plan: Plan, windows: list[State] | Store, timings: dict[str, float], progress: Progress
    ) -> Reel:
        """Sample the windows that are not there yet."""
        device = self.runtime.device.value
        with _timed("encoding", timings, progress):
            preparer = Preparer(plan, self.video_vae, self.captions, self.vocabulary)
        with preparer:
            first, before = (windows[0], windows[len(windows) - 1]) if len(windows) else (None, None)
            missing = range(len(windows), len(plan.windows))
            if missing and plan.preset.sampling.person_first:
                self._meet(plan, preparer, timings, progress)
            for index in missing:
                with _timed("encoding", timings):
                    prepared = preparer.window(index, first, before)
                with _timed("sampling", timings), memory.apply_mode(self.model, self.mode, device):
                    state = self._sample(plan, index, prepared, progress)
                if first is not None:
                    state = steadied(preparer.plan, index, state, first)
                if plan.row.given_video == "all" and len(plan.windows) > 1:
                    state = State(state.video[:, :, :1], state.audio)  # the others can be read again
                windows.append(state)
                before = windows[index]
                first = first or before
        return Reel(
            plan,
            windows,
            preparer.gain,
            last_given=preparer.last_picture,
            around=preparer.around,
            video_vae=self.video_vae,
            vocoder=self.vocoder,
            autocast=self.runtime.autocast,
            device=device,
        )

    def _meet(self, plan: Plan, preparer: Preparer, timings: dict[str, float], progress: Progress) -> None:
        """Paint whom no file shows, and hear in a draft of the first window whose voice none holds.

        A run that goes on makes both again, to the same bytes.
        """
        device = self.runtime.device.value
        if preparer.wants_picture:
            with _timed("sampling", timings), memory.apply_mode(self.model, self.mode, device):
                painted = self._painted(plan, preparer, progress)
            with _timed("encoding", timings):
                preparer.see(painted)
        if preparer.wants_voice:
            with _timed("encoding", timings):
                prepared = preparer.window(0)
            with _timed("sampling", timings), memory.apply_mode(self.model, self.mode, device):
                preparer.hear(self._sample(plan, 0, prepared, progress, "drafting"))

    def _painted(self, plan: Plan, preparer: Preparer, progress: Progress) -> Tensor:
        """The person as the caption asks for them, a square by the video branch alone: (1, c, 1, h, w)."""
        preset, sampling, device = plan.preset, plan.preset.sampling, self.runtime.device.value
        times = timesteps(plan.request.steps or sampling.steps, sampling.shift)
        captions = torch.cat((preparer.caption, preparer.no_caption)).to(device)

        def denoise(state: State, time: float) -> State:
            progress("painting", times.index(time), len(times) - 1)
            twice = VideoStream(
                latents=state.video.repeat(2, 1, 1, 1, 1), timesteps=torch.full((2, 1), time, device=device)
            )
            asked, unasked = self.model.forward_video(twice, captions).float().chunk(2)
            return State(torch.lerp(unasked, asked, sampling.picture_guidance), state.audio)

        channels, side = self.model.config.video_latent_channels, preset.clip.short_side
        square = replace(plan.spec, height=side, width=side)
        start = noise((1, channels, 1, square.latent_height, square.latent_width), (1, 0), plan.request.seed)
        return sample(State(start.video.to(device), start.audio.to(device)), times, denoise).video

    def _sample(
        self, plan: Plan, index: int, prepared: Prepared, progress: Progress, stage: str = "sampling"
    ) -> State:
        window, sampling, row = plan.windows[index], plan.preset.sampling, plan.row_of(index)
        spec = plan.window_spec(window)
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
        done, total = index * steps, len(plan.windows) * steps
        stage += plan.place_of(index)

        def watched(state: State, time: float) -> State:
            nonlocal done
            progress(stage, done, total)
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
            window.seed(plan.request.seed),
        )
        state = sample(State(start.video.to(device), start.audio.to(device)), times, watched)
        progress(stage, done, total)
        if not all(stream.isfinite().all() for stream in (state.video, state.audio)):
            raise WeightsError(
                f"the weights of preset {plan.preset.name} gave what is no number (NaN)",
                f"`uniavgen weights verify {plan.preset.name}` checks their files",
            )
        return given.put_back(state)


def _request(task: str, **fields: Any) -> Request:
    """The request of an API call: file names become paths."""
    request = Request(task=task, **fields)
    paths = {name: Path(value) for name in provenance.FILES if (value := getattr(request, name)) is not None}
    return replace(request, **paths)  # type: ignore[arg-type]


def _size_of(plan: Plan) -> str:
    return f"{plan.spec.num_frames} frames of {plan.spec.width}x{plan.spec.height}"


@contextmanager
def _fitting(
    what: str, mode: memory.Mode, device: str, *, on_cpu: str = "take a smaller --size or a shorter clip"
) -> Iterator[None]:
    """Memory that runs out is told with what needs less of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{what} do not fit the memory of {device}", on_cpu if device == "cpu" else memory.advice(mode)
        ) from error


@contextmanager
def _timed(stage: str, timings: dict[str, float], progress: Progress = silent) -> Iterator[None]:
    progress(stage, 0, 1)
    started = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - started
    progress(stage, 1, 1)


@contextmanager
def _interruptible(store: Store | None, plan: Plan) -> Iterator[None]:
    """Ctrl-C and a full disk say how many windows of a long clip are kept."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as stopped:
        full = isinstance(stopped, OSError) and stopped.errno in (errno.ENOSPC, errno.EDQUOT)
        if store is None or not store.stays or not (full or len(store)):
            raise
        kept = f"{len(store)} of {len(plan.windows)} windows are kept, the same command goes on from there"
        if full:
            raise OutputError(
                f"no space left on the disk in {store.folder.parent}", f"make room; {kept}"
            ) from None
        if isinstance(stopped, KeyboardInterrupt):
            raise Interrupted("interrupted", kept) from None
        raise

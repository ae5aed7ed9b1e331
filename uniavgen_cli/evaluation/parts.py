"""The parts of nano's suite: what each makes of a case, and what is measured of it and of the drawn truth.

Every function returns one row: the values that `figures.py` names, and under "curves" what is drawn.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from uniavgen_cli.codecs import PictureCodec, SoundCodec
from uniavgen_cli.codecs.mel import log_mel, normalize, peak_normalize
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
from uniavgen_cli.config import Preset, weights_folder
from uniavgen_cli.data.voice import TimedPhoneme
from uniavgen_cli.engine.engine import Clip, Engine
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.engine.tasks import task_row
from uniavgen_cli.evaluation import plots
from uniavgen_cli.evaluation.attributes import attributes_right, seen_attributes
from uniavgen_cli.evaluation.cases import NUM_VOICES, Case, planned_opening
from uniavgen_cli.evaluation.emotion import heard_emotion, seen_emotion
from uniavgen_cli.evaluation.expression import ExpressionProbe
from uniavgen_cli.evaluation.figures import Row
from uniavgen_cli.evaluation.identity import identity_likeness
from uniavgen_cli.evaluation.look import LookProbe
from uniavgen_cli.evaluation.motion import flicker, motion
from uniavgen_cli.evaluation.opening import OpeningReader
from uniavgen_cli.evaluation.pictures import mouth_psnr, psnr
from uniavgen_cli.evaluation.recogniser import Recogniser, edit_distance, said
from uniavgen_cli.evaluation.seam import picture_seam, sound_seam
from uniavgen_cli.evaluation.synchrony import best_lag, correlation, heard_opening
from uniavgen_cli.evaluation.tone import ToneProbe
from uniavgen_cli.evaluation.voice import nearest_voice, voice_likeness
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.image import resized
from uniavgen_cli.media.video import read_frames, write_clip
from uniavgen_cli.runtime import Runtime, choose


@dataclass(kw_only=True)
class Bench:
    """What is measured, and what measures it."""

    preset: Preset
    opening: OpeningReader
    recogniser: Recogniser
    look: LookProbe
    expression: ExpressionProbe
    tone: ToneProbe

    @cached_property
    def engine(self) -> Engine:
        return Engine.from_preset(self.preset)

    @cached_property
    def codecs(self) -> tuple[PictureCodec, SoundCodec, Runtime]:
        """Of the engine where that is loaded, else on their own: they need no joint model to be measured."""
        if "engine" in self.__dict__:
            return self.engine.video_vae, self.engine.vocoder, self.engine.runtime
        folder, how = weights_folder(self.preset), self.preset.runtime
        runtime = choose(how.device, how.dtype, how.attention)
        vae_config, vocoder_config = (
            VideoVAEConfig(**self.preset.video_vae),
            VocoderConfig(**self.preset.vocoder),
        )
        vae = VideoVAE.load(folder / "video_vae.safetensors", vae_config).to(runtime.device.value)
        vocoder = Vocoder.load(folder / "vocoder.safetensors", vocoder_config).to(runtime.device.value)
        return vae, vocoder, runtime

    def errors(self, samples: np.ndarray, phonemes: tuple[TimedPhoneme, ...]) -> int:
        """Phonemes heard wrongly."""
        return edit_distance(self.recogniser.hear(samples), said(phonemes))

    def heard(self, samples: np.ndarray, num_frames: int) -> np.ndarray:
        """The opening that a sound implies."""
        return heard_opening(samples, num_frames, self.preset.clip.fps, self.recogniser)


@dataclass(frozen=True)
class Taken:
    """A clip that was made, decoded once; `seconds` is how long all of it took."""

    frames: np.ndarray
    samples: np.ndarray
    fps: int
    sample_rate: int
    phonemes: tuple[TimedPhoneme, ...]
    seconds: float


def take(make: Callable[[], Clip]) -> Taken:
    """Make a clip and decode it."""
    started = time.perf_counter()
    clip = make()
    frames, samples = clip.frames, clip.samples
    clip.close()
    seconds = time.perf_counter() - started
    return Taken(frames, samples, clip.fps, clip.sample_rate, clip.plan.phonemes, seconds)


def rounded(**curves: np.ndarray) -> dict[str, list[float]]:
    """Curves as a row keeps them, by their names with spaces."""
    return {name.replace("_", " "): np.round(curve, 3).tolist() for name, curve in curves.items()}


@torch.inference_mode()
def measure_codecs(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """The true clip through the codecs and back."""
    vae, vocoder, runtime = bench.codecs
    device, drawn, clip = runtime.device.value, case.drawn, case.clip
    video = torch.from_numpy(drawn.frames).permute(3, 0, 1, 2)[None].float().to(device) / 127.5 - 1
    mels = normalize(log_mel(peak_normalize(torch.from_numpy(clip.samples)[None]))).to(device)
    with runtime.autocast():
        back = vae.decode(vae.encode(video))[0]
        sound = vocoder.decode(mels)[0].float().cpu().numpy()
    pixels = ((back.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = pixels.permute(1, 2, 3, 0).cpu().numpy()  # c f h w -> f h w c
    read = bench.opening.read(frames)
    if sheet is not None:
        plots.write_picture(sheet, plots.compared_sheet(drawn.frames, frames))
    return {
        "vae_psnr": psnr(frames, drawn.frames),
        "vae_mouth_psnr": mouth_psnr(frames, drawn.frames, drawn.mouth_boxes),
        "vae_opening": correlation(read, drawn.opening),
        "true_opening": correlation(bench.opening.read(drawn.frames), drawn.opening),
        "vocoder_errors": bench.errors(sound, clip.phonemes),
        "true_errors": bench.errors(clip.samples, clip.phonemes),
        "phonemes": len(said(clip.phonemes)),
        "curves": rounded(true_opening=drawn.opening, after_the_VAE=read),
    }


def measure_animate(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """The first drawn frame animated by the clip's sound; by another's; and with the sound shut off."""
    drawn, clip, rate = case.drawn, case.clip, case.clip.spec.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        face, sound, wrong = (Path(folder, name) for name in ("face.png", "sound.wav", "other.wav"))
        plots.write_picture(face, drawn.frames[0])
        soundfile.write(sound, clip.samples, rate, subtype="FLOAT")
        soundfile.write(wrong, case.unbroken_other[0], rate, subtype="FLOAT")
        made = take(lambda: bench.engine.animate(face, sound, seed=case.index))
        other = take(lambda: bench.engine.animate(face, wrong, seed=case.index)).frames
        plan = check(Request(task="animate", face=face, sound=sound, seed=case.index), bench.preset)
        deaf = replace(plan.row, a2v=False, negative_a2v=False)
        alone = take(lambda: bench.engine.run(replace(plan, row=deaf))).frames
        keep(made, sheet, drawn.frames)
    read, heights = bench.opening.read(made.frames), drawn.opening
    first = resized(made.frames[0], *drawn.frames.shape[1:3])  # a close-up is written larger
    lag, best = best_lag(read, heights)
    return {
        "opening": correlation(read, heights),
        "opening_other": correlation(bench.opening.read(other), heights),
        "opening_alone": correlation(bench.opening.read(alone), heights),
        "true_opening": correlation(bench.opening.read(drawn.frames), heights),
        "opening_best": best,
        "lag": lag,
        "first_psnr": psnr(first, drawn.frames[0]),
        "flicker": flicker(made.frames),
        "true_flicker": flicker(drawn.frames),
        "motion": motion(made.frames),
        "true_motion": motion(drawn.frames),
        "seconds": made.seconds,
        "curves": rounded(true_opening=heights, made=read),
        **_person(bench, made.frames, drawn.frames, case.stranger),
    }


def measure_generate(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """A clip made of the caption and the text alone: what is seen and heard in it, and whether they agree."""
    clip, drawn, caption = case.clip, case.drawn, case.caption
    made = take(lambda: bench.engine.generate(caption.text, speech=clip.text, seed=case.index))
    read, num_frames = bench.opening.read(made.frames), len(made.frames)
    sound, plan = bench.heard(made.samples, num_frames), planned_opening(made.phonemes, num_frames)
    true_read = bench.opening.read(drawn.frames)
    other_sound, other_phonemes = case.unbroken_other
    heard = bench.recogniser.hear(made.samples)
    meant = said(made.phonemes)
    keep(made, sheet, drawn.frames)
    row: Row = {
        "text": clip.text,
        "caption": caption.text,
        "emotion": clip.emotion,
        "heard": " ".join(heard),
        "opening": correlation(read, sound),
        "opening_other": correlation(read, _first(bench.heard(other_sound, num_frames), num_frames)),
        "true_opening": correlation(true_read, bench.heard(clip.samples, len(true_read))),
        "opening_plan": correlation(read, plan),
        "opening_plan_other": correlation(read, planned_opening(other_phonemes, num_frames)),
        "true_opening_plan": correlation(true_read, planned_opening(clip.phonemes, len(true_read))),
        "errors": edit_distance(heard, meant),
        "phonemes": len(meant),
        "errors_other": edit_distance(heard, said(case.other.phonemes)),
        "other_phonemes": len(said(case.other.phonemes)),
        "true_errors": bench.errors(clip.samples, clip.phonemes),
        "true_phonemes": len(said(clip.phonemes)),
        "seconds": made.seconds,
        "curves": rounded(read_from_the_picture=read, heard_in_the_sound=sound, planned=plan),
    }
    return row | _looks(bench, case, made) | _emotions(bench, case, made)


def measure_person(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """A clip of a given picture and a given voice: is it that person, and that voice of eight."""
    clip, drawn = case.clip, case.drawn
    voices, true_sound = case.voices
    with tempfile.TemporaryDirectory() as folder:
        face, voice = Path(folder, "face.png"), Path(folder, "voice.wav")
        plots.write_picture(face, drawn.frames[0])
        soundfile.write(voice, voices[0], clip.spec.sample_rate, subtype="FLOAT")
        given: dict[str, Any] = {"speech": clip.text, "face": face, "voice": voice, "seed": case.index}
        made = take(lambda: bench.engine.generate(case.calm_caption.text, **given))
        keep(made, sheet, drawn.frames)
    likeness = [voice_likeness(made.samples, sound, bench.tone) for sound in voices]
    return {
        "voice_right": float(np.argmax(likeness) == 0),
        "true_voice_right": float(nearest_voice(true_sound, voices, bench.tone) == 0),
        "voice_chance": 1 / NUM_VOICES,
        "voice": likeness[0],
        "voice_other": float(np.mean(likeness[1:])),
        "true_voice": voice_likeness(true_sound, voices[0], bench.tone),
        "errors": bench.errors(made.samples, made.phonemes),
        "phonemes": len(said(made.phonemes)),
        "true_errors": bench.errors(true_sound, clip.phonemes),
        "true_phonemes": len(said(clip.phonemes)),
        "curves": rounded(read_from_the_picture=bench.opening.read(made.frames)),
        **_person(bench, made.frames, drawn.frames, case.stranger),
    }


def measure_dub(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """The drawn clip without its sound, dubbed with its text and from the lips alone."""
    clip, drawn = case.clip, case.drawn
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.mp4")
        write_clip(video, drawn.frames, clip.samples, clip.spec.fps, clip.spec.sample_rate)
        made = {}
        for name, speech in (("text", clip.text), ("lips", None)):
            plan = check(Request(task="dub", video=video, speech=speech, seed=case.index), bench.preset)
            # its own voice would give its words away
            mute = replace(plan, voice=None, row=task_row("dub", with_voice=False))
            made[name] = take(partial(bench.engine.run, mute))
            keep(made[name], sheet and sheet.with_stem(f"{sheet.stem}-{name}"), drawn.frames)
    num_frames = len(drawn.frames)
    heard = {name: _first(bench.heard(m.samples, num_frames), num_frames) for name, m in made.items()}
    other = planned_opening(case.unbroken_other[1], num_frames)
    return {
        "text": correlation(heard["text"], drawn.opening),
        "text_other": correlation(heard["text"], other),
        "lips": correlation(heard["lips"], drawn.opening),
        "lips_other": correlation(heard["lips"], other),
        "true_heard": correlation(bench.heard(clip.samples, num_frames), drawn.opening),
        "errors": bench.errors(made["text"].samples, clip.phonemes),
        "phonemes": len(said(clip.phonemes)),
        "true_errors": bench.errors(clip.samples, clip.phonemes),
        "curves": rounded(
            given_lips=drawn.opening, heard_with_text=heard["text"], heard_from_lips_alone=heard["lips"]
        ),
    }


def measure_continue(bench: Bench, case: Case, sheet: Path | None) -> Row:
    """The drawn clip going on with another sentence: the step where it does, against its own steps."""
    clip, drawn = case.clip, case.drawn
    fps, rate = clip.spec.fps, clip.spec.sample_rate
    room_s = (bench.preset.clip.max_frames - 37) / fps  # 37: as much of the clip as the model reads
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.mp4")
        write_clip(video, drawn.frames, clip.samples, fps, rate)
        height, width = drawn.frames.shape[1:3]
        given, sound = read_frames(video, fps, height, width), read_audio(video, rate)
        text = case.next_text(room_s)
        made = take(lambda: bench.engine.continue_(video, speech=text, seed=case.index))
        keep(made, sheet, given)
    sound = sound[: round(len(given) / fps * rate)]
    half, half_sound = len(given) // 2, len(sound) // 2
    read = bench.opening.read(np.concatenate([given, made.frames]))[len(given) :]
    heard = bench.heard(made.samples, len(made.frames))
    return {
        "seam_picture": picture_seam(given, made.frames),
        "true_seam_picture": picture_seam(given[:half], given[half:]),
        "cut_picture": picture_seam(given, case.stranger),
        "seam_sound": sound_seam(sound, made.samples),
        "true_seam_sound": sound_seam(sound[:half_sound], sound[half_sound:]),
        "cut_sound": sound_seam(sound, case.unbroken_other[0]),
        "opening": correlation(read, heard),
        "curves": rounded(read_from_the_picture=read, heard_in_the_sound=heard),
        **_person(bench, made.frames, given, case.stranger),
    }


PARTS: Mapping[str, Callable[[Bench, Case, Path | None], Row]] = {
    "codecs": measure_codecs,
    "animate": measure_animate,
    "generate": measure_generate,
    "person": measure_person,
    "dub": measure_dub,
    "continue": measure_continue,
}


# ---- what several parts measure --------------------------------------------------------------------------


def _person(bench: Bench, frames: np.ndarray, reference: np.ndarray, stranger: np.ndarray) -> Row:
    """Likeness with the first frame of the person given, of somebody else, and of the drawn truth."""
    return {
        "identity": identity_likeness(frames, reference[:1], bench.look),
        "identity_other": identity_likeness(frames, stranger[:1], bench.look),
        "true_identity": identity_likeness(reference, reference[:1], bench.look),
    }


def _looks(bench: Bench, case: Case, made: Taken) -> Row:
    """How many of the attributes named are seen, in what was made and in the drawn truth."""
    asked, asked_other = case.caption.attributes, case.other.caption.attributes
    seen, true = seen_attributes(made.frames, bench.look), seen_attributes(case.drawn.frames, bench.look)
    right, named = attributes_right(seen, asked)
    right_other, named_other = attributes_right(seen, asked_other)
    row: Row = {
        "named_right": right,
        "named": named,
        "true_named_right": attributes_right(true, asked)[0],
        "named_right_other": right_other,
        "named_other": named_other,
        "seen": seen,
    }
    for name in set(seen) & set(asked):
        row[f"{name}_right"] = float(seen[name] == asked[name])
        row[f"true_{name}_right"] = float(true[name] == asked[name])
    return row


def _emotions(bench: Bench, case: Case, made: Taken) -> Row:
    """Whether the emotion asked for is seen and heard, in what was made and in the drawn truth."""
    asked, other = case.clip.emotion, case.other.emotion
    seen = seen_emotion(made.frames, bench.expression, bench.opening)[0]
    heard = heard_emotion(made.samples, bench.tone)[0]
    true_seen = seen_emotion(case.drawn.frames, bench.expression, bench.opening)[0]
    return {
        "seen_as": seen,
        "heard_as": heard,
        "emotion_seen": float(seen == asked),
        "emotion_seen_other": float(seen == other),
        "true_emotion_seen": float(true_seen == asked),
        "emotion_heard": float(heard == asked),
        "emotion_heard_other": float(heard == other),
        "true_emotion_heard": float(heard_emotion(case.clip.samples, bench.tone)[0] == asked),
    }


def _first(curve: np.ndarray, length: int) -> np.ndarray:
    """The first values of a curve, its last one held where it is shorter."""
    return np.pad(curve, (0, max(0, length - len(curve))), mode="edge")[:length]


def keep(made: Taken, sheet: Path | None, truth: np.ndarray) -> None:
    """Write the clip and its frames under the truth's, to be looked at."""
    if sheet is None:
        return
    write_clip(
        sheet.with_suffix(".mp4"), made.frames, made.samples, made.fps, made.sample_rate, overwrite=True
    )
    plots.write_picture(sheet, plots.compared_sheet(truth, made.frames))
    if len(made.samples) > 2400:
        plots.write_picture(sheet.with_stem(f"{sheet.stem}-sound"), plots.spectrogram([made.samples]))

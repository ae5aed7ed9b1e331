"""Videos as people have them, made of drawn speakers: good files, and one of each kind that is wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from media_files import ffmpeg, make_sound

from uniavgen_cli.data.dataset import SpeakingClip, sample_clip
from uniavgen_cli.media.video import write_clip

SEED = 41
SIDE = 128


@dataclass(frozen=True)
class Speaker:
    """A drawn speaker's clip of about two seconds: what is said, seen and heard."""

    clip: SpeakingClip
    frames: np.ndarray

    @property
    def text(self) -> str:
        return self.clip.text


def speaker(index: int) -> Speaker:
    """Speaker number `index`, 33 frames of 128x128."""
    clip = sample_clip(SEED, index, lengths=(33,), sizes=((SIDE, SIDE),))
    return Speaker(clip, clip.draw().frames)


def write_speaker(path: Path, one: Speaker, *, text: bool = True) -> Path:
    """The speaker as an MP4, with the words in a .txt beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, one.frames, one.clip.samples, 16, 24_000)
    if text:
        path.with_suffix(".txt").write_text(f"{one.text}\n", encoding="utf-8")
    return path


def converted(source: Path, target: Path, *options: object) -> Path:
    """Another container, codec, size and rate of the same, and its .txt."""
    ffmpeg("-i", source, *options, target)
    target.with_suffix(".txt").write_bytes(source.with_suffix(".txt").read_bytes())
    return target


def write_folder(folder: Path) -> None:
    """Good videos in several formats, and one for each reason to leave it out, named after it."""
    first, second, third = (speaker(index) for index in range(3))
    good = write_speaker(folder / "good.mp4", first)
    converted(good, folder / "larger.mkv", "-vf", "scale=180:180,fps=25", "-c:v", "libx264", "-c:a", "flac")
    converted(
        write_speaker(folder / "more" / "second.mp4", second),
        folder / "more" / "old.avi",
        *("-c:v", "mjpeg", "-q:v", "3", "-c:a", "pcm_s16le", "-ar", "44100", "-ac", "2"),
    )
    # two sentences of one speaker with a pause between them
    pause = np.zeros(24_000, np.float32)
    still = np.repeat(first.frames[-1:], 16, axis=0)
    frames = np.concatenate([first.frames, still, first.frames])
    samples = np.concatenate([first.clip.samples[: 33 * 1500], pause, first.clip.samples[: 33 * 1500]])
    write_clip(folder / "long.mp4", frames, samples, 16, 24_000)
    (folder / "long.txt").write_text(f"{first.text} {first.text}")

    words = {"a": third.text}
    write_speaker(folder / "no-words.mp4", third, text=False)
    write_clip(folder / "silent.mp4", third.frames, np.zeros(49_500, np.float32), 16, 24_000)
    tone = make_sound(folder / "tone.wav", rate=24_000, seconds=2.0625)
    ffmpeg("-i", good, "-i", tone, "-map", "0:v", "-map", "1:a", "-c:v", "copy", folder / "tone.mp4")
    tone.unlink()
    ffmpeg("-i", good, "-an", "-c:v", "copy", folder / "mute.mp4")
    picture = ("-f", "lavfi", "-i", "testsrc=size=128x128:rate=16:duration=2.0625")
    ffmpeg(*picture, "-i", good, "-map", "0:v", "-map", "1:a", folder / "no-face.mp4")
    both = np.concatenate([first.frames, second.frames], axis=2)
    write_clip(folder / "two.mp4", both, first.clip.samples, 16, 24_000)
    swapped = np.concatenate([first.frames[:16], second.frames[16:]])
    write_clip(folder / "cut.mp4", swapped, first.clip.samples, 16, 24_000)
    write_clip(folder / "short.mp4", first.frames[:17], first.clip.samples[:25_500], 16, 24_000)
    write_clip(folder / "other-words.mp4", first.frames, first.clip.samples, 16, 24_000)
    (folder / "broken.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "no-media.mp4").write_text("these are words")
    (folder / "empty.mov").touch()
    for name in ("silent", "tone", "mute", "no-face", "two", "cut", "short", "broken", "no-media", "empty"):
        (folder / f"{name}.txt").write_text(words["a"])
    (folder / "other-words.txt").write_text(" ".join([third.text] * 12))

"""What a person asks for, checked and planned before anything heavy is imported."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen_cli.codecs.speech_tokens import language_of
from uniavgen_cli.config import Preset
from uniavgen_cli.data.captions import emotion_named
from uniavgen_cli.data.voice import TimedPhoneme, check_sayable
from uniavgen_cli.engine.speech import Speech, fitted, joined, time_text
from uniavgen_cli.engine.tasks import Task, following_row, task_row
from uniavgen_cli.engine.windows import KEPT_OF, Window, kept_frames, share_out
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media import limits
from uniavgen_cli.media.probe import MediaInfo, require_image, require_sound, require_video
from uniavgen_cli.media.readers import is_silent
from uniavgen_cli.media.subtitles import Subtitle, read_subtitles
from uniavgen_cli.shapes import SIZE_MULTIPLE, ClipSpec, fit_size, frames_of_seconds

if TYPE_CHECKING:
    import numpy as np

    from uniavgen_cli.media.closeup import CloseUp

logger = logging.getLogger(__name__)

LEAD_S, TAIL_S = 0.15, 0.3  # silence around speech whose length sets the clip's
CONTEXT_FRAMES = KEPT_OF[0]  # of the given clip that a continuation reads, where a window has 81 frames
SILENT_S = 3.0  # of a clip for which neither speech nor a duration is given
SUBTITLE_LATE_S = 1.0  # that the last of them may end after the video
LONGEST_S = 1e7  # with --unlimited as well: four months
SHORTEST_VOICE_S = 0.8  # that the first window's own speech is taken for its voice
MOST_TEXT = 100_000  # bytes of all words together: a clip's metadata hold them
NEEDED_FILES = {"generate": (), "dub": ("video",), "animate": ("face", "sound"), "continue": ("video",)}
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»')


@dataclass(frozen=True, kw_only=True)
class Request:
    """One clip to make. None means not given; sizes are (height, width) or the short side alone."""

    task: str  # generate, dub, animate or continue
    prompt: str = ""
    speech: str | None = None
    face: Path | None = None
    voice: Path | None = None
    voice_text: str | None = None
    video: Path | None = None  # dub: what is dubbed; continue: the clip that goes on
    sound: Path | None = None
    duration_s: float | None = None
    seed: int = 0
    steps: int | None = None
    size: tuple[int, int] | int | None = None
    face_index: int = 0
    require_face: bool = False
    language: str = "auto"  # of the speech: en, zh, or auto, by its characters
    subtitles: Path | None = None  # dub: what is said, line by line in its time, instead of `speech`
    keep_sound: bool = False  # dub: the speech is mixed over the video's own sound
    private: bool = False  # the clip's metadata hold no words and no file names
    unlimited: bool = False  # files of any size are taken


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that was found possible, with every length worked out.

    `num_frames` are asked for, of which the first `context_frames` are given by the clip that goes on; the
    model makes them in `windows`, the first of which is `spec`. `spoken` has the words with their times
    within the clip, and the phonemes for a model that places them; `speech` is the text as it was given and
    `language` that of the words, en or zh. `out_height` and `out_width` are the pixels written, in which a
    `closeup` has its place.
    """

    request: Request
    preset: Preset
    row: Task
    spec: ClipSpec
    num_frames: int
    context_frames: int
    windows: tuple[Window, ...]
    caption: str
    speech: str
    language: str
    spoken: Speech
    out_height: int
    out_width: int
    voice: Path | None = None  # whose voice: the one given, or a dubbed video's own
    media: MediaInfo | None = None  # of the given video, or the given sound of `animate`
    closeup: "CloseUp | None" = None  # of the given or painted picture: what the model sees of it

    @property
    def phonemes(self) -> tuple[TimedPhoneme, ...]:
        """Timed within the clip; empty without speech and for a model that places none."""
        return self.spoken.phonemes

    @property
    def context_start_s(self) -> float:
        """Where in the clip that goes on the model begins to read."""
        assert self.media is not None
        return _context_start_s(self.media, self.context_frames, self.spec.fps)

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.spec.fps

    def window_spec(self, window: Window) -> ClipSpec:
        """One window as the model sees it."""
        return replace(self.spec, num_frames=window.num_frames)

    def row_of(self, index: int) -> Task:
        """The row of the task table that window `index` goes by."""
        return self.row if index == 0 else following_row(self.request.task)

    def place_of(self, index: int) -> str:
        """Window `index` for a person, after the name of what is done; "" where it is the only one."""
        count = len(self.windows)
        return f", window {index + 1} of {count}" if count > 1 else ""

    @property
    def own_voice(self) -> tuple[float, float] | None:
        """When the first window speaks: what a later one takes for its voice, where nobody gave one."""
        first, fps = self.windows[0], self.spec.fps
        if self.voice is not None or len(self.windows) == 1:
            return None
        said = [
            p
            for p in self.phonemes
            if p.symbol != "pause" and p.start_s >= first.first_new / fps and p.end_s <= first.end / fps
        ]
        if not said or said[-1].end_s - said[0].start_s < SHORTEST_VOICE_S:
            return None
        return said[0].start_s, min(said[-1].end_s, said[0].start_s + self.preset.clip.voice_s)

    def said_in(self, window: Window) -> Speech:
        """What is said in a window, on its own clock; of a clip of one window the text as it was given."""
        if len(self.windows) == 1:
            return replace(self.spoken, text=self.speech)
        fps = self.spec.fps
        return self.spoken.within(window.start / fps, (window.start + window.num_frames) / fps)


def split_prompt(prompt: str) -> tuple[str, str | None]:
    """The prompt without the words it quotes, and those words (None if it quotes none)."""
    quoted = [next(part for part in match if part) for match in QUOTED.findall(prompt)]
    caption = re.sub(r"\s+", " ", QUOTED.sub("", prompt)).strip(" ,:.")
    return caption, (" ".join(part.strip() for part in quoted) or None)


def check(request: Request, preset: Preset) -> Plan:
    """Look at everything the request names and work out its lengths; torch is not needed for it.

    Raises InputError or UsageError, in one line, for whatever would fail later.
    """
    with limits.lifted(request.unlimited):
        plan = _planned(request, preset)
        if request.require_face:
            _check_face(plan)
        return plan


def _planned(request: Request, preset: Preset) -> Plan:
    if request.task not in NEEDED_FILES:
        raise UsageError(f"there is no task {request.task!r}", f"there are {', '.join(NEEDED_FILES)}")
    for name in NEEDED_FILES[request.task]:
        if getattr(request, name) is None:
            raise UsageError(f"{request.task} needs a {name} and none is given", f"give it a {name} file")
    words = "".join((request.prompt, request.speech or "", request.voice_text or ""))
    if (size := len(words.encode("utf-8", "replace"))) > MOST_TEXT:
        raise UsageError(f"the words are {size} bytes, and at most {MOST_TEXT} are taken", "say less at once")
    caption, quoted = split_prompt(request.prompt)
    lines = _subtitles(request)
    if lines:
        quoted = " ".join(line.text for line in lines)
    speech = request.speech if request.speech is not None else quoted
    if request.task == "animate" and speech:
        speech = None  # the given sound is the speech; the quoted words only describe it
    speech = (speech or "").strip()
    if request.steps is not None and not 1 <= request.steps <= 1000:
        raise UsageError(
            f"--steps {request.steps} is outside 1..1000",
            f"{preset.sampling.steps} is usual for {preset.name}",
        )
    if request.duration_s is not None and not 0 < request.duration_s < LONGEST_S:
        raise UsageError(f"--duration {request.duration_s:g} is no length", "give seconds, such as 3.5")
    if request.voice is not None:
        _check_voice(request, preset, require_sound(request.voice))
    language = _language(request, preset, speech)

    media, source, context, voice = None, None, 0, request.voice
    if request.task == "generate":
        if request.face is not None:
            source = _image_size(request.face)
        elif preset.needs_face:
            raise UsageError(
                f"the preset {preset.name} makes a clip from a picture and none is given",
                "add --face FILE, or take --preset nano, which draws a face from the prompt",
            )
        wanted_s = request.duration_s
    elif request.task == "animate":
        assert request.face is not None and request.sound is not None
        source = _image_size(request.face)
        media = require_sound(request.sound)
        wanted_s = _sound_seconds(media)
    else:
        assert request.video is not None
        media = require_video(request.video)
        assert media.video is not None
        source = (media.video.height, media.video.width)
        if request.task == "dub":
            wanted_s = media.duration_s
            heard = media.audio is not None and voice is None
            if heard and not is_silent(request.video, preset.clip.sample_rate):
                if not preset.needs_voice_text:
                    voice = request.video
                elif speech:
                    logger.warning(
                        f"the preset {preset.name} reads no voice without its words: the video's own is not "
                        "taken, --voice and --voice-text give one"
                    )
        else:
            given = int(media.duration_s * preset.clip.fps + 1e-6)
            # whole latent frames, so that the last given one is known entirely
            context = 1 + (min(kept_frames(preset.clip.max_frames), max(1, given)) - 1) // 4 * 4
            wanted_s = request.duration_s

    fps = preset.clip.fps
    spoken = Speech() if lines else time_text(speech, language, emotion_named(caption))
    if wanted_s is None:
        added_s = LEAD_S + spoken.end_s + TAIL_S if speech else SILENT_S
        num_frames = context + frames_of_seconds(added_s, fps)
        if speech and not preset.model.get("phoneme_vocab"):  # it says its words when it likes
            num_frames = max(num_frames, preset.clip.max_frames)
    else:
        num_frames = context + frames_of_seconds(wanted_s, fps)
    _check_length(request, (num_frames - context) / fps)
    # a given length may leave less silence around the speech than we would
    lead_s = LEAD_S + context / fps
    if lines:
        assert request.subtitles is not None
        spoken = _in_time(lines, language, wanted_s or 0.0, request.subtitles)
    else:
        spoken = fitted(spoken, lead_s, num_frames / fps - lead_s - (0.1 if wanted_s is not None else 0.0))
    height, width = _model_size(request, preset, source)
    out_height, out_width = _written_size(height, width, source, request.size)
    if closeup := _closeup(request, preset, (height, width), media, context):
        height = width = preset.clip.short_side
        out_height, out_width = closeup.out_height, closeup.out_width
        if request.task == "dub":  # its picture is not written again: this is the model's view
            out_height = out_width = preset.clip.short_side
    spec = ClipSpec(
        num_frames=preset.clip.max_frames,
        height=height,
        width=width,
        fps=fps,
        sample_rate=preset.clip.sample_rate,
    )
    try:
        windows = share_out(
            num_frames,
            fps=fps,
            mel_hz=spec.mel_hz,
            least=preset.clip.min_frames,
            most=preset.clip.max_frames,
            context=context,
            pauses=spoken.pauses(),
        )
    except ValueError as error:
        raise UsageError(
            f"the preset {preset.name} makes no clips of more than {preset.clip.max_frames} frames: {error}",
            "take another clip.fps or clip.max_frames",
        ) from None
    if not preset.model.get("phoneme_vocab"):
        spoken = replace(spoken, phonemes=())
    return Plan(
        request=request,
        preset=preset,
        row=task_row(request.task, with_voice=voice is not None),
        spec=replace(spec, num_frames=windows[0].num_frames),
        num_frames=num_frames,
        context_frames=context,
        windows=windows,
        caption=caption,
        speech=speech,
        language=language,
        spoken=spoken,
        voice=voice,
        out_height=out_height,
        out_width=out_width,
        media=media,
        closeup=closeup,
    )


def _context_start_s(media: MediaInfo, context: int, fps: float) -> float:
    return max(0.0, media.duration_s - context / fps)


def _closeup(
    request: Request, preset: Preset, size: tuple[int, int], media: MediaInfo | None, context: int
) -> "CloseUp | None":
    """Of the given picture, the last of the clip that goes on, the first of the one that is dubbed, or the
    one that will be painted; None without a face. `size` (height, width) is what the model would see else.
    """
    from uniavgen_cli.media.closeup import find_closeup, size_to_look, square_of  # OpenCV
    from uniavgen_cli.media.image import read_image, resized
    from uniavgen_cli.media.video import require_frames

    def found(picture: "np.ndarray") -> "CloseUp | None":
        near = find_closeup(picture, preset.clip.closeup, request.face_index)
        return near if near is None or preset.clip.still_head else replace(near, face=None)

    side = preset.clip.short_side
    exact = request.size if isinstance(request.size, tuple) else None
    if request.task == "generate" and request.face is None:
        return square_of(*size) if preset.sampling.person_first and size != (side, side) else None
    if not preset.clip.closeup:
        return None
    if request.face is not None:
        picture = read_image(request.face)
        picture = resized(picture, *exact) if exact else picture
        near = found(picture)
        return near if near is None or isinstance(request.size, tuple) else near.written(side, request.size)
    if request.video is None:
        return None
    assert media is not None and media.video is not None
    height, width = exact or size_to_look(media.video.height, media.video.width)
    fps, count = preset.clip.fps, max(context, 1)
    start_s = _context_start_s(media, context, fps) if context else 0.0
    picture = require_frames(request.video, fps, height, width, start_s=start_s, num_frames=count)[-1]
    return found(picture)


def _check_face(plan: Plan) -> None:
    """Raise InputError when the picture that is given, or a given video's first, shows no face."""
    from uniavgen_cli.media.face import detect_faces  # OpenCV: only where it is asked
    from uniavgen_cli.media.image import read_image, resized
    from uniavgen_cli.media.video import require_frames

    request, spec = plan.request, plan.spec
    if plan.closeup is not None:
        return  # of the face that was found
    if request.face is not None:
        picture = resized(read_image(request.face), spec.height, spec.width)
    elif request.video is not None:
        start_s = plan.context_start_s if request.task == "continue" else 0.0
        picture = require_frames(
            request.video, spec.fps, spec.height, spec.width, start_s=start_s, num_frames=1
        )[0]
    else:
        return
    if not detect_faces(picture):
        raise InputError(
            "no face was found in the picture", "give a clearer one, or leave out --require-face"
        )


def _subtitles(request: Request) -> tuple[Subtitle, ...]:
    """The lines of the request's subtitles; UsageError where none can be spoken."""
    if request.subtitles is None:
        return ()
    if request.task != "dub":
        raise UsageError(f"{request.task} takes no subtitles", "`uniavgen dub` speaks them over a video")
    if request.speech is not None:
        raise UsageError("--speech and --subtitles both say what is spoken", "leave one of them out")
    return read_subtitles(request.subtitles)


def _in_time(lines: Sequence[Subtitle], language: str, video_s: float, file: Path) -> Speech:
    """Each line at an easy pace from its start, or faster to its end. InputError names one that can't be."""
    parts = []
    for line in lines:
        if line.end_s > video_s + SUBTITLE_LATE_S:
            raise InputError(
                f"line {line.line} of {file} ends at {line.end_s:.2f} s and the video at {video_s:.2f} s",
                "these subtitles are another video's",
            )
        what = f"line {line.line} of {file}, {line.text[:40]!r},"
        parts.append(fitted(time_text(line.text, language), line.start_s, line.end_s - line.start_s, what))
    return joined(parts)


def _check_voice(request: Request, preset: Preset, sound: MediaInfo) -> None:
    """Raise UsageError or InputError for a voice that is silent, that the model needs the words of, or a
    shorter one.
    """
    assert request.voice is not None
    if is_silent(request.voice, preset.clip.sample_rate):
        raise InputError(f"the voice {request.voice} is silent", "give a recording with speech")
    if not preset.needs_voice_text:
        return
    if not request.voice_text:
        raise UsageError(
            f"the preset {preset.name} listens to a voice with its words, and none are given",
            f"add --voice-text with what is said in {request.voice}",
        )
    if _sound_seconds(sound) > preset.clip.voice_s + 0.05:
        raise InputError(
            f"the voice {request.voice} takes {_sound_seconds(sound):.2f} s and the preset {preset.name} "
            f"listens to {preset.clip.voice_s:.2f} s",
            "cut it to a sentence, and say in --voice-text what is left",
        )


def _language(request: Request, preset: Preset, speech: str) -> str:
    """The language of the words, en or zh; UsageError or InputError when the preset can't say them."""
    words = [text for text in (request.voice_text, speech) if text]
    chinese = "zh" in preset.languages
    if request.language == "zh" and not chinese:
        raise UsageError(f"the preset {preset.name} speaks English alone", "take --preset uniavgen")
    language = language_of(" ".join(words) if chinese else "", request.language)
    for text in words:
        if language == "en":
            check_sayable(text)
        elif not any(c.isalnum() for c in text):
            raise InputError(f"the speech text {text[:40]!r} has no words", "write Chinese or English words")
    return language


def _check_length(request: Request, seconds: float) -> None:
    """Raise InputError when the clip asked for is longer than the limit."""
    what = {
        "animate": f"the sound {request.sound}",
        "dub": f"the video {request.video}",
    }.get(request.task, "the speech" if request.duration_s is None else "--duration")
    limits.check(what, seconds, limits.MOST_SECONDS, "seconds", "shorten it")


def _image_size(path: Path) -> tuple[int, int]:
    info = require_image(path)
    assert info.image is not None
    return info.image.height, info.image.width


def _sound_seconds(media: MediaInfo) -> float:
    assert media.audio is not None
    return media.audio.duration_s


def _model_size(request: Request, preset: Preset, source: tuple[int, int] | None) -> tuple[int, int]:
    size = request.size if request.size is not None else preset.clip.short_side
    if isinstance(size, int):
        if size < 64 or size > 2048:
            raise UsageError(
                f"--size {size} is outside 64..2048", f"{preset.clip.short_side} is this preset's"
            )
        short_side = -(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE
        height, width = fit_size(*(source or (1, 1)), short_side)
        if max(height, width) > 4096:
            raise InputError(
                f"a picture of {source[1]}x{source[0]} would become {width}x{height}, and 4096 is the most"
                if source
                else f"--size {size} is too large",
                "crop it, or give --size WIDTHxHEIGHT",
            )
        return height, width
    height, width = size
    if (
        min(height, width) < 64
        or max(height, width) > 4096
        or height % SIZE_MULTIPLE
        or width % SIZE_MULTIPLE
    ):
        raise UsageError(
            f"--size {width}x{height} can't be made",
            f"sides are multiples of {SIZE_MULTIPLE} from 64 to 4096",
        )
    return height, width


def _written_size(
    height: int, width: int, source: tuple[int, int] | None, size: tuple[int, int] | int | None
) -> tuple[int, int]:
    """The pixels written: the model's own, unless its rounding would visibly stretch the given picture."""
    if source is None or isinstance(size, tuple):
        return height, width
    stretch = (width / height) / (source[1] / source[0])
    if abs(stretch - 1) < 0.02:
        return height, width
    if stretch > 1:
        return height, 2 * round(width / stretch / 2)
    return 2 * round(height * stretch / 2), width

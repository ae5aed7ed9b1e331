"""What a person asks for, checked and planned before anything heavy is imported."""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

from uniavgen_cli.codecs.speech_tokens import language_of, num_syllables
from uniavgen_cli.config import Preset
from uniavgen_cli.data.voice import TimedPhoneme, check_sayable, retime, time_phonemes
from uniavgen_cli.engine.tasks import Task, task_row
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media.limits import lifted
from uniavgen_cli.media.probe import MediaInfo, require_image, require_sound, require_video
from uniavgen_cli.shapes import SIZE_MULTIPLE, ClipSpec, fit_size, frames_of_seconds, padded_frames

logger = logging.getLogger(__name__)

LEAD_S, TAIL_S = 0.15, 0.3  # silence around speech whose length sets the clip's
MAX_SPEED_UP = 1.3  # speech faster than this no longer sounds like speech
SYLLABLE_S, LETTER_S = 0.21, 0.065  # of Mandarin at an easy pace, and of Latin letters within it
CONTEXT_FRAMES = 37  # of the given clip that a continuation reads: 2.31 s, as the paper's 2.5 s
SILENT_S = 3.0  # of a clip for which neither speech nor a duration is given
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
    keep_sound: bool = False  # dub: the speech is mixed over the video's own sound
    private: bool = False  # the clip's metadata hold no words and no file names
    unlimited: bool = False  # files of any size are taken


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request that was found possible, with every length worked out.

    `spec` is the model's window, `num_frames` of it are asked for (the rest is cut off), of which the first
    `context_frames` are given by the clip that goes on. `phonemes` are timed within the clip, empty without
    speech and for a model that places none; `language` is that of the words, en or zh. `out_height` and
    `out_width` are the pixels written.
    """

    request: Request
    preset: Preset
    row: Task
    spec: ClipSpec
    num_frames: int
    context_frames: int
    caption: str
    speech: str
    language: str
    phonemes: tuple[TimedPhoneme, ...]
    out_height: int
    out_width: int
    voice: Path | None = None  # whose voice: the one given, or a dubbed video's own
    media: MediaInfo | None = None  # of the given video, or the given sound of `animate`

    @property
    def context_start_s(self) -> float:
        """Where in the clip that goes on the model begins to read."""
        assert self.media is not None
        return max(0.0, self.media.duration_s - self.context_frames / self.spec.fps)

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.spec.fps


def split_prompt(prompt: str) -> tuple[str, str | None]:
    """The prompt without the words it quotes, and those words (None if it quotes none)."""
    quoted = [next(part for part in match if part) for match in QUOTED.findall(prompt)]
    caption = re.sub(r"\s+", " ", QUOTED.sub("", prompt)).strip(" ,:.")
    return caption, (" ".join(part.strip() for part in quoted) or None)


def check(request: Request, preset: Preset) -> Plan:
    """Look at everything the request names and work out its lengths; torch is not needed for it.

    Raises InputError or UsageError, in one line, for whatever would fail later.
    """
    with lifted(request.unlimited):
        return _planned(request, preset)


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
    speech = request.speech if request.speech is not None else quoted
    if request.task == "animate" and speech:
        speech = None  # the given sound is the speech; the quoted words only describe it
    speech = (speech or "").strip()
    if request.steps is not None and not 1 <= request.steps <= 1000:
        raise UsageError(
            f"--steps {request.steps} is outside 1..1000", "20 is usual for nano, 50 for uniavgen"
        )
    if request.duration_s is not None and not 0 < request.duration_s < math.inf:
        raise UsageError(f"--duration {request.duration_s:g} is not positive", "give seconds, such as 3.5")
    if request.voice is not None:
        _check_voice(request, preset, require_sound(request.voice))
    language = _language(request, preset, speech)

    window_s = preset.clip.max_frames / preset.clip.fps
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
            if voice is None and media.audio is not None:
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
            context = 1 + (min(CONTEXT_FRAMES, max(1, given)) - 1) // 4 * 4
            wanted_s = request.duration_s

    phonemes = time_phonemes(speech) if speech and language == "en" else ()
    spoken_s = phonemes[-1].end_s if phonemes else _chinese_seconds(speech)
    if not preset.model.get("phoneme_vocab"):
        phonemes = ()  # this model says its words when it likes
    fps = preset.clip.fps
    lead_s = LEAD_S + context / fps
    if wanted_s is None:
        added_s = LEAD_S + spoken_s + TAIL_S if speech else SILENT_S
        num_frames = context + frames_of_seconds(added_s, fps)
    else:
        num_frames = context + frames_of_seconds(wanted_s, fps)
    if num_frames > preset.clip.max_frames:
        asked_s = (num_frames - context) / fps
        most_s = (preset.clip.max_frames - context) / fps
        what = {
            "generate": "the speech" if wanted_s is None else "--duration",
            "animate": f"the sound {request.sound}",
            "dub": f"the video {request.video}",
            "continue": "the speech" if wanted_s is None else "--duration",
        }[request.task]
        raise InputError(
            f"{what} takes {asked_s:.2f} s and one clip of the preset {preset.name} holds {most_s:.2f} s"
            + (f" (of {window_s:.2f} s, {context / fps:.2f} s are the given clip's end)" if context else ""),
            "shorten it, or make it in parts",
        )
    if wanted_s is None and speech and not phonemes:
        num_frames = preset.clip.max_frames
    phonemes = _fit_speech(phonemes, spoken_s, lead_s, num_frames / fps, wanted_s is not None)
    height, width = _model_size(request, preset, source)
    out_height, out_width = _written_size(height, width, source, request.size)
    return Plan(
        request=request,
        preset=preset,
        row=task_row(request.task, with_voice=voice is not None),
        spec=ClipSpec(
            num_frames=padded_frames(max(num_frames, preset.clip.min_frames)),
            height=height,
            width=width,
            fps=fps,
            sample_rate=preset.clip.sample_rate,
        ),
        num_frames=num_frames,
        context_frames=context,
        caption=caption,
        speech=speech,
        language=language,
        phonemes=phonemes,
        voice=voice,
        out_height=out_height,
        out_width=out_width,
        media=media,
    )


def _check_voice(request: Request, preset: Preset, sound: MediaInfo) -> None:
    """Raise UsageError or InputError for a voice that the model needs the words of, or a shorter one."""
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


def _chinese_seconds(speech: str) -> float:
    """About how long it takes to say a text of ideographs and some Latin letters."""
    num_letters = sum(c.isalnum() for c in speech) - num_syllables(speech)
    return SYLLABLE_S * num_syllables(speech) + LETTER_S * max(0, num_letters)


def _fit_speech(
    phonemes: tuple[TimedPhoneme, ...],
    spoken_s: float,
    lead_s: float,
    duration_s: float,
    length_is_given: bool,
) -> tuple[TimedPhoneme, ...]:
    """The phonemes after `lead_s`, faster where a given length asks for it; InputError beyond 1.3 times."""
    if not spoken_s:
        return ()
    # a given length may leave less silence around the speech than we would
    room_s = duration_s - lead_s - (0.1 if length_is_given else 0.0)
    speed = max(1.0, spoken_s / max(room_s, 1e-3))
    if speed > MAX_SPEED_UP:
        raise InputError(
            f"the speech takes {spoken_s:.2f} s and there is room for {max(room_s, 0):.2f} s, which would be "
            f"{speed:.2f} times its pace (at most {MAX_SPEED_UP})",
            "shorten the speech, or give more time",
        )
    if not phonemes:
        return ()
    return retime(phonemes, lead_s + phonemes[0].start_s / speed, lead_s + spoken_s / speed)


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

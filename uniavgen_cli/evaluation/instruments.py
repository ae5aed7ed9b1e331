"""The instruments of the drawn world: which are on disk, where they lie, and how they are made."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from uniavgen_cli.config import find_weights, weights_dir
from uniavgen_cli.errors import OutputError, WeightsError
from uniavgen_cli.evaluation.expression import ExpressionProbe, load_expression_probe
from uniavgen_cli.evaluation.look import LookProbe, load_look_probe
from uniavgen_cli.evaluation.opening import OpeningReader, load_opening_reader
from uniavgen_cli.evaluation.recogniser import Recogniser, load_recogniser
from uniavgen_cli.evaluation.tone import ToneProbe, load_tone_probe

# What each reads, by its name, which is also its file's; each is read, or made when its file is missing.
INSTRUMENTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "opening": ("the opening of a drawn mouth", load_opening_reader),
    "recogniser": ("phonemes in this world's voices", load_recogniser),
    "look": ("who a drawn person is and how it looks", load_look_probe),
    "expression": ("the emotion of a drawn face", load_expression_probe),
    "tone": ("whose voice of this world it is, and its emotion", load_tone_probe),
}
HOW_TO_MAKE = "`uniavgen eval --train-probes` makes them"


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """The instruments there are; None for one whose weights are not on disk."""

    opening: OpeningReader | None = None
    recogniser: Recogniser | None = None
    look: LookProbe | None = None
    expression: ExpressionProbe | None = None
    tone: ToneProbe | None = None
    whisper: Path | None = None
    syncnet: Path | None = None


def probes_folder() -> Path:
    """Where the probes of the drawn world are kept unless a folder is named."""
    return weights_dir() / "nano-probes"


def find(folder: Path) -> dict[str, Path]:
    """The files of the probes that are there: in `folder`, or with nano's own weights."""
    found = {}
    for name in INSTRUMENTS:
        for place in (folder / f"{name}.safetensors", find_weights(f"nano/{name}.safetensors")):
            if place.is_file():
                found[name] = place
                break
    return found


def load_instruments(folder: Path | None = None) -> Instruments:
    """Those that are on disk; the probes in `folder`, Whisper and SyncNet under `weights_dir()`.

    Raises WeightsError for a file that does not hold what its name says.
    """
    files = find(folder or probes_folder())
    whisper, syncnet = weights_dir() / "whisper", weights_dir() / "syncnet" / "syncnet_v2.model"
    return Instruments(
        **{name: _read(name, path) for name, path in files.items()},  # type: ignore[arg-type]
        whisper=whisper if (whisper / "config.json").is_file() else None,
        syncnet=syncnet if syncnet.is_file() else None,
    )


def make_missing(
    folder: Path,
    names: Iterable[str] = tuple(INSTRUMENTS),
    starting: Callable[[str], None] = lambda what: None,
) -> list[Path]:
    """Train those of `names` that are not there, some minutes each on one core; the files written.

    `starting` is told what each reads. Raises OutputError when the folder can't be written.
    """
    there, written = find(folder), []
    for name in names:
        if name in there:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder {folder} can't be made: {error.strerror}", "name another with --probes"
            ) from None
        what, load = INSTRUMENTS[name]
        starting(what)
        path = folder / f"{name}.safetensors"
        load(path)
        written.append(path)
    return written


def _read(name: str, path: Path) -> object:
    try:
        return INSTRUMENTS[name][1](path)
    except Exception as error:
        raise WeightsError(
            f"{path} does not hold the probe {name} ({str(error).splitlines()[0]})",
            "delete it; `uniavgen eval --train-probes` makes it anew",
        ) from error

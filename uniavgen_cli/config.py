"""The YAML edge: a preset is read, derived (`extends`), overridden and checked. No torch."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from os.path import isdir, isfile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from uniavgen_cli.errors import UsageError, WeightsError
from uniavgen_cli.shapes import SIZE_MULTIPLE, TEMPORAL_STRIDE

PACKAGE = Path(__file__).resolve().parent
DEFAULT_PRESET = "nano"
ENVIRONMENT = {  # a flag beats these, these beat the preset
    "UNIAVGEN_DEVICE": "runtime.device",
    "UNIAVGEN_DTYPE": "runtime.dtype",
    "UNIAVGEN_ATTENTION": "runtime.attention",
}
OWN_KEYS = ("name", "extends", "about")  # a preset says these itself, it doesn't derive them
# The file or folder of each part in a folder of weights, by the preset's `layout`; the first that is there.
# Of the released checkpoint's VAE and caption encoder also the folders that diffusers and transformers write.
LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "nano": {
        "joint": ("joint.safetensors.index.json",),
        "video_vae": ("video_vae.safetensors",),
        "vocoder": ("vocoder.safetensors",),
        "caption": ("caption.safetensors",),
    },
    "released": {
        "joint": ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
        "video_vae": ("Wan2.2_VAE.pth", "vae"),
        "vocoder": ("code2wav_bigvgan_model",),
        "caption": ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder"),
        "tokenizer": ("google/umt5-xxl", "tokenizer"),
        # of F5-TTS v1 Base, where the second is its path; UNIAVGEN_VOCAB names another
        "vocabulary": ("vocab.txt", "F5TTS_v1_Base/vocab.txt"),
    },
}


def _frames(value: int) -> int:
    if value % TEMPORAL_STRIDE != 1:
        raise ValueError(f"{value} is not 1 + {TEMPORAL_STRIDE}k")
    return value


def _side(value: int) -> int:
    if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
        raise ValueError(f"{value} is not a multiple of {SIZE_MULTIPLE}")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Clip(_Section):
    """The clips the weights were taught; one model window holds at most `max_frames`."""

    fps: int = Field(16, gt=0)
    sample_rate: int = Field(24_000, gt=0)
    max_frames: Annotated[int, AfterValidator(_frames)] = 81
    min_frames: Annotated[int, AfterValidator(_frames)] = 17
    voice_s: float = Field(2.2, gt=0)  # of a given voice that is listened to
    short_side: Annotated[int, AfterValidator(_side)]
    closeup: float = Field(0.0, ge=0, lt=1)  # of a square that a given face is seen to take; 0: none
    still_head: bool = False  # of a face that is seen so, mouth and eyes alone move


class Sampling(_Section):
    """How a clip is sampled; a guidance of 1 is none, `face_prior` 0 leaves the face mask alone.

    Steps are guided from the share `guidance_from` of them up to `guidance_to`: 0 and 1 are all. With
    `person_first` a person of whom there is no picture is painted by the video branch alone, and the voice
    of a clip of several windows, where nobody gave it, is that of a draft of the first. Steps between the
    squares of neighbouring tokens are shared out over `evened` pixels on either side.
    """

    steps: int = Field(ge=1, le=1000)
    shift: float = Field(5.0, gt=0)
    video_guidance: float = Field(1.0, ge=0)
    picture_guidance: float = Field(1.0, ge=0)  # of a painted person
    audio_guidance: float = Field(1.0, ge=0)
    modality_guidance_fraction: float = Field(0.5, ge=0, le=1)
    guidance_from: float = Field(0.0, ge=0, le=1)
    guidance_to: float = Field(1.0, ge=0, le=1)
    skip_block: int | None = Field(None, ge=0)
    face_prior: float = Field(0.0, ge=0)
    person_first: bool = False
    evened: int = Field(0, ge=0, le=16)


class Runtime(_Section):
    """Where it runs; `auto` is chosen by rule, and `uniavgen doctor` and `uniavgen plan` say why."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    memory: Literal["auto", "resident", "encoder-first", "tiled", "8-bit", "streamed"] = "auto"


class Preset(_Section):
    """One size of the model: its configuration, its weights, adapters for them, and how it samples.

    `model`, `video_vae`, `vocoder` and `caption` are the keyword arguments of their config dataclasses;
    `layout` says how the files of its weights are named, and with that which classes read them. `train` is
    the recipe of a part, only in presets for `uniavgen train`.
    """

    name: str
    about: str
    extends: str | None = None
    weights: str
    lora: str | None = None
    layout: Literal["nano", "released"] = "nano"
    needs_face: bool
    needs_voice_text: bool = False  # a given voice is listened to with its words alone, all of it
    languages: list[Literal["en", "zh"]] = ["en"]
    model: dict[str, Any]
    video_vae: dict[str, Any]
    vocoder: dict[str, Any]
    caption: dict[str, Any]
    clip: Clip
    sampling: Sampling
    runtime: Runtime = Field(default_factory=Runtime)
    train: dict[str, Any] | None = None


def presets_dir() -> Path:
    """The folder of the presets: beside the package in a source checkout, inside it in an installed wheel."""
    return _resources("presets")


def weights_dir() -> Path:
    """The user's folder of weights, one folder a set, where sets are pulled to.

    UNIAVGEN_WEIGHTS names it; by default it is where data of a user's programs belong (the XDG base
    directories): a package's own folder may not be writable, and goes when the package does.
    """
    if elsewhere := os.environ.get("UNIAVGEN_WEIGHTS"):
        return Path(elsewhere).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "uniavgen" / "weights"


def shipped_weights_dir() -> Path:
    """The folder of the weights that come with the package, and of the registry."""
    return _resources("weights")


def find_weights(name: str) -> Path:
    """A set, or a file of one, by its path under a folder of weights: the user's own, else what was shipped.

    Where neither has it, the path where the user's would be.
    """
    places = [folder / name for folder in (weights_dir(), shipped_weights_dir())]
    # isfile and isdir are False as well for a name that no file can have
    there = (path for path in places if isfile(path) or (isdir(path) and any(path.iterdir())))
    return next(there, places[0])


def registry_path() -> Path:
    """The file that names the sets of weights there are, wherever the weights themselves lie."""
    return shipped_weights_dir() / "registry.yaml"


def _resources(name: str) -> Path:
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return PACKAGE / f"_{name}"


def preset_names() -> list[str]:
    """The built-in presets, by name."""
    return sorted(path.stem for path in presets_dir().glob("*.yaml"))


def load_preset(name_or_path: str | Path = DEFAULT_PRESET, overrides: Sequence[str] = ()) -> Preset:
    """The preset of that name or YAML file, with `overrides` ("sampling.steps=10") over the environment's.

    Raises UsageError for an unknown preset or key, naming the nearest, and for a value of the wrong type.
    """
    path = _find(name_or_path)
    values = _derived(path, ())
    set_by_environment = [
        f"{key}={os.environ[name]}" for name, key in ENVIRONMENT.items() if os.environ.get(name)
    ]
    preset = _checked(values, path.stem)
    if not (overridden := [*set_by_environment, *overrides]):
        return preset
    values = preset.model_dump()  # with the defaults in it, so that they can be set too
    for override in overridden:
        _override(values, override, path.stem)
    return _checked(values, path.stem)


def weights_folder(preset: Preset) -> Path:
    """The folder of the preset's weights: a path, or the name of a set. WeightsError without any."""
    folder = Path(preset.weights)
    if not isdir(folder):
        folder = find_weights(preset.weights)
    if not (isdir(folder) and any(folder.glob("*.safetensors"))):
        hint = (
            "they come with the package: install it again"
            if preset.weights == DEFAULT_PRESET
            else f"fetch them with `uniavgen weights pull {preset.weights}`, or use --preset nano"
        )
        raise WeightsError(
            f"the weights of preset {preset.name} are not installed (looked in {folder})", hint
        )
    return folder


def weights_files(preset: Preset) -> dict[str, Path]:
    """The file or folder of each part of the preset's weights; raises WeightsError when one is not there."""
    folder, files = weights_folder(preset), {}
    for part, names in LAYOUTS[preset.layout].items():
        elsewhere = os.environ.get("UNIAVGEN_VOCAB") if part == "vocabulary" else None
        places = [Path(elsewhere).expanduser()] if elsewhere else [folder / name for name in names]
        found = [place for place in places if place.exists()]
        if not found:
            raise WeightsError(
                f"the weights of preset {preset.name} lack the {part.replace('_', ' ')}: "
                f"there is no {' or '.join(str(place) for place in places)}",
                ("name one in UNIAVGEN_VOCAB, or " if part == "vocabulary" else "")
                + "fetch them with `uniavgen weights pull uniavgen`"
                if preset.layout == "released"
                else "install them again",
            )
        files[part] = found[0]
    if preset.lora is not None and not isfile(preset.lora):
        raise WeightsError(
            f"there is no LoRA {preset.lora}", "check its name; `uniavgen train --lora` makes one"
        )
    return files


def base_name(preset: Preset) -> str:
    """The built-in preset that `preset` is, or extends."""
    return next(name for name in (preset.name, preset.extends, DEFAULT_PRESET) if name in preset_names())


def changed_keys(preset: Preset) -> dict[str, Any]:
    """The keys in which `preset` differs from the built-in one it is, or extends."""
    base = base_name(preset)
    stands = dict(_flat(_checked(_derived(_find(base), ()), base).model_dump()))
    return {
        key: value
        for key, value in _flat(preset.model_dump())
        if key not in OWN_KEYS and stands.get(key) != value
    }


def rebuilt_preset(name: str, base: str, changes: Mapping[str, Any]) -> Preset:
    """The preset of which `base_name` and `changed_keys` told these; the environment has no say in it.

    Raises UsageError when there is no such base here, or the changes do not fit it.
    """
    if base not in preset_names():
        raise UsageError(f"there is no preset {base!r} here", "`uniavgen presets list` names them all")
    values = _checked(_derived(_find(base), ()), base).model_dump()
    for key, value in changes.items():
        *sections, last = key.split(".")
        holder = values
        for section in sections:
            if not isinstance(holder.get(section), dict):
                holder[section] = {}
            holder = holder[section]
        holder[last] = value
    return _checked(values | {"name": name, "extends": None if name == base else base}, name)


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text).expanduser()
        if not isfile(path):
            raise UsageError(
                f"preset file {text} does not exist", "`uniavgen presets list` names the built-in ones"
            )
        return path
    if text not in preset_names():
        raise UsageError(
            f"unknown preset {text!r}{_nearest(text, preset_names())}",
            "`uniavgen presets list` names them all",
        )
    return presets_dir() / f"{text}.yaml"


def _checked(values: dict[str, Any], name: str) -> Preset:
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        value = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"preset {name}: {where}: {reason}{value}", _show(name)) from error


def _derived(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in `path`, laid over the preset it extends."""
    if path in seen:
        raise UsageError(f"preset {path.stem} extends itself by way of {', '.join(p.stem for p in seen)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"preset file {path} can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UsageError(f"preset file {path} holds no mapping of keys")
    values = {"name": path.stem, **values}
    parent = values.get("extends")
    if parent is None:
        return values
    beside = path.parent / str(
        parent
    )  # a file extends a built-in preset by name, or a file by its own path to it
    base = _derived(beside if beside.suffix and beside.is_file() else _find(str(parent)), (*seen, path))
    return _merged({key: value for key, value in base.items() if key not in OWN_KEYS}, values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _override(values: dict[str, Any], override: str, preset: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r} is not KEY=VALUE", "for example --set sampling.steps=10")
    known = dict(_flat(values))
    if key not in known:
        raise UsageError(f"unknown key {key!r} in preset {preset}{_nearest(key, list(known))}", _show(preset))
    *sections, last = key.split(".")
    holder = values
    for section in sections:
        holder = holder[section]
    holder[last] = _parsed(key, text, known[key])


def _parsed(key: str, text: str, now: Any) -> Any:
    """`text` as YAML reads it; a whole number also counts where a fraction stands now."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {key}={text}: the value can't be read as YAML") from error
    if isinstance(now, float) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for text
        except (TypeError, ValueError):
            pass
    if (
        now is not None
        and type(value) is not type(now)
        and not key.startswith(("clip.", "sampling.", "runtime."))
    ):
        raise UsageError(f"--set {key}={text}: {type(now).__name__} expected, as in {key}={now}")
    return value


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _nearest(text: str, known: list[str]) -> str:
    tails = {key.rpartition(".")[2]: key for key in known}  # `steps` finds sampling.steps
    close = difflib.get_close_matches(text, [*known, *tails], n=1, cutoff=0.6)
    return f"; did you mean {tails.get(close[0], close[0])}?" if close else ""


def _show(preset: str) -> str:
    return f"`uniavgen presets show {preset}` lists its keys"

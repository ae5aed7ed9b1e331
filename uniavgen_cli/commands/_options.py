"""Options more than one command has; None means not given. Flag beats environment beats preset."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

Argument, Option = typer.Argument, typer.Option
DEFAULT_PRESET = "nano"  # as in config, which loads too much for --help

# what the clip shows and says
PromptOption = Annotated[
    str | None,
    Option("--prompt", help="Who and what is seen, in English; words in quotes are spoken.", metavar="TEXT"),
]
SpeechOption = Annotated[
    str | None,
    Option(
        "--speech",
        help="The words spoken: text, @FILE, or - for standard input.",
        metavar="TEXT",
        show_default=False,
    ),
]
VoiceOption = Annotated[
    Path | None, Option("--voice", help="A sound or video with the voice to speak in.", metavar="FILE")
]
VoiceTextOption = Annotated[
    str | None, Option("--voice-text", help="What is said in the --voice file.", metavar="TEXT")
]
LanguageOption = Annotated[
    str, Option("--language", help="Of the speech: auto, by its characters, or en or zh.", metavar="NAME")
]
FaceIndexOption = Annotated[
    int, Option("--face-index", help="Which face, 0 the largest.", metavar="N", min=0)
]
RequireFaceOption = Annotated[
    bool,
    Option("--require-face", help="Stop when no face is found, instead of taking the middle of the picture."),
]
DurationOption = Annotated[float | None, Option("--duration", help="Seconds to make.", metavar="SECONDS")]

# where it goes and how it is made
OutputOption = Annotated[
    Path | None,
    Option("--output", "-o", help="The file to write; by default a new name under outputs/.", metavar="FILE"),
]
OverwriteOption = Annotated[bool, Option("--overwrite", help="Replace the output file if it exists.")]
PresetOption = Annotated[
    str,
    Option(
        "--preset",
        envvar="UNIAVGEN_PRESET",
        help="Which model: a name from `uniavgen presets list`, or a YAML file.",
        metavar="NAME",
    ),
]
SeedOption = Annotated[
    int | None,
    Option("--seed", help="The same seed gives the same clip; random when not given.", min=0, metavar="N"),
]
StepsOption = Annotated[int | None, Option("--steps", help="Sampling steps: fewer are faster.", metavar="N")]
SizeOption = Annotated[
    str | None, Option("--size", help="Short side in pixels, or WIDTHxHEIGHT.", metavar="SIZE")
]
TakesOption = Annotated[
    int, Option("--takes", "-n", help="How many clips to make, each with the next seed.", min=1, metavar="N")
]
BestOfOption = Annotated[
    int,
    Option("--best-of", help="Make so many of each take, and keep the best by measure.", min=1, metavar="N"),
]
SetOption = Annotated[
    list[str] | None,
    Option("--set", help="Change any key of the preset; may be repeated.", metavar="KEY=VALUE"),
]
AttentionOption = Annotated[
    str | None, Option("--attention", help="Attention backend: auto, sdpa or xformers.", metavar="NAME")
]
LoraOption = Annotated[
    Path | None,
    Option("--lora", help="Adapters that `uniavgen train --lora` made for this preset.", metavar="FILE"),
]
PrivateOption = Annotated[
    bool,
    Option("--private", help="Leave the words and file names out of the clip's metadata."),
]
UnlimitedOption = Annotated[
    bool, Option("--unlimited", help="Take files of any size, length and number of channels.")
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object on standard output.")]
QuietOption = Annotated[bool, Option("--quiet", help="No progress and no summary, only the path.")]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every clip command is told besides its own options."""

    output: Path | None
    overwrite: bool
    preset: str
    seed: int | None
    steps: int | None
    size: str | None
    takes: int
    private: bool = False
    unlimited: bool = False
    lora: Path | None = None
    best_of: int = 1
    set: list[str] = field(default_factory=list)
    attention: str | None
    json: bool
    quiet: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Common":
        """Picks its own from a command's options, which are named as the fields."""
        picked = {name: options[name] for name in cls.__dataclass_fields__}
        return cls(**{**picked, "set": picked["set"] or []})

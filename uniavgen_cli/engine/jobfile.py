"""Job files as rows: YAML, JSONL and CSV, none of it believed yet. No torch.

YAML holds a list of jobs, or `defaults` and `jobs`; JSONL one job a line, a line {"defaults": {...}} before
them; CSV one job a row, an empty cell being not given. The columns of the released UniAVGen script's CSV
(its README, repository MCG-NJU/Sora2-mini) are read as well.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uniavgen_cli.engine.names import clean
from uniavgen_cli.engine.provenance import FILES
from uniavgen_cli.errors import InputError

MOST_BYTES = 16 * 2**20
MOST_JOBS = 100_000
MOST_DEPTH = 20

_RELEASED = {  # a column of the released script's CSV -> ours
    "data_id": "output",
    "ref_image_path": "face",
    "speech_content": "speech",
    "prompt": "prompt",
    "lang": "language",
    "ref_audio_path": "voice",
    "ref_speech_content": "voice_text",
    "video_path": "video",
    "audio_path": "sound",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job as it stands in the file: its number from 1, its line, its options over the file's defaults."""

    number: int
    line: int
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The jobs of a file, unchecked. Raises InputError when it can't be read as its ending says."""
    readers: dict[str, Callable[[str, Path], Iterator[Row]]] = {
        ".yaml": _yaml_rows,
        ".yml": _yaml_rows,
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"the job file {str(path)!r} doesn't end in {' '.join(readers)}", "rename it")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the job file {str(path)!r} is not UTF-8 text", "save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the job file {str(path)!r} can't be read: {reason}", "check its name") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"the job file {str(path)!r} is larger than {MOST_BYTES} bytes", "split it")
    rows = []
    for row in reader(text, path):
        rows.append(row)
        if len(rows) > MOST_JOBS:
            raise InputError(f"the job file {str(path)!r} has more than {MOST_JOBS} jobs", "split it")
    if not rows:
        raise InputError(f"the job file {str(path)!r} holds no jobs", "`uniavgen batch --help` shows how")
    return rows


class _Loader(yaml.SafeLoader):
    """Plain data only, no key twice, and no great depth, on which the scanner would spend minutes."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MOST_DEPTH:
            problem = f"brackets are {MOST_DEPTH} deep"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:  # of which YAML would drop the first
            problem = f"the key {twice[0][:40]!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def _yaml_rows(text: str, path: Path) -> Iterator[Row]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{str(path)!r} is no YAML{where}: {reason}", "see the line it names") from None
    except MemoryError:
        raise
    except Exception as error:  # what numbers, dates and depths that can't be read raise is not said anywhere
        raise InputError(
            f"{str(path)!r} can't be read as YAML ({type(error).__name__})", "put odd values in quotes"
        ) from None
    defaults: Any = {}
    if isinstance(document, dict):
        if extra := [key for key in document if key not in ("defaults", "jobs")]:
            raise InputError(
                f"{str(path)!r} has the key {str(extra[0])[:40]!r}", "it takes defaults and jobs"
            )
        defaults, document = document.get("defaults") or {}, document.get("jobs")
        assert node is not None
        node = next((value for key, value in node.value if key.value == "jobs"), node)
    if document is None:
        return
    if not isinstance(document, list) or not isinstance(defaults, dict):
        raise InputError(f"{str(path)!r} holds no list of jobs", "`uniavgen batch --help` shows how")
    # a list that is merged in from elsewhere has no line of its own
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node] * len(document)
    for number, (options, place) in enumerate(zip(document, nodes, strict=True), start=1):
        yield Row(number=number, line=place.start_mark.line + 1, options=options, defaults=defaults)


def _jsonl_rows(text: str, path: Path) -> Iterator[Row]:
    defaults: Any = {}
    number = 0
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            options = json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", type(error).__name__)
            raise InputError(
                f"line {line} of {str(path)!r} is no JSON: {reason}", "one object a line"
            ) from None
        if (
            isinstance(options, dict)
            and set(options) == {"defaults"}
            and isinstance(options["defaults"], dict)
        ):
            defaults = options["defaults"]
            continue
        number += 1
        yield Row(number=number, line=line, options=options, defaults=defaults)


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        if len(set(header)) < len(header):
            raise InputError(f"{str(path)!r} has two columns of one name", "name each once")
        reader.fieldnames = header
        released = "data_id" in header
        for number, cells in enumerate(reader, start=1):
            if None in cells:
                raise InputError(
                    f"line {reader.line_num} of {str(path)!r} has more cells than the header",
                    'put text with commas in "quotes"',
                )
            options: dict[str, Any] = {name: cell for name, cell in cells.items() if cell and cell.strip()}
            if released:
                options = _from_released(options)
            yield Row(number=number, line=reader.line_num, options=options, defaults={})
    except csv.Error as error:
        raise InputError(
            f"line {reader.line_num} of {str(path)!r} is no CSV: {error}", "mind its quotes"
        ) from None


def _from_released(cells: Mapping[str, str]) -> dict[str, Any]:
    """A row of the released script's CSV as ours: the files it names tell its task, whose others it drops."""
    options: dict[str, Any] = {_RELEASED.get(name, name): cell for name, cell in cells.items()}
    options["task"] = "dub" if "video" in options else "animate" if "sound" in options else "generate"
    if "output" in options:
        options["output"] = clean(options["output"]) + ".mp4"
    unused = {"dub": {"face"}, "animate": {"speech", "voice", "voice_text", "language"}, "generate": set()}
    for name in unused[options["task"]]:
        options.pop(name, None)
    for name in FILES:  # that script reads them from where it runs
        if name in options and Path(options[name]).exists():
            options[name] = str(Path(options[name]).absolute())
    return options

"""Who may import whom, read from the import statements; what `--help` loads and how long it takes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "uniavgen_cli"
HEAVY = {
    "torch", "torchaudio", "diffusers", "transformers", "huggingface_hub", "insightface", "onnxruntime",
    "xformers",
}  # fmt: skip
# From the foundations up: a room imports from its own floor and those below.
FLOORS = (
    {"errors", "shapes", "config", "runtime"},
    {"models"},
    {"diffusion", "codecs", "media", "data"},
    {"engine", "training", "evaluation"},
    {"commands"},
    {"cli", "__main__"},
)
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what runs when the file itself is imported: functions and TYPE_CHECKING left out."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        waiting.extend(ast.iter_child_nodes(node))


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    ours = {
        name.split(".")[1]
        for name in imports(ast.parse(path.read_text()))
        if name.startswith("uniavgen_cli.")
    }
    upward = {other for other in ours - {"__version__"} if floor_of(other) > floor_of(room)}
    assert not upward, f"{path.relative_to(PACKAGE)} imports from {upward}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_load_only_where_they_are_used(path: Path) -> None:
    room = room_of(path)
    loaded = {name.split(".")[0] for name in at_import(ast.parse(path.read_text()))}
    allowed = (
        {"torch"} if room in ("models", "diffusion", "codecs", "engine", "training", "evaluation") else set()
    )
    if room == "data" and path.stem == "cache":
        allowed = {"torch"}  # training only
    if path.name in ("request.py", "tasks.py", "provenance.py", "weights.py", "hub.py"):
        allowed = set()
    assert not (loaded & HEAVY) - allowed
    if room == "commands":
        assert not loaded & {"numpy", "cv2", "av"}


def test_models_need_torch_and_safetensors_only() -> None:
    outside = set()
    for path in (PACKAGE / "models").glob("*.py"):
        outside |= {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    outside -= set(sys.stdlib_module_names) | {"uniavgen_cli", "torch", "safetensors", "einops", "xformers"}
    assert not outside


def test_nothing_prints_below_the_command_line() -> None:
    for path in FILES:
        if path == PACKAGE / "commands" / "_output.py" or room_of(path) == "__main__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.exit", "exit"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["--version"], ["presets", "list"]]
)
def test_light_commands_load_no_torch_and_answer_quickly(arguments: list[str]) -> None:
    code = (
        "import sys, time; from uniavgen_cli.cli import main; main(sys.argv[1:]);"
        "print(time.process_time(), [m for m in ('torch', 'cv2', 'av', 'transformers') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    seconds, _, loaded = done.stderr.strip().rpartition("\n")[2].partition(" ")
    assert loaded == "[]"
    assert (
        float(seconds) < 1.0
    )  # of processor time, so that a busy machine changes nothing; 0.3 s when measured

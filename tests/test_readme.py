"""What the README says can be typed can be typed, and what it says is there is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from uniavgen_cli.cli import app, main
from uniavgen_cli.config import load_preset

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    (uniavgen .+)$", README, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    command = get_command(app)
    name = "uniavgen"
    while subcommands := getattr(command, "commands", None):
        name = words.pop(0)
        command = subcommands[name]
    command.make_context(name, words)  # raises for an option or argument that is not there
    if "--preset" in words:
        preset = load_preset(words[words.index("--preset") + 1])
        assert (preset.train is not None) == (name == "train")


QUICK = [line for line in LINES if line.split()[1] in ("presets", "weights") and "pull" not in line]


@pytest.mark.parametrize("line", QUICK)
def test_a_quick_command_of_the_readme_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_the_four_commands_and_make_stand_on_the_first_screen() -> None:
    screen = "\n".join(README.splitlines()[:30])
    for word in ("make demo", "make test", "pip install", "generate", "dub", "animate", "continue"):
        assert word in screen


def test_the_tree_is_the_package() -> None:
    tree = README.split("## Where things are")[1].split("\n## ")[0]
    listed, folder = set(), Path()
    for line in tree.splitlines():
        match = re.match(r"^    ( *)(\S+)", line)
        if not match:
            continue
        depth, name = len(match[1]) // 2, match[2]
        folder = Path(*folder.parts[:depth])
        if name.endswith("/"):
            folder /= name
        elif name.endswith(".py"):
            listed.add(str(folder / name))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "uniavgen_cli").rglob("*.py")}
    there = {path for path in there if not path.endswith(("__init__.py", "__main__.py"))}
    assert listed == there


def test_the_python_example_uses_what_the_engine_has() -> None:
    from uniavgen_cli.engine.engine import Engine

    example = README.split("```python\n")[1].split("```")[0]
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called - {"save"} and all(hasattr(Engine, name) for name in called - {"save"})


def test_the_readme_names_every_extra() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(project["optional-dependencies"])


def test_the_window_is_what_the_readme_says() -> None:
    nano = yaml.safe_load((ROOT / "presets" / "nano.yaml").read_text(encoding="utf-8"))["clip"]
    assert f"windows of {nano['max_frames'] / nano['fps']:.2f} s" in README

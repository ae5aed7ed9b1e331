"""The wheel carries the presets and nano's weights, and finds them from any directory."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES, MOST_BYTES_A_FILE = 36 * 2**20, 16 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("uniavgen-*.whl"))


def test_the_wheel_carries_presets_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    registry = ROOT / "weights" / "registry.yaml"
    for path in [registry, *ROOT.glob("presets/*.yaml"), *(ROOT / "weights" / "nano").rglob("*.*")]:
        assert f"uniavgen_cli/_{path.relative_to(ROOT).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "docs", "benchmarks")) for name in names)


def test_the_wheel_works_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """Unpacked where no source checkout is near, beside this environment's own dependencies."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from uniavgen_cli.cli import main;"
        "from uniavgen_cli.config import presets_dir, shipped_weights_dir;"
        "print(presets_dir(), shipped_weights_dir());"
        "sys.exit(main(['presets', 'show', 'nano-joint']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    places = done.stdout.splitlines()[0].split()
    assert places == [str(site / "uniavgen_cli" / name) for name in ("_presets", "_weights")]
    assert "num_blocks: 8" in done.stdout


def test_the_embedded_weights_keep_to_their_size() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "weights" / "nano").rglob("*") if path.is_file()]
    assert sum(sizes) <= MOST_BYTES
    assert max(sizes, default=0) <= MOST_BYTES_A_FILE


def test_the_command_is_the_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uniavgen_cli", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("uniavgen ")

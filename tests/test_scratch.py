"""Temporary files: gone when their owner is done, and with the next one's when it was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from uniavgen_cli.media.scratch import scratch_file, scratch_folder

OWNER = """
import sys, time
from pathlib import Path
from uniavgen_cli.media.scratch import scratch_file, scratch_folder
with scratch_file(Path(sys.argv[1])) as file, scratch_folder() as folder:
    file.write_bytes(b"half a clip")
    (folder / "sound.w64").write_bytes(b"half a sound")
    print(file, folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where files and where folders go."""
    outputs, temporary = tmp_path / "out", tmp_path / "tmp"
    outputs.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it was before is remembered there
    return outputs, temporary


def test_nothing_stays_when_the_block_is_left(places: tuple[Path, Path]) -> None:
    outputs, temporary = places
    with pytest.raises(ZeroDivisionError), scratch_file(outputs) as file, scratch_folder() as folder:
        assert file.parent == outputs and file.name.startswith(".") and file.suffix == ".part"
        assert folder.parent == temporary and not list(folder.iterdir())
        (folder / "sound.w64").touch()
        raise ZeroDivisionError
    assert not list(outputs.iterdir()) and not list(temporary.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(places: tuple[Path, Path]) -> None:
    outputs, temporary = places
    other = outputs / ".of-somebody-else.part"
    other.touch()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(outputs)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        file, folder = map(Path, owner.stdout.readline().split())
        with scratch_file(outputs), scratch_folder():
            assert file.read_bytes() == b"half a clip" and list(folder.iterdir())
    finally:
        owner.kill()
        owner.communicate()
    assert file.exists() and folder.exists()
    with scratch_file(outputs) as mine, scratch_folder():
        assert sorted(outputs.iterdir()) == sorted([mine, other])
        assert not folder.exists()
    assert list(outputs.iterdir()) == [other] and not list(temporary.iterdir())

"""A file that can't be used is found at once, without torch, and said in one line with what to do next."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from media_files import ffmpeg, make_sound, make_video, picture_source, quadrants
from PIL import Image

from uniavgen_cli.errors import InputError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.image import is_image, read_image
from uniavgen_cli.media.probe import MediaInfo, probe, require_image, require_sound, require_video
from uniavgen_cli.media.video import read_frames

H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast")


def refusal(check: Callable[[Path], object], path: Path) -> str:
    """The one line with which `check` refuses a file; it comes fast, names the file and says what to do."""
    begin = time.process_time()
    with pytest.raises(InputError) as caught:
        check(path)
    assert time.process_time() - begin < 0.3
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400 + len(str(path))
    assert repr(str(path)) in line
    assert caught.value.hint and caught.value.exit_code == 3
    return line


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_video(folder / "video.mp4", seconds=4, encode=H264)
    make_video(folder / "faststart.mp4", seconds=4, encode=(*H264, "-movflags", "+faststart"))
    make_video(folder / "video.mkv", seconds=4, encode=H264)
    make_video(folder / "video.avi", seconds=4, encode=("-c:v", "mpeg4"))
    make_video(folder / "mute.mp4", sound=False)
    for name in ("sound.wav", "sound.mp3", "sound.flac", "sound.m4a"):
        make_sound(folder / name, seconds=4)
    for name in ("picture.jpg", "picture.png", "picture.webp"):
        noisy = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noisy).save(folder / name)
    return folder


def test_good_files_pass_their_checks(good: Path) -> None:
    assert require_video(good / "mute.mp4").video is not None
    assert require_sound(good / "sound.mp3").audio is not None
    assert require_sound(good / "video.mp4").duration_s == pytest.approx(4, abs=0.05)
    assert require_image(good / "picture.webp").image is not None


@pytest.mark.parametrize("check", [probe, require_video, require_sound, require_image])
def test_what_is_no_file(tmp_path: Path, check: Callable[[Path], MediaInfo]) -> None:
    assert "no file" in refusal(check, tmp_path / "missing.mp4")
    assert "is an address" in refusal(check, Path("https://example.org/a.mp4"))
    assert "is a folder" in refusal(check, tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert "empty (0 bytes)" in refusal(check, tmp_path / "empty.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "not a regular file" in refusal(check, tmp_path / "pipe.mp4")
    assert "can't be opened" in refusal(check, tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is a text\n" * 50,
        bytes(4000),
        np.random.default_rng(0).bytes(20_000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nvideo.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile video.mp4\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["text", "zeros", "random", "hls", "concat", "dash", "svg", "postscript"],
)
def test_what_is_no_media(good: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copy(good / "video.mp4", tmp_path / "video.mp4")  # what a playlist would lead to
    for suffix in (".mp4", ".m3u8", ".txt"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        assert "not media that can be read" in refusal(probe, path)
        assert not is_image(path)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
@pytest.mark.parametrize(
    "name",
    [
        "video.mp4",
        "faststart.mp4",
        "video.mkv",
        "video.avi",
        "sound.wav",
        "sound.mp3",
        "sound.flac",
        "sound.m4a",
    ],
)
def test_a_file_that_is_cut_off(good: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (good / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    line = refusal(require_sound, path)
    assert "cut off" in line and "again, whole" in line


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png", "picture.webp"])
def test_a_picture_that_is_cut_off(good: Path, tmp_path: Path, name: str) -> None:
    data = (good / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) // 2])
    assert "cut off" in refusal(require_image, path)


def test_a_stream_that_is_missing(good: Path) -> None:
    assert "no sound stream" in refusal(require_sound, good / "mute.mp4")
    assert "no video stream" in refusal(require_video, good / "sound.mp3")
    assert "is a picture (JPEG)" in refusal(require_video, good / "picture.jpg")
    assert "is a picture (PNG)" in refusal(require_sound, good / "picture.png")
    assert "is a video, not a picture" in refusal(require_image, good / "video.mp4")
    assert "is sound, not a picture" in refusal(require_image, good / "sound.wav")


def test_only_subtitles(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    ffmpeg("-i", tmp_path / "a.srt", tmp_path / "a.mkv")
    assert "neither picture nor sound" in refusal(probe, tmp_path / "a.mkv")


def test_a_picture_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (11_000, 11_000)).save(path)
    assert "too large" in refusal(read_image, path) and "too large" in refusal(require_image, path)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"bad\xff.mp4")
    path.write_bytes(b"x" * 100)
    assert "not UTF-8" in refusal(probe, path)


def test_addresses_inside_a_file_are_not_followed(good: Path, tmp_path: Path) -> None:
    shutil.copy(good / "video.mp4", tmp_path / "secret.mp4")
    for name in ("concat:secret.mp4|secret.mp4", "subfile,,start,0,end,0,,:secret.mp4"):
        assert "no file" in refusal(probe, Path(name))
    assert "is an address; download it" in refusal(probe, Path("https://example.org/a.mp4"))


def test_damage_inside_a_video_does_not_stop_the_reader(good: Path, tmp_path: Path) -> None:
    data = bytearray((good / "faststart.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path = tmp_path / "scratched.mp4"
    path.write_bytes(data)
    frames = read_frames(path, 16, 32, 32)
    assert 50 <= len(frames) <= 65 and len(read_audio(path)) > 80_000


def test_a_still_as_a_video_stream_is_refused_as_cover(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "cover.png")
    ffmpeg(*picture_source(), tmp_path / "a.mp4")
    make_sound(tmp_path / "a.m4a")
    mapped = ("-i", tmp_path / "a.m4a", "-i", tmp_path / "cover.png", "-map", 0, "-map", 1, "-c", "copy")
    ffmpeg(*mapped, "-disposition:v:0", "attached_pic", tmp_path / "cover.m4a")
    assert "no video stream" in refusal(require_video, tmp_path / "cover.m4a")


def test_the_checks_are_quick_and_need_no_torch(good: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from uniavgen_cli.media.probe import require_image, require_sound, require_video
folder = Path({str(good)!r})
begin = time.process_time()
require_video(folder / "video.mp4"), require_sound(folder / "sound.mp3")
require_image(folder / "picture.jpg")
assert time.process_time() - begin < 0.3, time.process_time() - begin
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0

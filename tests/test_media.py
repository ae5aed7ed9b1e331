"""Reading whatever people have, writing clips that are whole, aligned and say how they were made."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_files import (
    best_shift,
    corners,
    ffmpeg,
    make_flat_video,
    make_sound,
    make_video,
    noise,
    picture_source,
    quadrants,
    save_turned,
)
from PIL import Image

from uniavgen_cli.errors import OutputError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.ffmpeg import find_ffmpeg
from uniavgen_cli.media.image import is_image, read_image
from uniavgen_cli.media.output import check_output
from uniavgen_cli.media.probe import probe
from uniavgen_cli.media.video import (
    dub_container,
    iter_frames,
    read_frames,
    read_metadata,
    write_animated,
    write_clip,
    write_continued,
    write_dub,
)

FPS, RATE = 16, 24_000
METADATA = {
    "comment": json.dumps(
        {"speech": "líneas\n漢字 \"quoted\" 'single' = ; # \\", "steps": ["x" * 100] * 100}
    ),
    "title": "a, b; c=d",
    "uniavgen": "0.1",
}


def moving_frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A grey ramp that slides: smooth, and every frame another."""
    columns = np.arange(width)[None, None, :] + 4 * np.arange(count)[:, None, None]
    ramp = 128 + 100 * np.sin(columns / 20) * np.cos(np.arange(height)[None, :, None] / 30)
    return np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=3)


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# ---- ffmpeg ------------------------------------------------------------------------------------------------


def test_ffmpeg_is_taken_from_the_environment_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path, chosen = tmp_path / "bin" / "ffmpeg", tmp_path / "mine"
    on_path.parent.mkdir()
    for program in (on_path, chosen):
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv("UNIAVGEN_FFMPEG", raising=False)
    assert find_ffmpeg() == str(on_path)
    monkeypatch.setenv("UNIAVGEN_FFMPEG", str(chosen))
    assert find_ffmpeg() == str(chosen)
    monkeypatch.delenv("UNIAVGEN_FFMPEG")
    monkeypatch.setenv("PATH", "")
    assert "imageio" in find_ffmpeg()


# ---- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_upright(tmp_path: Path, orientation: int) -> None:
    path = save_turned(tmp_path / "turned.jpg", orientation)
    picture, info = read_image(path), probe(path).image
    seen = {  # where EXIF says the stored picture's corners belong
        1: ["red", "green", "white", "blue"],
        2: ["green", "red", "blue", "white"],
        3: ["white", "blue", "red", "green"],
        4: ["blue", "white", "green", "red"],
        5: ["red", "blue", "white", "green"],
        6: ["blue", "red", "green", "white"],
        7: ["white", "green", "red", "blue"],
        8: ["green", "white", "blue", "red"],
    }
    assert corners(picture) == seen[orientation]
    assert info is not None and picture.shape == (info.height, info.width, 3)


def test_pictures_of_every_kind_become_the_same_rgb(tmp_path: Path) -> None:
    truth = quadrants()
    image = Image.fromarray(truth)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "plain.webp", lossless=True)
    image.quantize(8).save(tmp_path / "palette.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.save(tmp_path / "plain.bmp")
    image.save(tmp_path / "plain.tiff")
    later = Image.fromarray(255 - truth)
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[later, later], duration=100)
    for path in sorted(tmp_path.iterdir()):
        picture = read_image(path)
        assert picture.dtype == np.uint8 and picture.shape == truth.shape, path
        assert corners(picture) == ["red", "green", "white", "blue"], path
        assert is_image(path) and probe(path).video is None, path


def test_see_through_parts_become_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = 255, 0, 0, 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(rgba).quantize(4).save(tmp_path / "palette_alpha.png")
    for name in ("alpha.png", "palette_alpha.png"):
        picture = read_image(tmp_path / name)
        assert picture[0, 0].tolist() == [255, 255, 255] and picture[0, 7].tolist() == [255, 0, 0], name


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    picture = read_image(tmp_path / "deep.png")
    assert picture[0, 0, 0] == 0 and picture[0, -1, 0] == 255
    assert abs(int(picture[0, 32, 0]) - 130) <= 1


# ---- reading video and sound -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encode", "codec"),
    [
        ("a.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-c:a", "aac"), "h264"),
        ("a.webm", ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libvorbis"), "vp8"),
        ("a.mkv", ("-c:v", "ffv1", "-c:a", "flac"), "ffv1"),
        ("a.avi", ("-c:v", "mpeg4", "-c:a", "mp3"), "mpeg4"),
        ("a.mov", ("-c:v", "prores_ks", "-c:a", "pcm_s24le"), "prores"),
        ("a.ts", ("-c:v", "libx264", "-c:a", "aac"), "h264"),
    ],
)
def test_common_containers_are_read(tmp_path: Path, name: str, encode: tuple[str, ...], codec: str) -> None:
    path = make_video(tmp_path / name, size="162x122", seconds=2, encode=encode)
    info = probe(path)
    assert info.video is not None and info.audio is not None
    assert (info.video.codec, info.video.width, info.video.height) == (codec, 162, 122)
    assert info.duration_s == pytest.approx(2, abs=0.08)
    assert info.video.fps == pytest.approx(25, abs=0.1)
    frames = read_frames(path, FPS, 128, 160)
    assert frames.shape[1:] == (128, 160, 3) and 32 <= len(frames) <= 33
    assert frames.std() > 40
    samples = read_audio(path)
    assert samples.dtype == np.float32 and len(samples) / RATE == pytest.approx(2, abs=0.08)
    assert np.sqrt(np.mean(samples[4000:40000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_frames_are_picked_by_their_times(tmp_path: Path) -> None:
    levels = [20 + 4 * k for k in range(50)]
    path = make_flat_video(tmp_path / "flat.mp4", levels, rate=25)
    for fps, start_s in ((25, 0.0), (16, 0.0), (16, 0.5), (8, 1.0)):
        frames = read_frames(path, fps, 64, 64, start_s=start_s, num_frames=6)
        assert len(frames) == 6
        for k, frame in enumerate(frames):
            shown_s = (float(frame.mean()) - 20) / 4 / 25
            assert abs(shown_s - (start_s + k / fps)) <= 0.5 / fps + 0.5 / 25 + 0.01, (fps, start_s, k)


def test_a_varying_rate_keeps_its_times(tmp_path: Path) -> None:
    flat = make_flat_video(tmp_path / "flat.mp4", [20 + 4 * k for k in range(50)], rate=25)
    varying = tmp_path / "varying.mp4"
    keep = "select='lt(n,10)+gt(n,29)'"  # nothing from 0.4 s to 1.2 s: the last frame stands
    ffmpeg("-i", flat, "-vf", keep, "-fps_mode", "vfr", "-c:v", "libx264", "-qp", "0", varying)
    shown = [round((float(frame.mean()) - 20) / 4) for frame in read_frames(varying, 25, 64, 64)]
    assert shown[:10] == list(range(10)) and shown[12:29] == [9] * 17 and shown[31:40] == list(range(31, 40))
    later = read_frames(varying, 25, 64, 64, start_s=0.8, num_frames=1)
    assert round((float(later[0].mean()) - 20) / 4) == 9


def test_rotation_and_oblong_pixels_count_in_the_size(tmp_path: Path) -> None:
    Image.fromarray(quadrants(120, 160)).save(tmp_path / "q.png")
    still, turned, oblong = tmp_path / "still.mp4", tmp_path / "turned.mp4", tmp_path / "oblong.mp4"
    ffmpeg("-loop", 1, "-i", tmp_path / "q.png", "-t", 0.5, "-pix_fmt", "yuv420p", still)
    ffmpeg("-display_rotation:v:0", 90, "-i", still, "-c", "copy", turned)
    ffmpeg("-i", still, "-vf", "setsar=3/2", oblong)
    video = probe(turned).video
    assert video is not None and (video.width, video.height) == (120, 160)
    assert corners(read_frames(turned, FPS, 160, 120)[0]) == ["green", "white", "blue", "red"]
    video = probe(oblong).video
    assert video is not None and (video.width, video.height) == (240, 120)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "plain.mp3")
    Image.fromarray(quadrants()).save(tmp_path / "cover.png")
    cover = tmp_path / "cover.mp3"
    inputs = ("-i", sound, "-i", tmp_path / "cover.png", "-map", 0, "-map", 1)
    ffmpeg(*inputs, "-c", "copy", "-disposition:v", "attached_pic", cover)
    info = probe(cover)
    assert info.video is None and info.audio is not None and info.audio.codec == "mp3"


def test_channels_are_mixed_without_clipping_or_gain(tmp_path: Path) -> None:
    tone = "sin(2*PI*300*t)*0.9"
    both = make_sound(tmp_path / "both.wav", rate=8000, expression=f"{tone}|{tone}")
    left = make_sound(tmp_path / "left.wav", rate=48000, expression=f"{tone}|0")
    round_about = make_sound(tmp_path / "surround.wav", expression="|".join([tone] * 6))
    peaks = [float(np.abs(read_audio(path)[2000:20000]).max()) for path in (both, left, round_about)]
    assert peaks[0] == pytest.approx(0.9, abs=0.02)
    assert peaks[1] == pytest.approx(0.45, abs=0.02)
    assert 0.5 < peaks[2] <= 1.0


def test_sound_that_begins_late_keeps_its_place(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", noise(1.0, RATE), RATE)
    late = tmp_path / "late.mkv"
    shifted = ("-itsoffset", 0.5, "-i", tmp_path / "noise.wav", "-map", "0:v", "-map", "1:a")
    ffmpeg(*picture_source(seconds=2), *shifted, "-c:a", "pcm_s16le", late)
    samples = read_audio(late)
    assert best_shift(noise(1.0, RATE), samples) == pytest.approx(RATE // 2, abs=24)
    assert np.abs(samples[: RATE // 2 - 100]).max() == 0
    assert np.array_equal(read_audio(late, start_s=0.75, duration_s=0.25), samples[18_000:24_000])


@pytest.mark.parametrize(
    "name", ["a b'c\"d.mp4", "-dash.mp4", "ü漢.mp4", "%03d:[x],y.mp4", "new\nline.mp4", "http:a.mp4"]
)
def test_any_name_can_be_read_and_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(name, moving_frames(5), noise(0.3, RATE), FPS, RATE)
    assert probe(name).video is not None
    assert len(read_frames(name, FPS, 32, 32)) == 5
    assert len(read_audio(name)) == 7500
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("seconds", [1.9, 2.4])
def test_a_clip_is_whole_and_aligned(tmp_path: Path, suffix: str, seconds: float) -> None:
    frames, samples = moving_frames(33), noise(seconds, RATE)
    path = write_clip(tmp_path / f"clip{suffix}", frames, samples, FPS, RATE, METADATA)
    info = probe(path)
    assert info.video is not None and info.audio is not None
    assert (info.video.codec, info.video.pix_fmt, info.video.num_frames) == ("h264", "yuv420p", 33)
    assert info.video.colorspace == "bt709"
    assert info.audio.codec == ("flac" if suffix == ".mkv" else "aac")
    assert info.video.duration_s == pytest.approx(33 / FPS, abs=0.001)
    assert info.audio.duration_s == pytest.approx(33 / FPS, abs=0.002)
    assert psnr(read_frames(path, FPS, 64, 96), frames) > 38
    heard = read_audio(path)
    assert len(heard) == round(33 / FPS * RATE)
    assert best_shift(samples, heard) == 0
    assert read_metadata(path).items() >= METADATA.items()


def test_an_mp4_has_its_index_first(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", moving_frames(5), noise(0.3, RATE), FPS, RATE)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_frames_may_come_one_by_one(tmp_path: Path) -> None:
    frames = moving_frames(9)
    path = write_clip(tmp_path / "clip.mp4", iter(frames), noise(0.5, RATE), FPS, RATE, num_frames=9)
    assert psnr(np.stack(list(iter_frames(path, FPS, 64, 96))), frames) > 38
    with pytest.raises(ValueError, match="9 frames came, 10 were said"):
        write_clip(tmp_path / "short.mp4", iter(frames), noise(0.5, RATE), FPS, RATE, num_frames=10)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_same_clip_is_written_twice_alike(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4", "a.mkv", "b.mkv")]
    for path in paths:
        write_clip(path, moving_frames(9), noise(0.5, RATE), FPS, RATE, {"comment": "same"})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[2].read_bytes() == paths[3].read_bytes()


def test_existing_files_stay_unless_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        write_clip(path, moving_frames(5), noise(0.3, RATE), FPS, RATE)
    assert path.read_bytes() == b"precious"
    write_clip(path, moving_frames(5), noise(0.3, RATE), FPS, RATE, overwrite=True)
    assert probe(path).video is not None
    assert list(tmp_path.iterdir()) == [path]


def test_a_clip_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "ffmpeg"
    broken.parent.mkdir()
    # writes half a file, as a full disk does
    target = 'for a; do case $a in file:*) last=$a;; esac; done; echo half > "${last#file:}"'
    script = f'{target}; echo "No space left on device" >&2; exit 1'
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("UNIAVGEN_FFMPEG", str(broken))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputError, match="No space left on device; make room"):
        write_clip(out / "clip.mp4", moving_frames(5), noise(0.3, RATE), FPS, RATE)
    assert list(out.iterdir()) == []


def test_outputs_are_checked_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, said in (
        ("clip.gif", "end in"),
        ("clip", "end in"),
        ("missing/clip.mp4", "doesn't exist; mkdir -p"),
        ("file/clip.mp4", "is not a folder"),
        ("folder.mp4", "is a folder"),
        (f"{'x' * 300}.mp4", "File name too long"),
    ):
        with pytest.raises(OutputError, match=said) as caught:
            check_output(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert check_output(tmp_path / "clip.mp4") == tmp_path / "clip.mp4"


@pytest.mark.parametrize(
    ("name", "encode", "suffix"),
    [
        ("a.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"), ".mp4"),
        ("a.mkv", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-c:a", "libopus"), ".mp4"),
        ("a.webm", ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libvorbis"), ".webm"),
        ("a.avi", ("-c:v", "mjpeg", "-c:a", "mp3"), ".mp4"),
        ("a.ogv", ("-c:v", "libtheora", "-c:a", "libvorbis"), ".mkv"),
    ],
)
def test_a_dub_keeps_the_video_packets(
    tmp_path: Path, name: str, encode: tuple[str, ...], suffix: str
) -> None:
    source = make_video(tmp_path / name, seconds=2, encode=encode)
    assert dub_container(source) == suffix
    samples = noise(1.5, RATE)
    path = write_dub(tmp_path / f"dub{suffix}", source, samples, RATE, METADATA)
    assert packets(path, "video") == packets(source, "video")
    before, after = probe(source).video, probe(path)
    assert before is not None and after.video is not None and after.audio is not None
    assert after.video.duration_s == pytest.approx(before.duration_s, abs=0.01)
    assert after.audio.duration_s == pytest.approx(before.duration_s, abs=0.01)
    heard = read_audio(path)
    assert best_shift(samples, heard) == 0
    assert np.abs(heard[38_000:46_000]).max() < 0.01  # the old tone is gone
    assert read_metadata(path).items() >= METADATA.items()


def test_a_dub_into_a_container_that_cannot_hold_it_says_which_can(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.webm", encode=("-c:v", "libvpx", "-deadline", "realtime"))
    with pytest.raises(OutputError, match=r"can't hold vp8 video unchanged; end it in \.webm"):
        write_dub(tmp_path / "dub.mp4", source, noise(1, RATE), RATE)


def test_a_dub_keeps_the_rotation(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4")
    ffmpeg("-display_rotation:v:0", 90, "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    video = probe(write_dub(tmp_path / "dub.mp4", tmp_path / "turned.mp4", noise(1, RATE), RATE)).video
    assert video is not None and (video.width, video.height, video.rotation) == (120, 160, 90)


@pytest.mark.parametrize("name", ["a.m4a", "a.mp3", "a.opus", "a.flac", "a.ac3"])
def test_animate_copies_sound_that_an_mp4_can_hold(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "n.wav", noise(2, 44_100), 44_100)
    ffmpeg("-i", tmp_path / "n.wav", tmp_path / name)
    path = write_animated(tmp_path / "clip.mp4", moving_frames(33), tmp_path / name, FPS, METADATA)
    assert packets(path, "audio") == packets(tmp_path / name, "audio")
    assert best_shift(read_audio(tmp_path / name), read_audio(path)) == 0
    assert read_metadata(path).items() >= METADATA.items()


def test_animate_encodes_what_an_mp4_cannot_hold_and_an_mkv_loses_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "n.wav", noise(2, 44_100), 44_100, subtype="PCM_16")
    sound = read_audio(tmp_path / "n.wav", 44_100)
    mp4 = write_animated(tmp_path / "clip.mp4", moving_frames(33), tmp_path / "n.wav", FPS)
    mkv = write_animated(tmp_path / "clip.mkv", moving_frames(33), tmp_path / "n.wav", FPS)
    encoded, kept = probe(mp4).audio, probe(mkv).audio
    assert encoded is not None and encoded.codec == "aac" and kept is not None and kept.codec == "pcm_s16le"
    assert best_shift(sound, read_audio(mp4, 44_100)) == 0
    assert np.array_equal(read_audio(mkv, 44_100), sound)


@pytest.mark.parametrize("rate", ["25", "30000/1001"])
def test_a_continued_clip_keeps_what_was_given(tmp_path: Path, rate: str) -> None:
    given, silent = tmp_path / "given.mp4", tmp_path / "silent.mp4"
    encode = ("-c:v", "libx264", "-crf", 20, "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=322x242:rate={rate}:duration=2", *encode, silent)
    soundfile.write(tmp_path / "n.wav", np.stack([noise(2, 44_100), noise(2, 44_100, seed=1)], 1), 44_100)
    ffmpeg("-i", silent, "-i", tmp_path / "n.wav", "-c:v", "copy", "-c:a", "aac", "-b:a", "256k", given)
    frames, samples = np.full((17, 64, 64, 3), (200, 60, 30), np.uint8), noise(17 / FPS, RATE, seed=2)
    path = write_continued(tmp_path / "more.mp4", given, frames, samples, FPS, RATE, METADATA)
    before, after = probe(given), probe(path)
    assert before.video is not None and after.video is not None and after.audio is not None
    assert (after.video.width, after.video.height) == (322, 242)
    assert after.video.fps == pytest.approx(before.video.fps)
    assert after.video.num_frames == before.video.num_frames + round(17 / FPS * before.video.fps)
    assert (after.audio.sample_rate, after.audio.channels) == (44_100, 2)
    assert after.audio.duration_s == pytest.approx(after.video.duration_s, abs=0.001)
    count = before.video.num_frames
    old = [read_frames(file, before.video.fps, 242, 322, num_frames=count) for file in (given, path)]
    assert min(psnr(one, other) for one, other in zip(*old, strict=True)) > 45
    new = read_frames(path, before.video.fps, 242, 322, start_s=(count + 2) / before.video.fps)
    assert np.abs(new.mean((0, 1, 2)) - (200, 60, 30)).max() < 4
    heard = read_audio(path, 44_100)
    assert best_shift(read_audio(given, 44_100), heard[:88_200]) == 0
    begin = round(before.video.duration_s * RATE)
    assert abs(best_shift(samples, read_audio(path)[begin:])) <= 1


def test_a_silent_clip_is_continued_after_silence(tmp_path: Path) -> None:
    given = make_video(tmp_path / "given.mp4", sound=False)
    frames, samples = moving_frames(8), noise(0.5, RATE)
    path = write_continued(tmp_path / "more.mp4", given, frames, samples, FPS, RATE)
    heard = read_audio(path)
    assert len(heard) == pytest.approx(1.5 * RATE, abs=RATE / 25)
    assert np.abs(heard[: RATE - 2000]).max() < 0.01
    assert best_shift(samples, heard[RATE:]) == 0


def test_media_are_read_without_torch(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    code = (
        "import sys; from uniavgen_cli.media import audio, face, image, video\n"
        f"video.read_frames({str(path)!r}, 16, 32, 32); audio.read_audio({str(path)!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0

"""Files in every shape that people have, made with the real ffmpeg, and what comes out of each."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_files import corners, ffmpeg, make_sound, make_video, noise, quadrants, sound_source
from PIL import Image, ImageCms

from uniavgen_cli.config import load_preset
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.errors import InputError, OutputError
from uniavgen_cli.media import limits
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.image import read_image
from uniavgen_cli.media.probe import probe, require_image, require_sound, require_video
from uniavgen_cli.media.readers import is_silent, spoken_part
from uniavgen_cli.media.video import read_frames, read_metadata, write_animated, write_clip, write_dub

RATE = 24_000
LOSSLESS = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv420p")
THINNED = ("-vf", "select='not(mod(n,3))+lt(n,20)'", "-fps_mode", "vfr", *LOSSLESS)
INTERLACED = ("-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ilme+ildct", "-field_order", "tt")


def brightening(rate: str, seconds: float = 2, size: str = "64x64") -> list[str]:
    """A grey picture of 20 + 100 t at t seconds, as an input."""
    source = (
        f"nullsrc=size={size}:rate={rate}:duration={seconds},format=yuv420p,geq=lum='20+100*T':cb=128:cr=128"
    )
    return ["-f", "lavfi", "-i", source]


def shown_s(frame: np.ndarray) -> float:
    """The time at which `brightening` shows a frame; its grey stands in the studio range 16..235."""
    return (float(frame.mean()) * 219 / 255 + 16 - 20) / 100


VIDEOS = {  # what ffmpeg is told -> frames a second as probed, and how far a frame's time may be off
    "23.976": (("24000/1001", LOSSLESS), 23.976, 1 / 23),
    "24": (("24", LOSSLESS), 24, 1 / 24),
    "25": (("25", LOSSLESS), 25, 1 / 25),
    "29.97": (("30000/1001", LOSSLESS), 29.97, 1 / 29),
    "30": (("30", LOSSLESS), 30, 1 / 30),
    "50": (("50", LOSSLESS), 50, 1 / 50),
    "59.94": (("60000/1001", LOSSLESS), 59.94, 1 / 59),
    "60": (("60", LOSSLESS), 60, 1 / 60),
    "120": (("120", LOSSLESS), 120, 1 / 120),
    "varying": (("30", THINNED), None, 1 / 10),
    "odd sizes": (("25", ("-vf", "scale=61:47", "-c:v", "libx264", "-pix_fmt", "yuv444p")), 25, 1 / 25),
    "10 bit": (("25", ("-c:v", "libx264", "-pix_fmt", "yuv420p10le")), 25, 1 / 25),
    "12 bit": (("25", ("-c:v", "ffv1", "-pix_fmt", "yuv422p12le")), 25, 1 / 25),
    "interlaced": (("25", INTERLACED), 25, 1 / 20),
    "alpha": (("25", ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le")), 25, 1 / 25),
    "grey": (("25", ("-c:v", "ffv1", "-pix_fmt", "gray")), 25, 1 / 25),
    "full range": (("25", ("-vf", "scale=out_range=full", "-c:v", "mjpeg", "-q:v", "2")), 25, 1 / 20),
    "tiny": (("25", ("-vf", "scale=16:16", *LOSSLESS)), 25, 1 / 25),
    "large": (("5", ("-vf", "scale=4096:2304", "-c:v", "mpeg4", "-q:v", "3")), 5, 1 / 5),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_a_videos_frames_come_at_their_times(name: str, tmp_path: Path) -> None:
    (rate, encode), fps, within = VIDEOS[name]
    path = tmp_path / "v.mkv"
    ffmpeg(*brightening(rate), *encode, path)
    video = require_video(path).video
    assert video is not None
    if fps is not None:
        assert video.fps == pytest.approx(fps, abs=0.02)
    assert video.duration_s == pytest.approx(2, abs=0.11)
    frames = read_frames(path, 16, 48, 64)
    assert frames.shape[1:] == (48, 64, 3) and abs(len(frames) - 32) <= 1
    offs = [abs(shown_s(frame) - k / 16) for k, frame in enumerate(frames[:30])]
    assert max(offs) <= within + 0.5 / 16 + 0.02, offs
    assert require_video(path).audio is None
    with pytest.raises(InputError, match="no sound stream"):
        read_audio(path)


def test_a_high_dynamic_range_keeps_its_order_of_greys(tmp_path: Path) -> None:
    colours = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc")
    path = tmp_path / "hdr.mp4"
    encode = ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")
    ffmpeg(*brightening("25"), *encode, *colours, path)
    video = require_video(path).video
    assert video is not None and (video.pix_fmt, video.colorspace) == ("yuv420p10le", "bt2020nc")
    greys = [float(frame.mean()) for frame in read_frames(path, 16, 64, 64)]
    assert len(greys) == 32 and all(
        later > earlier - 1 for earlier, later in zip(greys, greys[1:], strict=False)
    )
    assert greys[-1] - greys[0] > 150


@pytest.mark.parametrize(
    ("degrees", "seen"),
    [
        (0, ["red", "green", "white", "blue"]),
        (90, ["green", "white", "blue", "red"]),
        (180, ["white", "blue", "red", "green"]),
        (270, ["blue", "red", "green", "white"]),
    ],
)
def test_a_turned_video_is_read_upright(degrees: int, seen: list[str], tmp_path: Path) -> None:
    Image.fromarray(quadrants(120, 160)).save(tmp_path / "q.png")
    still, path = tmp_path / "still.mp4", tmp_path / "turned.mp4"
    ffmpeg("-loop", 1, "-i", tmp_path / "q.png", "-t", 0.5, "-pix_fmt", "yuv420p", still)
    ffmpeg("-display_rotation:v:0", degrees, "-i", still, "-c", "copy", path)
    video = require_video(path).video
    assert video is not None
    size = (120, 160) if degrees % 180 else (160, 120)
    assert (video.width, video.height) == size and video.rotation == degrees % 360
    assert corners(read_frames(path, 16, size[1], size[0])[0]) == seen


def test_a_cover_beside_a_moving_picture_is_not_taken_for_it(tmp_path: Path) -> None:
    Image.fromarray(quadrants(120, 160)).save(tmp_path / "q.png")
    plain = make_video(tmp_path / "plain.mp4")
    cover = tmp_path / "q.png"
    inputs = (
        "-i",
        cover,
        "-i",
        plain,
        "-map",
        0,
        "-map",
        1,
        "-c",
        "copy",
        "-disposition:v:0",
        "attached_pic",
    )
    attached = ("-i", plain, "-c", "copy", "-attach", cover, "-metadata:s:t", "mimetype=image/png")
    for suffix, arguments in ((".mp4", inputs), (".mkv", attached)):
        path, made = tmp_path / f"cover{suffix}", tmp_path / f"dub{suffix}"
        ffmpeg(*arguments, path)
        assert require_video(path).video is not None
        assert np.array_equal(read_frames(path, 16, 64, 64), read_frames(plain, 16, 64, 64))
        write_dub(made, path, noise(1, RATE), RATE)
        with av.open(str(made)) as container:
            assert [stream.codec_context.name for stream in container.streams.video] == ["h264"]


def test_of_several_sounds_the_first_counts_and_is_kept_alone(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    low, high = (sound_source(expression=f"sin(2*PI*{pitch}*t)/2") for pitch in (300, 3000))
    ffmpeg(*low, *high, "-map", 0, "-map", 1, "-c:a:0", "aac", "-c:a:1", "pcm_s16le", path)
    spectrum = np.abs(np.fft.rfft(read_audio(path)[:RATE]))
    assert abs(int(spectrum.argmax()) - 300) < 5
    made = write_animated(tmp_path / "a.mp4", np.zeros((16, 64, 64, 3), np.uint8), path, 16)
    with av.open(str(made)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"]


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_sound_of_any_rate(rate: int, tmp_path: Path) -> None:
    path = make_sound(tmp_path / "s.wav", rate=rate)
    audio = require_sound(path).audio
    assert audio is not None and audio.sample_rate == rate
    samples = read_audio(path)
    assert len(samples) == pytest.approx(RATE, abs=3)
    assert np.sqrt(np.mean(samples[2000:-2000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    assert abs(int(np.abs(np.fft.rfft(samples[:RATE])).argmax()) - 440) <= 1


LAYOUTS = ["mono", "stereo", "2.1", "quad", "5.0", "5.1", "6.1", "7.1"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_of_any_layout_is_mixed_and_never_clips(layout: str, tmp_path: Path) -> None:
    channels = {"mono": 1, "stereo": 2, "2.1": 3, "quad": 4, "5.0": 5, "5.1": 6, "6.1": 7, "7.1": 8}[layout]
    tone = "|".join(["sin(2*PI*300*t)*0.95"] * channels)
    path = tmp_path / "s.wav"
    ffmpeg("-f", "lavfi", "-i", f"aevalsrc='{tone}':s=48000:d=1:c={layout}", "-c:a", "pcm_s24le", path)
    audio = require_sound(path).audio
    assert audio is not None and audio.channels == channels
    samples = read_audio(path)
    assert 0.4 < np.abs(samples).max() <= 1.0
    assert abs(int(np.abs(np.fft.rfft(samples[:RATE])).argmax()) - 300) <= 1


def test_what_lasts_no_time_is_refused(tmp_path: Path) -> None:
    source = make_video(tmp_path / "v.mp4")
    for name in ("zero.mp4", "zero.wav", "zero.mp3", "zero.mkv"):
        ffmpeg("-i", source, "-t", 0, tmp_path / name)
        with pytest.raises(InputError):
            probe(tmp_path / name)


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4").rename(tmp_path / "v.wav")
    make_sound(tmp_path / "s.flac").rename(tmp_path / "s.mp4")
    Image.fromarray(quadrants()).save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(tmp_path / "p.mp4")
    assert require_video(tmp_path / "v.wav").video is not None
    audio = require_sound(tmp_path / "s.mp4").audio
    assert audio is not None and audio.codec == "flac"
    assert require_image(tmp_path / "p.mp4").image is not None
    assert len(read_frames(tmp_path / "v.wav", 16, 64, 64)) == 16
    assert corners(read_image(tmp_path / "p.mp4")) == ["red", "green", "white", "blue"]


def test_an_index_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", seconds=2)
    data = path.read_bytes()
    index = data.index(b"moov")
    assert index > len(data) / 2  # it stands at the end
    for end in (index + 8, index + (len(data) - index) // 2, index + 9 * (len(data) - index) // 10):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match="copy or download it again"):
            probe(path)


def test_speech_is_mixed_over_the_old_sound(tmp_path: Path) -> None:
    video = make_video(tmp_path / "silent.mp4", seconds=2, sound=False)
    old, new = 0.4 * noise(2, 44_100), 0.3 * noise(1.5, RATE, seed=1)
    soundfile.write(tmp_path / "old.wav", np.stack([old, -old], 1), 44_100)
    source = tmp_path / "v.mkv"
    ffmpeg("-i", video, "-i", tmp_path / "old.wav", "-c:v", "copy", "-c:a", "flac", source)
    made = write_dub(tmp_path / "d.mkv", source, new, RATE, keep_sound=True)
    audio = probe(made).audio
    assert audio is not None and (audio.sample_rate, audio.channels) == (44_100, 2)
    with av.open(str(made)) as container:
        both = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).reshape(
            -1, 2
        )
    both = both / np.iinfo(both.dtype).max
    length = min(len(both), len(old))
    gain = float(
        (both[:length, 0] - both[:length, 1]) @ (2 * old[:length]) / ((2 * old[:length]) @ (2 * old[:length]))
    )
    assert 0.5 < gain <= 1.01  # lowered only where the sum would clip
    heard = read_audio(made)[
        : len(new)
    ]  # the old one is opposite in the two channels, and gone in their mean
    assert np.corrcoef(heard, new[: len(heard)])[0, 1] > 0.99
    assert np.abs(both).max() <= 1
    plain = write_dub(
        tmp_path / "p.mp4", video, new, RATE, keep_sound=True
    )  # with no old sound it is the speech
    assert np.corrcoef(read_audio(plain)[: len(new)], new)[0, 1] > 0.95


@pytest.mark.parametrize("keep", [False, True])
def test_a_dub_is_as_long_as_what_was_given_also_where_its_sound_goes_on(keep: bool, tmp_path: Path) -> None:
    video = make_video(tmp_path / "video.mp4", seconds=1, sound=False)
    soundfile.write(tmp_path / "old.wav", 0.2 * noise(3, 44_100), 44_100)
    source = tmp_path / "v.mp4"
    ffmpeg("-i", video, "-i", tmp_path / "old.wav", "-c:v", "copy", "-c:a", "aac", source)
    new = 0.3 * noise(2.5, RATE, seed=1)
    made = write_dub(tmp_path / "d.mp4", source, new, RATE, keep_sound=keep)
    before, after = probe(source), probe(made)
    assert after.duration_s == pytest.approx(before.duration_s, abs=0.01)
    assert after.video is not None and after.video.duration_s == pytest.approx(1.0, abs=0.01)
    heard = read_audio(made)
    late = slice(2 * RATE, round(2.4 * RATE))  # nothing of what is said after the last picture is lost
    assert np.corrcoef(heard[late], new[late])[0, 1] > 0.7
    assert (np.abs(heard[round(2.6 * RATE) : round(2.9 * RATE)]).max() > 0.05) == keep


def test_a_picture_that_no_one_could_play_there_is_refused(tmp_path: Path) -> None:
    source = make_video(tmp_path / "v.mov", encode=("-c:v", "qtrle", "-c:a", "aac"))
    with pytest.raises(OutputError, match=r"can't hold the qtrle video as it is; end it in \.mov"):
        write_dub(tmp_path / "d.mkv", source, noise(1, RATE), RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mov"]
    assert write_dub(tmp_path / "d.mov", source, noise(1, RATE), RATE).is_file()


def test_a_picture_that_begins_before_the_file_is_kept_where_that_can_be_said(tmp_path: Path) -> None:
    long = make_video(tmp_path / "long.mp4", seconds=2)  # one key frame: a cut is no more than a note of it
    source = tmp_path / "cut.mp4"
    ffmpeg("-ss", 0.5, "-i", long, "-c", "copy", source)
    assert probe(source).duration_s == pytest.approx(1.5, abs=0.05)
    with pytest.raises(OutputError, match=r"as it is; end it in \.mp4"):
        write_dub(tmp_path / "d.mkv", source, noise(1, RATE), RATE)
    made = probe(write_dub(tmp_path / "d.mp4", source, noise(1, RATE), RATE))
    assert made.duration_s == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 40.0])
def test_a_voice_is_read_from_where_it_speaks_whatever_its_length(seconds: float, tmp_path: Path) -> None:
    sound = 0.001 * noise(25, RATE)  # longer than is read at once
    said = slice(4 * RATE, 21 * RATE)
    sound[said] += 0.5 * noise(17, RATE, seed=1)
    soundfile.write(tmp_path / "voice.wav", sound, RATE, subtype="FLOAT")
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    part, whole_s = spoken_part(tmp_path / "voice.wav", RATE, seconds, 0.01)
    truth = sound[loud[0] : loud[-1] + 1]
    assert np.array_equal(part, truth[: round(seconds * RATE)].astype(np.float32))
    assert whole_s == len(truth) / RATE


def test_silence_is_told_from_sound(tmp_path: Path) -> None:
    late = np.zeros(14 * RATE)
    soundfile.write(tmp_path / "silence.wav", late, RATE)
    late[-RATE:] = 0.01 * noise(1, RATE)
    soundfile.write(tmp_path / "late.wav", late, RATE)
    assert is_silent(tmp_path / "silence.wav", RATE) and not is_silent(tmp_path / "late.wav", RATE)
    assert not len(spoken_part(tmp_path / "silence.wav", RATE, 3.0, 0.01)[0])


def pictures() -> dict[str, dict]:
    """How each kind of picture is saved."""
    truth = quadrants(96, 128)
    image, black = Image.fromarray(truth), Image.new("RGB", (128, 96))
    lab = ImageCms.applyTransform(
        image,
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    grey16 = np.where(truth.sum(2) > 400, 65535, 0).astype(np.uint16)
    return {
        "a.jpg": {"image": image, "quality": 95},
        "progressive.jpg": {"image": image, "quality": 95, "progressive": True},
        "cmyk.jpg": {"image": image.convert("CMYK"), "quality": 95},
        "cmyk.tiff": {"image": image.convert("CMYK")},
        "lab.tiff": {"image": lab},
        "palette.png": {"image": image.quantize(8)},
        "palette.gif": {"image": image.quantize(8)},
        "alpha.png": {"image": image.convert("RGBA")},
        "alpha.webp": {"image": image.convert("RGBA"), "lossless": True},
        "moving.gif": {"image": image, "save_all": True, "append_images": [black, black]},
        "moving.webp": {"image": image, "save_all": True, "append_images": [black], "lossless": True},
        "moving.png": {"image": image, "save_all": True, "append_images": [black]},
        "a.bmp": {"image": image},
        "a.tga": {"image": image},
        "a.ppm": {"image": image},
        "a.jp2": {"image": image},
        "grey16.png": {"image": Image.fromarray(grey16)},
        "grey16.tiff": {"image": Image.fromarray(grey16)},
        "one bit.png": {"image": Image.fromarray(truth.sum(2) > 400)},
    }  # fmt: skip


@pytest.mark.parametrize("name", pictures())
def test_a_picture_of_any_kind(name: str, tmp_path: Path) -> None:
    options = pictures()[name]
    options.pop("image").save(tmp_path / name, **options)
    picture = read_image(tmp_path / name)
    assert picture.dtype == np.uint8 and picture.shape == (96, 128, 3)
    if "16" in name or "bit" in name:
        assert picture[20, 20].tolist() == [0, 0, 0] and picture[80, 110].tolist() == [255, 255, 255]
    else:
        assert corners(picture) == ["red", "green", "white", "blue"]
    info = require_image(tmp_path / name).image
    assert info is not None and (info.height, info.width) == (96, 128)


def test_sixteen_bit_colours_become_eight(tmp_path: Path) -> None:
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=64x48",
        "-frames:v",
        1,
        "-pix_fmt",
        "rgb48be",
        tmp_path / "deep.png",
    )
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=64x48", "-frames:v", 1, "-pix_fmt", "rgb24", tmp_path / "plain.png"
    )
    deep, plain = (read_image(tmp_path / name).astype(int) for name in ("deep.png", "plain.png"))
    assert np.abs(deep - plain).max() <= 1


def test_pictures_of_extreme_sizes(tmp_path: Path) -> None:
    for size in ((1, 1), (3, 2), (7000, 5000)):
        Image.new("RGB", size, "red").save(tmp_path / "p.png")
        assert read_image(tmp_path / "p.png").shape == (size[1], size[0], 3)
        soundfile.write(tmp_path / "s.wav", noise(1, RATE), RATE)
        plan = check(
            Request(task="animate", face=tmp_path / "p.png", sound=tmp_path / "s.wav"), load_preset("nano")
        )
        assert min(plan.spec.height, plan.spec.width) == 128
    Image.new("RGB", (4000, 10)).save(tmp_path / "p.png")
    with pytest.raises(InputError, match="4000x10 would become"):
        check(Request(task="animate", face=tmp_path / "p.png", sound=tmp_path / "s.wav"), load_preset("nano"))


def test_limits_are_said_before_anything_is_decoded_and_can_be_lifted(tmp_path: Path) -> None:
    sources = {
        "pixels a frame": (
            ["-f", "lavfi", "-i", "color=size=9000x4600:rate=1:duration=1", "-c:v", "ffv1"],
            "p.mkv",
        ),
        "seconds": (["-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono:d=4000", "-c:a", "pcm_u8"], "s.wav"),
        "channels": (["-f", "lavfi", "-i", "anullsrc=r=8000:cl=22.2:d=1", "-c:a", "pcm_s16le"], "c.wav"),
    }
    for what, (arguments, name) in sources.items():
        ffmpeg(*arguments, tmp_path / name)
        with pytest.raises(InputError, match=f"{what}, and at most .* or say --unlimited"):
            probe(tmp_path / name)
        with limits.lifted():
            assert probe(tmp_path / name).duration_s > 0
    Image.new("1", (11_000, 11_000)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="--unlimited"):
        read_image(tmp_path / "large.png")
    with limits.lifted():
        assert read_image(tmp_path / "large.png").shape == (11_000, 11_000, 3)
    request = Request(task="animate", face=tmp_path / "large.png", sound=tmp_path / "s.wav", unlimited=True)
    assert check(request, load_preset("nano")).num_frames == 16 * 4000


def test_tags_in_another_encoding_are_no_reason_to_refuse_a_file(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "a.mkv",
        np.zeros((5, 32, 32, 3), np.uint8),
        noise(0.3, RATE),
        16,
        RATE,
        {"title": "XXXXXXXX"},
    )
    path.write_bytes(path.read_bytes().replace(b"XXXXXXXX", b"caf\xe9caf\xe9"))
    assert read_metadata(path)["title"].startswith("caf")

"""People's videos to training clips: of every kind, left out for every reason, cut by kill -9."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from own_videos import SIDE, Speaker, speaker, write_folder, write_speaker
from tiny_model import write_tiny_preset

from uniavgen_cli.cli import main
from uniavgen_cli.codecs.load import load_picture_codec
from uniavgen_cli.config import load_preset
from uniavgen_cli.data import cache, footage, prepare, transcripts
from uniavgen_cli.data import prepared as prepared_folder
from uniavgen_cli.errors import InputError, OutputError
from uniavgen_cli.media.closeup import MOUTH, MOUTH_PLACE
from uniavgen_cli.media.face import detect_faces
from uniavgen_cli.media.video import write_clip
from uniavgen_cli.shapes import ClipSpec
from uniavgen_cli.training.stages import codec_hash

SIZE = ["--set", f"clip.short_side={SIDE}"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_preset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(videos: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "latents"
    assert main(["prepare", str(videos), "-o", str(out), "--preset", str(preset), *SIZE, "--quiet"]) == 0
    return out


def left_out(folder: Path) -> dict[str, str]:
    """The reasons of each video, by its name."""
    reasons: dict[str, str] = {}
    with (folder / prepared_folder.LEFT_OUT).open(newline="") as file:
        for row in csv.DictReader(file):
            name = Path(row["file"]).stem
            reasons[name] = f"{reasons.get(name, '')} {row['reason']}".strip()
    return reasons


def clips_by_video(folder: Path) -> dict[str, list[cache.CachedClip]]:
    files = json.loads((folder / prepared_folder.MANIFEST).read_text())["files"]
    return {
        Path(name).stem: [
            cache.CachedClip({**sound.tensors, **picture.tensors}, sound.texts)
            for number in entry["shards"]
            for sound, picture in zip(
                *(cache._read(cache._shard(folder, kind, number)).values() for kind in ("audio", "video")),
                strict=True,
            )
        ]
        for name, entry in files.items()
    }


def test_good_videos_of_any_format_become_clips_as_the_model_reads_them(prepared: Path) -> None:
    clips = clips_by_video(prepared)
    assert {name for name, made in clips.items() if made} == {"good", "larger", "second", "old", "long"}
    drawn = speaker(0)
    clip = clips["good"][0]
    truth = cache.sound_arrays(drawn.clip)
    assert {name: value.shape for name, value in clip.tensors.items()} == {
        "mel": (206, 80), "phonemes": (206,), "reference_mel": (0, 80), "reference_phonemes": (0,),
        "latents": (9, 4, 8, 8), "face_mask": (9, 4, 4), "mouth_mask": (9, 8, 8),
    }  # fmt: skip
    assert all(clip.tensors[name].dtype == truth[name].dtype for name in truth)
    # AAC is all that lies between the two
    assert (clip.tensors["mel"].float() - truth["mel"].float()).abs().mean() < 0.2
    assert clip.texts["text"] == drawn.text and clip.texts["caption"] == prepare.CAPTION
    for name in ("larger", "old"):
        assert [len(one.tensors["mel"]) for one in clips[name]] == [206]


def test_phonemes_lie_where_they_are_said(prepared: Path) -> None:
    """Against the synthesiser's own times; only the span and the words were known."""
    found = clips_by_video(prepared)
    for name, index in (("good", 0), ("second", 1)):
        ids, truth = found[name][0].tensors["phonemes"].numpy(), speaker(index).clip.placed_phonemes()
        spoken, said = np.flatnonzero(ids > 1), np.flatnonzero(truth > 1)
        assert abs(spoken[0] - said[0]) <= 8 and abs(spoken[-1] - said[-1]) <= 12  # hundredths of a second
        assert (ids[said] == truth[said]).mean() > 0.5


def test_the_face_and_the_mouth_are_where_they_were_drawn(prepared: Path) -> None:
    clip, drawn = clips_by_video(prepared)["good"][0].tensors, speaker(0).clip.draw()
    spec = ClipSpec(num_frames=33, height=SIDE, width=SIDE)
    for name, boxes, rows in (("face_mask", drawn.face_boxes, 4), ("mouth_mask", drawn.mouth_boxes, 8)):
        truth = cache.box_masks(boxes, spec, rows, rows).float()
        overlap = (
            torch.minimum(truth, clip[name].float()).sum() / torch.maximum(truth, clip[name].float()).sum()
        )
        assert overlap > {"face_mask": 0.75, "mouth_mask": 0.35}[name], name


def test_a_face_anywhere_is_prepared_in_the_place_where_the_commands_see_it(tmp_path: Path) -> None:
    one = speaker(0)
    wall = np.repeat(one.frames[:, :, :1], 160, axis=2)
    wide = Speaker(one.clip, np.concatenate([one.frames, wall], axis=2)[:, 12:-4])
    write_speaker(tmp_path / "videos" / "wide.mp4", wide)
    out = tmp_path / "latents"
    assert main(["prepare", str(tmp_path / "videos"), "-o", str(out), "--quiet"]) == 0
    (clip,) = clips_by_video(out)["wide"]
    assert clip.tensors["latents"].shape[-2:] == (8, 8)
    nano = load_preset("nano")
    with torch.inference_mode():
        seen = load_picture_codec(nano).decode(clip.tensors["latents"].float().transpose(0, 1)[None])
    frame = ((seen[0, :, 0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()
    (x0, y0, x1, y1), side = detect_faces(frame)[0].box, len(frame)
    assert (y1 - y0) / side == pytest.approx(nano.clip.closeup, abs=0.06)
    assert (x0 + x1) / 2 / side == pytest.approx(MOUTH_PLACE[0], abs=0.05)
    assert ((y0 + y1) / 2 + MOUTH * (y1 - y0)) / side == pytest.approx(MOUTH_PLACE[1], abs=0.05)
    rows, columns = np.nonzero(clip.tensors["mouth_mask"].float().mean(0).numpy() > 0.3)
    assert rows.mean() == pytest.approx(8 * MOUTH_PLACE[1] - 0.5, abs=0.7)
    assert columns.mean() == pytest.approx(8 * MOUTH_PLACE[0] - 0.5, abs=0.7)


def test_two_sentences_of_one_speaker_are_each_others_voice(prepared: Path) -> None:
    first, second = clips_by_video(prepared)["long"]
    assert first.texts["text"] == second.texts["text"] == first.texts["reference_text"] == speaker(0).text
    for clip in (first, second):
        assert 80 <= len(clip.tensors["reference_mel"]) <= 250
        assert len(clip.tensors["reference_mel"]) == len(clip.tensors["reference_phonemes"])
        assert (clip.tensors["reference_phonemes"] > 1).float().mean() > 0.5


@pytest.mark.parametrize(
    "name, reason",
    [
        ("no-words", "no transcript: neither a .txt beside it nor a line in the CSV"),
        ("silent", "no speech: the sound is silent"),
        ("tone", "no speech: the sound is steady"),
        ("mute", "no speech: the file has no sound"),
        ("no-face", "no face in"),
        ("two", "2 faces: a scene has to have one"),
        ("cut", "a scene cut at 1.00 s"),
        ("short", "too short: 1.06 s, and a clip takes 2.06 s"),
        ("other-words", "the transcript does not fit the speech"),
        ("broken", "is cut off"),
        ("no-media", "is not media that can be read"),
        ("empty", "is empty (0 bytes)"),
    ],
)
def test_what_is_left_out_is_listed_with_its_reason(prepared: Path, name: str, reason: str) -> None:
    assert reason in left_out(prepared)[name]


def test_nothing_good_is_left_out(prepared: Path) -> None:
    assert not set(left_out(prepared)) & {"good", "larger", "second", "old"}


def test_a_second_run_makes_nothing_anew_and_a_changed_transcript_its_video_alone(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_speaker(tmp_path / "in" / "a.mp4", speaker(0))
    write_speaker(tmp_path / "in" / "b.mp4", speaker(1))
    run = ["prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--preset", str(preset), *SIZE]
    assert main([*run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["videos"], told["left_out"]) == (2, 2, 0)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert main(run) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")} == before
    (tmp_path / "in" / "a.txt").write_text(f"{speaker(0).text} Yes.")
    assert main(run) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(after) == 4 and len(set(after.items()) & set(before.items())) == 2
    texts = {name: clips[0].texts["text"] for name, clips in clips_by_video(tmp_path / "out").items()}
    assert texts == {"a": f"{speaker(0).text} Yes.", "b": speaker(1).text}
    assert main([*run[:-2], "--set", "clip.short_side=160"]) == OutputError.exit_code
    assert "were made with short_side 128, not 160" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_clips(preset: Path, tmp_path: Path) -> None:
    for index, name in enumerate("abc"):
        write_speaker(tmp_path / "in" / f"{name}.mp4", speaker(index))
    arguments = ["prepare", str(tmp_path / "in"), "--preset", str(preset), *SIZE, "--quiet", "-o"]
    process = subprocess.Popen([sys.executable, "-m", "uniavgen_cli", *arguments, str(tmp_path / "cut")])
    while process.poll() is None and not list((tmp_path / "cut").glob("video-*.safetensors")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main([*arguments, str(tmp_path / "cut")]) == 0
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    cut, whole = (cache.load(tmp_path / name, pictures=True) for name in ("cut", "whole"))
    assert len(cut) == len(whole) == 3
    for one, other in zip(cut, whole, strict=True):
        assert one.texts == other.texts
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)


def test_a_table_gives_words_captions_and_times(preset: Path, tmp_path: Path) -> None:
    one, other = speaker(0), speaker(1)
    write_speaker(tmp_path / "in" / "both.mp4", one, text=False)
    write_speaker(tmp_path / "in" / "deep" / "b.mp4", other, text=False)
    table = tmp_path / "words.csv"
    table.write_text(
        "file;text;start_s;end_s;caption;emotion\n"
        f"both.mp4;{one.text};0;2.1;A woman;happy\n"
        f"deep/b.mp4;{other.text};;;;\n"
        "gone.mp4;Nobody.;;;;\n",
        encoding="utf-8",
    )
    run = ["prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--preset", str(preset), *SIZE]
    assert main([*run, "--transcripts", str(table), "--quiet"]) == 0
    texts = {name: clips[0].texts for name, clips in clips_by_video(tmp_path / "out").items()}
    assert texts["both"]["caption"] == "A woman" and texts["both"]["emotion"] == "happy"
    assert texts["both"]["text"] == one.text and texts["b"]["text"] == other.text


@pytest.mark.parametrize(
    "content, problem",
    [
        ("file,words\na.mp4,hello\n", "has no column 'text'"),
        ("file,text,start\na.mp4,hello,1\n", "has a column 'start'"),
        ("file,text,start_s,end_s\na.mp4,hello,soon,2\n", "line 2: start_s 'soon' is no number"),
        ("file,text,start_s,end_s\na.mp4,hello,3,2\n", "line 2: start_s 3 is not before end_s 2"),
        ("file,text,start_s,end_s\na.mp4,hello,nan,\n", "line 2: start_s 'nan' is no number"),
    ],
)
def test_a_table_that_is_wrong_is_refused_in_one_line(tmp_path: Path, content: str, problem: str) -> None:
    table = tmp_path / "words.csv"
    table.write_text(content)
    with pytest.raises(InputError, match=problem):
        transcripts.read_table(table)


def test_a_text_of_several_lines_keeps_its_words_apart(tmp_path: Path) -> None:
    table = tmp_path / "words.csv"
    table.write_text('file,text\n"a, b.mp4","Hello\nthere, ""you""."\n', encoding="utf-8")
    (line,) = transcripts.read_table(table)["a, b.mp4"]
    assert line.text == 'Hello there, "you".'


def test_words_share_the_spoken_time_by_their_length() -> None:
    words = transcripts.share_out([transcripts.Line(text="I understand - you.")], [(1.0, 2.0), (3.0, 3.5)])
    assert [word.text for word in words] == ["I", "understand -", "you."]
    assert words[0].start_s == pytest.approx(1.0, abs=1e-3) and words[-1].end_s == pytest.approx(
        3.5, abs=1e-3
    )
    assert words[1].end_s - words[1].start_s > 2 * (words[0].end_s - words[0].start_s)
    syllables = transcripts.share_out([transcripts.Line(text="今天很好")], [(0.0, 1.0)])
    assert transcripts.joined_text(syllables) == "今天很好" and len(syllables) == 4


def test_windows_hold_all_speech_and_are_cut_in_pauses() -> None:
    spans = [(0.5, 2.0), (2.6, 4.0), (5.0, 6.5), (9.0, 16.0)]
    made = footage.windows(spans, 20.0, (33, 49, 81), 16)
    assert all(window.num_frames in (33, 49, 81) for window in made)
    for start, end in spans:
        covered = sum(max(0.0, min(end, w.start_s + w.num_frames / 16) - max(start, w.start_s)) for w in made)
        assert covered >= end - start - 1e-6
    assert all(0 <= w.start_s and w.start_s + w.num_frames / 16 <= 20 for w in made)
    assert not footage.windows([(0.1, 1.5)], 1.6, (33,), 16)
    assert footage.windows([(0.02, 5.06)], 81 / 16, (33, 81), 16) == [
        footage.Window(0.0, 81, ((0.02, 5.06),))
    ]
    broken = footage.windows([(0.5, 2.0), (2.6, 4.0)], 8.0, (33, 81), 16, breaks=[2.3])
    assert [w.start_s >= 2.3 or w.start_s + w.num_frames / 16 <= 2.3 + 1e-6 for w in broken] == [True, True]


def test_speech_that_goes_on_over_a_scene_cut_is_two_windows() -> None:
    made = footage.windows([(0.1, 4.9)], 5.0, (33, 49, 81), 16, breaks=[2.5])
    assert [w.num_frames for w in made] == [33, 33]
    assert made[0].start_s + 33 / 16 <= 2.5 + 1e-6 and made[1].start_s >= 2.5
    # a scene too short for a clip leaves its neighbour whole
    made = footage.windows([(0.1, 4.9)], 5.0, (33, 49, 81), 16, breaks=[4.0])
    assert made[0].start_s + made[0].num_frames / 16 <= 4.0 and made[0].num_frames == 49


def test_both_scenes_of_a_cut_in_the_middle_of_speech_become_clips(preset: Path, tmp_path: Path) -> None:
    one, other = speaker(0), speaker(1)
    (tmp_path / "in").mkdir()
    loud = np.flatnonzero(np.abs(one.clip.samples) > 0.02)
    said = one.clip.samples[loud[0] : loud[-1]]
    samples = np.resize(said, 66 * 1500)  # again and again, without a pause where the scenes meet
    write_clip(tmp_path / "in" / "a.mp4", np.concatenate([one.frames, other.frames]), samples, 16, 24_000)
    (tmp_path / "in" / "a.txt").write_text(" ".join([one.text] * round(len(samples) / len(said))))
    run = ["prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--preset", str(preset), *SIZE]
    assert main([*run, "--quiet"]) == 0
    clips = clips_by_video(tmp_path / "out")["a"]
    assert len(clips) == 2 and all(len(clip.tensors["latents"]) == 9 for clip in clips)


def test_speech_is_heard_over_noise_and_hum_is_not_speech() -> None:
    clip = speaker(2).clip
    rng = np.random.default_rng(0)
    said = clip.phonemes[0].start_s, clip.phonemes[-1].end_s
    noisy = clip.samples + rng.normal(0, 0.01, len(clip.samples)).astype(np.float32)
    spans = footage.speech_spans(noisy, 24_000)
    assert abs(spans[0][0] - said[0]) < 0.12 and abs(spans[-1][1] - said[1]) < 0.2
    with pytest.raises(InputError, match="steady"):
        footage.speech_spans(rng.normal(0, 0.1, 48_000).astype(np.float32), 24_000)


def test_a_folder_of_other_clips_is_not_touched(videos: Path, preset: Path, tmp_path: Path) -> None:
    (tmp_path / "audio-000000.safetensors").write_bytes(b"mine")
    loaded = load_preset(preset)
    how = prepared_folder.How.of(loaded, codec_hash(loaded))
    with pytest.raises(OutputError, match="clips of another kind"):
        prepare.prepare(videos, tmp_path, how, load_picture_codec(loaded))
    assert (tmp_path / "audio-000000.safetensors").read_bytes() == b"mine"


def test_a_folder_without_videos_is_refused(
    preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, problem in ((tmp_path, "there is no video in"), (tmp_path / "gone", "is no folder")):
        assert main(["prepare", str(folder), "-o", str(tmp_path / "out")]) == InputError.exit_code
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

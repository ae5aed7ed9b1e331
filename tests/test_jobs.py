"""Job files: what every row becomes, and how what is wrong with one is said, before anything heavy loads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from uniavgen_cli.cli import main
from uniavgen_cli.engine.jobfile import read_rows
from uniavgen_cli.engine.jobs import Job, Problem, check_jobs
from uniavgen_cli.errors import InputError, OutputError, UniAVGenError, UsageError
from uniavgen_cli.media.video import write_clip

YAML = """\
# a comment
defaults: {duration: 0.5, voice: speech.wav, steps: 3, set: {sampling.shift: 3}}
jobs:
- task: generate
  prompt: A man
- {task: animate, face: face.png,
   sound: speech.wav, output: talking}
- task: dub
  video: talk.mp4
  speech: "@words.txt"
  keep_sound: true
  size: 96x64
  seed: 4
  set: [sampling.video_guidance=1.5]
"""
JSONL = """
{"defaults": {"duration": 0.5}}
{"task": "generate", "prompt": "A man"}

{"task": "continue", "video": "talk.mp4", "seed": 7}
"""
CSV = """\
task,prompt,duration,video,seed,private
generate,"A man, old",0.5,,,yes
continue,,0.25,talk.mp4,7,
"""
RELEASED = """\
data_id,ref_image_path,ref_audio_path,ref_speech_content,video_path,audio_path,speech_content,prompt,lang
0,face.png,,,,,Hello.,A man speaks.,en
1,face.png,speech.wav,Good day.,,,Hello.,A man speaks.,en
../2,face.png,,,,speech.wav,Hello.,A man speaks.,en
3,face.png,,,talk.mp4,,Hello.,A man speaks.,en
"""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("media")
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    tone = (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "face.png"), picture)
    soundfile.write(tmp_path / "speech.wav", tone, 24_000)
    write_clip(tmp_path / "talk.mp4", np.stack([picture] * 16), tone, 16, 24_000)
    (tmp_path / "words.txt").write_text("Good morning.\n")
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, media: Path) -> Path:
    return shutil.copytree(media, tmp_path / "jobs")


def checked(folder: Path, name: str, text: str, **defaults: object) -> tuple[list[Job], list[Problem]]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return check_jobs(read_rows(path), folder, defaults)


def one(folder: Path, text: str, **defaults: object) -> Job:
    jobs, problems = checked(folder, "one.yaml", text, **defaults)
    assert not problems, problems
    (job,) = jobs
    return job


def refused(folder: Path, text: str, name: str = "bad.yaml") -> UniAVGenError:
    jobs, problems = checked(folder, name, text)
    assert not jobs
    (problem,) = problems
    return problem.error


def test_yaml_with_defaults_and_lines(folder: Path) -> None:
    jobs, problems = checked(folder, "jobs.yaml", YAML)
    assert not problems
    assert [(job.number, job.line) for job in jobs] == [(1, 4), (2, 6), (3, 8)]
    man, talking, dub = (job.plan.request for job in jobs)
    assert (man.task, man.duration_s, man.steps, man.voice) == ("generate", 0.5, 3, folder / "speech.wav")
    assert talking.duration_s is None and talking.voice is None  # defaults that animate does not take
    assert (dub.speech, dub.keep_sound, dub.size, dub.seed) == ("Good morning.", True, (64, 96), 4)
    assert jobs[1].name == "talking.mp4"
    assert jobs[0].name.startswith("generate-a-man-") and jobs[0].name.endswith(".mp4")
    assert jobs[2].plan.preset.sampling.shift == 3 and jobs[2].plan.preset.sampling.video_guidance == 1.5


def test_jsonl_and_csv(folder: Path) -> None:
    jobs, problems = checked(folder, "jobs.jsonl", JSONL)
    assert not problems and [(job.number, job.line) for job in jobs] == [(1, 3), (2, 5)]
    assert [job.plan.request.duration_s for job in jobs] == [0.5, 0.5]
    rows, problems = checked(folder, "jobs.csv", CSV)
    assert not problems and [(job.number, job.line) for job in rows] == [(1, 2), (2, 3)]
    assert rows[0].plan.request.prompt == "A man, old" and rows[0].plan.request.private is True
    assert rows[1].plan.request.seed == 7 and rows[1].plan.request.duration_s == 0.25


def test_the_released_scripts_csv(folder: Path) -> None:
    jobs, problems = checked(folder, "released.csv", RELEASED)
    assert not problems, problems
    assert [(job.name, job.plan.request.task) for job in jobs] == [
        ("0.mp4", "generate"),
        ("1.mp4", "generate"),
        ("2.mp4", "animate"),  # of the identifier ../2
        ("3.mp4", "dub"),
    ]
    plain, voiced, animated, dubbed = (job.plan.request for job in jobs)
    assert (plain.speech, plain.prompt, plain.face) == ("Hello.", "A man speaks.", folder / "face.png")
    assert plain.language == "en"
    assert (voiced.voice, voiced.voice_text) == (folder / "speech.wav", "Good day.")
    assert animated.speech is None and animated.sound == folder / "speech.wav"
    assert dubbed.face is None and dubbed.video == folder / "talk.mp4" and dubbed.speech == "Hello."


def test_what_the_command_says_beats_the_files_defaults_and_not_its_jobs(folder: Path) -> None:
    text = "defaults: {steps: 3}\njobs: [{task: generate, prompt: x}]"
    assert one(folder, text, steps=5).plan.request.steps == 5
    assert one(folder, text.replace("prompt", "steps: 4, prompt"), steps=5).plan.request.steps == 4


def test_the_content_hash_and_the_seed_follow_from_what_decides_the_clip(folder: Path) -> None:
    text = "[{task: animate, face: face.png, sound: speech.wav}]"
    first = one(folder, text)
    assert one(folder, text).content == first.content
    assert one(folder, text.replace("animate", "animate, output: other")).content == first.content
    (folder / "copy.png").write_bytes((folder / "face.png").read_bytes())
    assert one(folder, text.replace("face.png", "copy.png")).content == first.content
    others = [
        one(folder, text.replace("animate", f"animate, {more}"))
        for more in ("steps: 3", "prompt: x", "seed: 4", "set: {sampling.shift: 3}", "private: true")
    ]
    cv2.imwrite(str(folder / "face.png"), np.zeros((96, 96, 3), np.uint8))
    others.append(one(folder, text))
    assert len({job.content for job in [first, *others]}) == 7
    assert len({job.plan.request.seed for job in [first, *others]}) == 7
    assert len({job.name for job in [first, *others]}) == 7


BAD = [  # the kind, what is said, the job
    (UsageError, "it has no task", "prompt: x"),
    (UsageError, "no task 'paint'", "task: paint"),
    (UsageError, "did you mean prompt", "task: generate, promt: x"),
    (UsageError, "no key '3'", "task: generate, 3: x"),
    (UsageError, "generate takes no video", "task: generate, prompt: x, video: talk.mp4"),
    (UsageError, "animate takes no speech", "task: animate, face: face.png, sound: speech.wav, speech: x"),
    (UsageError, "dub needs a video", "task: dub, speech: Hello"),
    (UsageError, "needs a prompt", "task: generate, steps: 3"),
    (UsageError, "voice_text", "task: generate, prompt: x, voice_text: y"),
    (UsageError, "seed: input should be a valid integer", "task: generate, prompt: x, seed: many"),
    (UsageError, "seed -1", "task: generate, prompt: x, seed: -1"),
    (UsageError, "prompt: input should be a valid string", "task: generate, prompt: 3"),
    (UsageError, "prompt: input should be a valid string", "task: generate, prompt: [a, b]"),
    (UsageError, "duration: input", "task: generate, prompt: x, duration: long"),
    (UsageError, "--duration nan", "task: generate, prompt: x, duration: .nan"),
    (UsageError, "--duration inf", "task: generate, prompt: x, duration: .inf"),
    (UsageError, "no size", "task: generate, prompt: x, size: huge"),
    (UsageError, "no size", "task: generate, prompt: x, size: [1, 2]"),
    (UsageError, "--steps 0", "task: generate, prompt: x, steps: 0"),
    (UsageError, "face_index", "task: generate, prompt: x, face_index: -1"),
    (UsageError, "did you mean nano", "task: generate, prompt: x, preset: nanu"),
    (UsageError, "sampling.steps", "task: generate, prompt: x, set: {sampling.stepz: 4}"),
    (UsageError, "its set", "task: generate, prompt: x, set: 4"),
    (UsageError, "its set", "task: generate, prompt: x, set: {a: {b: c}}"),
    (InputError, "missing.mp4", "task: dub, video: missing.mp4"),
    (InputError, "is a folder", "task: dub, video: ."),
    (InputError, "not media", "task: animate, face: face.png, sound: words.txt"),
    (InputError, "can't be read from", "task: generate, speech: '@nothing.txt'"),
    (InputError, "has 9,999 seconds", "task: generate, prompt: x, duration: 9999"),
    (OutputError, "bare file name", "task: generate, prompt: x, output: ../x.mp4"),
    (OutputError, "bare file name", "task: generate, prompt: x, output: /etc/x.mp4"),
    (OutputError, "bare file name", "task: generate, prompt: x, output: 'C:\\x.mp4'"),
    (OutputError, "bare file name", "task: generate, prompt: x, output: .."),
    (OutputError, "no name of a clip", "task: generate, prompt: x, output: x.gif"),
    (OutputError, "no name of a clip", "task: generate, prompt: x, output: ''"),
    (OutputError, "no name of a clip", "task: generate, prompt: x, output: '...'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said", "job"), BAD, ids=[job for _, _, job in BAD])
def test_a_bad_job_is_named_with_its_reason(
    kind: type[UniAVGenError], said: str, job: str, folder: Path
) -> None:
    error = refused(folder, f"- {{{job}}}")
    assert type(error) is kind and said in str(error)
    assert "\n" not in str(error) and len(str(error)) < 700


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("hello", "hello.mp4"),
        ("-rf.mp4", "rf.mp4"),
        (".hidden.mp4", "hidden.mp4"),
        ("a\nb\t'c'.mkv", "a-b-'c'.mkv"),
        ("  ü 漢 .mp4 ", "ü 漢.mp4"),
        ("x" * 300 + ".mp4", "x" * 116 + ".mp4"),
        ("漢" * 90 + ".mp4", "漢" * 38 + ".mp4"),
        ("a:b*?.webm", "a-b-.webm"),
    ],
)
def test_names_are_cleaned(output: str, name: str, folder: Path) -> None:
    jobs, problems = checked(
        folder, "n.jsonl", json.dumps({"task": "generate", "prompt": "x", "output": output}) + "\n"
    )
    assert not problems and jobs[0].name == name


def test_two_jobs_never_write_one_file(folder: Path) -> None:
    text = "- {task: generate, prompt: x, output: a.mp4}\n- {task: generate, prompt: y, output: A.mp4}\n"
    jobs, (problem,) = checked(folder, "two.yaml", text)
    assert len(jobs) == 1 and (problem.number, problem.line) == (2, 2)
    assert "as job 1 (line 1) does" in str(problem.error)
    jobs, (problem,) = checked(folder, "same.yaml", "- {task: generate, prompt: x}\n" * 2)
    assert "give it an output or a seed of its own" in str(problem.error)


UNREADABLE = {
    "a.txt": "task: generate",
    "empty.yaml": "",
    "empty.csv": "",
    "header.csv": "task,prompt\n",
    "nothing.jsonl": "\n\n",
    "scalar.yaml": "just words",
    "other.yaml": "things: []",
    "tab.yaml": "jobs:\n\t- task: x",
    "python.yaml": "- !!python/object/apply:os.system ['touch pwned']",
    "two.yaml": "- task: x\n---\n- task: y",
    "key.yaml": "- {task: generate, task: dub}",
    "null.yaml": "- {task: gen\0erate}",
    "date.yaml": "- {task: 2024-99-99}",
    "deep.yaml": "- " + "[" * 20_000,
    "deep.jsonl": "[" * 200_000,
    "bad.jsonl": '{"task": "generate"}\n{"task": ',
    "wide.csv": "task,prompt\ngenerate,x,y\n",
    "twice.csv": "task,task\ngenerate,x\n",
    "open.csv": 'task,prompt\ngenerate,"x\n',
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_job_file_is_one_line(name: str, folder: Path) -> None:
    (folder / name).write_text(UNREADABLE[name])
    with pytest.raises(InputError) as caught:
        read_rows(folder / name)
    assert "\n" not in str(caught.value) and name in str(caught.value) and caught.value.hint
    assert not Path("pwned").exists()


def test_bytes_that_are_no_job_file(folder: Path) -> None:
    (folder / "latin.csv").write_bytes(b"task,prompt\ngenerate,caf\xe9\n")
    (folder / "large.yaml").write_bytes(b"# " * 2**23 + b"\n")
    for name, said in (
        ("latin.csv", "not UTF-8"),
        ("large.yaml", "larger than"),
        ("none.csv", "can't be read"),
    ):
        with pytest.raises(InputError, match=said):
            read_rows(folder / name)
    with pytest.raises(InputError, match="can't be read"):
        read_rows(folder.rename(folder.with_suffix(".yaml")))


def test_a_file_that_swells_stays_small(folder: Path) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    nested = "".join(f"  {line}\n" for line in levels.splitlines())
    assert "no key 'a0'" in str(refused(folder, f"- task: generate\n  a0: &a0 x\n{nested}"))
    lists = "- &a0 [x, x]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    lists += "- {task: generate, prompt: *a11}\n- {task: generate, set: *a11}\n- {task: *a11}\n"
    jobs, problems = checked(folder, "lists.yaml", lists)
    assert not jobs and len(problems) == 15 and max(len(str(p.error)) for p in problems) < 300


def test_the_command_names_each_bad_job_and_does_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    good = "- {task: generate, prompt: x, duration: 0.5}\n"
    for text, code in (
        (good + "- {task: dub, video: no.mp4}\n- {task: dub, video: nor.mp4}\n", 3),
        (good + "- {task: paint}\n", 2),
        (good + "- {task: generate, prompt: x, output: ../x.mp4}\n", 4),
        (good + "- {task: paint}\n- {task: dub, video: no.mp4}\n", 3),
    ):
        Path("jobs.yaml").write_text(text)
        assert main(["batch", "jobs.yaml", "-o", "out"]) == code
        captured = capsys.readouterr()
        assert captured.out == "" and not Path("out").exists()
        *lines, last = captured.err.splitlines()
        assert [line.split(": ")[:2] for line in lines] == [
            [f"jobs.yaml:{number}", f"job {number}"] for number in range(2, 2 + len(lines))
        ]
        assert last.startswith(f"error: {len(lines)} of {len(lines) + 1} jobs can't be done")


def test_files_that_are_not_the_batchs_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    shutil.copy("talk.mp4", "other.mp4")
    before = Path("talk.mp4").read_bytes()
    for output, more, said in (
        ("other.mp4", (), "exists and is not this batch's"),
        ("talk.mp4", ("--overwrite",), "is also an input"),
    ):
        Path("jobs.yaml").write_text(f"- {{task: dub, video: talk.mp4, output: {output}}}")
        assert main(["batch", "jobs.yaml", "-o", ".", *more]) == 4
        assert said in capsys.readouterr().err
    assert Path("talk.mp4").read_bytes() == before == Path("other.mp4").read_bytes()
    assert not Path(".uniavgen").exists()


def test_checking_jobs_needs_no_torch(folder: Path) -> None:
    (folder / "jobs.yaml").write_text(YAML)
    code = (
        "import sys; from pathlib import Path; from uniavgen_cli.engine.jobfile import read_rows;"
        "from uniavgen_cli.engine.jobs import check_jobs;"
        f"folder = Path({str(folder)!r}); rows = read_rows(folder / 'jobs.yaml');"
        "jobs, problems = check_jobs(rows, folder, {});"
        "sys.exit('torch' in sys.modules or len(jobs) != 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0

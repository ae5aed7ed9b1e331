"""`uniavgen weights` with the real hub client against a hub on 127.0.0.1, under every fault it may have."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, serve
from huggingface_hub import constants
from safetensors.numpy import save

from uniavgen_cli.cli import main
from uniavgen_cli.engine import hub as hub_client
from uniavgen_cli.engine import weights

ROOT = Path(__file__).resolve().parent.parent
MODEL, VOICE = "MCG-NJU/UniAVGen", "SWivid/F5-TTS"  # as the registry names them
SHARDS = tuple(f"diffusion_pytorch_model-{i:05}-of-00002.safetensors" for i in (1, 2))
INDEX = "diffusion_pytorch_model.safetensors.index.json"
VAE = "Wan2.2_VAE.pth"

Run = Callable[..., tuple[int, str, str]]


def repositories() -> dict[str, dict[str, bytes]]:
    """Every file the registry wants, small, and one it does not."""
    numbers = np.random.default_rng(0)
    model = {
        INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
        VAE: numbers.bytes(300_000),
        "models_t5_umt5-xxl-enc-bf16.pth": numbers.bytes(5000),
        "google/umt5-xxl/tokenizer.json": b'{"tokens": []}',
        "google/umt5-xxl/spiece.model": numbers.bytes(2000),
        "code2wav_bigvgan_model/config.json": b"{}",
        "code2wav_bigvgan_model/model.safetensors": save({"w": numbers.random(500, np.float32)}),
        "README.md": b"not wanted",
    }
    model |= {
        name: save({key: numbers.random(2000, np.float32)}) for name, key in zip(SHARDS, "ab", strict=True)
    }
    return {MODEL: model, VOICE: {"F5TTS_v1_Base/vocab.txt": b" \na\nb\n"}}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(repositories()) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Path:
    """Where the weights go; the client, in this process, asks the hub on 127.0.0.1."""
    # read from HF_ENDPOINT at import
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what a cut can lose; 10 MB for real files
    monkeypatch.setattr(hub_client, "SPARE_BYTES", 0)
    for name, value in environment(tmp_path, hub).items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "UNIAVGEN_PRESET", "UNIAVGEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "weights" / "uniavgen"


def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    return {
        "UNIAVGEN_WEIGHTS": str(tmp_path / "weights"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
    }


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["weights", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def process(tmp_path: Path, hub: Hub, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as the environment alone makes it."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "UNIAVGEN_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "uniavgen_cli", "weights", *arguments],
        cwd=ROOT,
        env={**mine, **environment(tmp_path, hub), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def error_line(err: str) -> str:
    lines = [line for line in err.splitlines() if not line.startswith("uniavgen: Apache")]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_a_pull_brings_every_file_and_a_second_one_brings_none(
    folder: Path, hub: Hub, tmp_path: Path
) -> None:
    """In processes of their own: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are believed."""
    first = process(tmp_path, hub, "pull", "uniavgen")
    out, err = first.communicate()
    assert first.returncode == 0, err
    assert out == f"{folder}\n" and "non-commercial use" in err
    wanted = {name: data for name, data in hub.repos[MODEL].items() if name != "README.md"}
    wanted["vocab.txt"] = hub.repos[VOICE]["F5TTS_v1_Base/vocab.txt"]
    assert files_in(folder) == {*wanted, weights.LOCK_NAME}
    assert all((folder / name).read_bytes() == data for name, data in wanted.items())
    lock = json.loads((folder / weights.LOCK_NAME).read_text())
    assert set(lock["files"]) == set(wanted) and set(lock["origins"]) == {MODEL, VOICE}
    assert all(len(origin["revision"]) == 40 for origin in lock["origins"].values())
    assert lock["files"][VAE]["sha256"] == weights.file_sha256(folder / VAE)
    assert lock["files"]["vocab.txt"]["size"] == 6 and len(lock["files"]["vocab.txt"]["sha256"]) == 64

    hub.requests.clear()
    second = process(tmp_path, hub, "pull", "uniavgen", HF_HUB_OFFLINE="1")
    out, err = second.communicate()
    assert (second.returncode, out) == (0, f"{folder}\n"), err
    assert "nothing to fetch" in err and hub.requests == []


def test_offline_without_the_files_is_one_line(folder: Path, hub: Hub, tmp_path: Path) -> None:
    ended = process(tmp_path, hub, "pull", "uniavgen", HF_HUB_OFFLINE="1")
    _, err = ended.communicate()
    assert ended.returncode == 5 and "HF_HUB_OFFLINE" in error_line(err)
    assert hub.requests == [] and not folder.parent.exists()


def test_a_stopped_pull_leaves_no_half_file_and_the_next_goes_on(
    folder: Path, hub: Hub, tmp_path: Path
) -> None:
    kept = 20_971_520  # two of the client's chunks
    hub.repos[MODEL][VAE] = np.random.default_rng(0).bytes(25_000_000)
    hub.cut_after, hub.cuts, hub.waits = 24_000_000, 1, True
    part = weights_part(folder, VAE)
    ended = process(tmp_path, hub, "pull", "uniavgen")
    deadline = time.monotonic() + 60
    while not (part() and part().stat().st_size == kept) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended.send_signal(signal.SIGINT)
    _, err = ended.communicate(timeout=60)
    assert ended.returncode == 130 and "interrupted" in err.splitlines()[-1]
    assert not folder.exists() and not any(path.name == VAE for path in tmp_path.rglob("*"))
    assert part().stat().st_size == kept
    hub.requests.clear()
    again = process(tmp_path, hub, "pull", "uniavgen")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert [asked for name, asked in hub.fetched() if name == VAE] == [f"bytes={kept}-"]
    assert (folder / VAE).read_bytes() == hub.repos[MODEL][VAE]
    assert files_in(folder.parent / weights.PULLING) <= {"uniavgen.lock"}


def weights_part(folder: Path, name: str) -> Callable[[], Path]:
    staging = folder.parent / weights.PULLING / folder.name
    return lambda: next(staging.glob(f"{name}.*.part"), None)  # type: ignore[return-value]


def test_a_cut_connection_is_taken_up_where_it_broke(run: Run, folder: Path, hub: Hub) -> None:
    hub.cut_after, hub.cuts = 100_000, 2
    code, _, err = run("pull", "uniavgen")
    assert code == 0, err
    ranges = [asked for name, asked in hub.fetched() if name == VAE]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert (folder / VAE).read_bytes() == hub.repos[MODEL][VAE]


def test_a_connection_that_stays_cut_ends_in_one_line_and_keeps_what_came(
    run: Run, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    hub.cut_after, hub.cuts = 0, 1000
    code, _, err = run("pull", "uniavgen")
    assert code == 5 and "what was fetched is kept" in error_line(err)
    assert not folder.exists()
    hub.cuts = 0
    hub.requests.clear()
    assert run("pull", "uniavgen")[0] == 0
    assert INDEX not in [name for name, _ in hub.fetched()]  # small, and fetched before the cut


def test_a_damaged_file_never_lands(run: Run, folder: Path, hub: Hub) -> None:
    for name in (SHARDS[1], "google/umt5-xxl/tokenizer.json"):  # by sha256, and by git's own hash
        hub.damaged = name
        code, _, err = run("pull", "uniavgen")
        assert code == 5 and f"{name} of {MODEL} arrived damaged" in error_line(err)
        assert not folder.exists()
    hub.damaged = ""
    assert run("pull", "uniavgen")[0] == 0
    assert weights.verify("uniavgen") == (len(files_in(folder)) - 1, True)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (VAE, lambda data: data[:-1] + b"x", "has sha256"),
        (VAE, lambda data: data[:100], "has 100 bytes, not 300000"),
        (SHARDS[0], None, "is missing"),
    ],
)
def test_verify_names_the_bad_file_and_a_pull_brings_it_alone(
    name: str, change: Callable[[bytes], bytes] | None, said: str, run: Run, folder: Path, hub: Hub
) -> None:
    assert run("pull", "uniavgen", "--quiet")[0] == 0
    assert run("verify", "uniavgen")[:2] == (0, "uniavgen: 10 files, as they were\n")
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change(whole))
    code, out, err = run("verify", "uniavgen")
    assert (code, out) == (5, "")
    assert str(folder / name) in error_line(err) and said in err and "weights pull uniavgen" in err
    (folder / name).unlink(missing_ok=True)
    hub.requests.clear()
    assert run("pull", "uniavgen")[0] == 0
    assert hub.fetched() == [(name, None)]
    assert run("verify", "uniavgen")[0] == 0


def test_what_moved_on_at_the_hub_does_not_change_a_pulled_set(run: Run, folder: Path, hub: Hub) -> None:
    assert run("pull", "uniavgen")[0] == 0
    before = (folder / weights.LOCK_NAME).read_bytes()
    hub.repos[MODEL][VAE] = b"newer" * 1000
    assert run("pull", "uniavgen")[0] == 0
    assert (folder / weights.LOCK_NAME).read_bytes() == before
    hub.requests.clear()
    assert run("pull", "uniavgen", "--revision", "main")[0] == 0
    assert hub.fetched() == [(VAE, None)]
    assert (folder / VAE).read_bytes() == b"newer" * 1000
    assert run("verify", "uniavgen")[0] == 0


def refused(hub: Hub, how: str) -> None:
    if how == "no repository":
        del hub.repos[MODEL]
    elif how == "no such file listed":
        del hub.repos[MODEL][VAE]
    elif how == "no such file there":
        hub.lost = VAE
    elif how == "out of the folder":
        hub.repos[MODEL]["google/umt5-xxl/../../../evil"] = b"1"
    elif how == "a shard is not there":
        del hub.repos[MODEL][SHARDS[1]]
    elif how == "broken":
        hub.status = 500
    elif how == "a page to log in to":
        hub.page = b"<html>Welcome to the hotel</html>"
    elif how == "another program":
        hub.page = b'{"version": 3}'


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no repository", f"no repository {MODEL}"),
        ("no such file listed", f"{MODEL} holds no {VAE}"),
        ("no such file there", "not every file of"),
        ("out of the folder", "outside its folder"),
        ("a shard is not there", f"names {SHARDS[1]}, which is not there"),
        ("broken", "answers 500"),
        ("a page to log in to", "is no hub"),
        ("another program", "is no hub"),
    ],
)
def test_what_the_hub_lacks_is_one_line(
    how: str, said: str, run: Run, folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    refused(hub, how)
    code, out, err = run("pull", "uniavgen")
    assert (code, out) == (5, ""), err
    assert said in error_line(err)
    assert not folder.exists() and not list(tmp_path.rglob("evil"))


def test_another_revision_or_repository_can_be_named(run: Run, folder: Path, hub: Hub) -> None:
    code, _, err = run("pull", "uniavgen", "--revision", "v9")
    assert code == 5 and "no such revision" in error_line(err)
    hub.repos["someone/copy"] = hub.repos.pop(MODEL)
    assert run("pull", "uniavgen", "--repo", "someone/copy")[0] == 0
    assert weights.read_lock(folder).origins[MODEL].repo == "someone/copy"  # type: ignore[union-attr]
    (folder / VAE).unlink()
    assert run("pull", "uniavgen")[0] == 0  # remembers where it came from
    assert run("pull", "uniavgen", "--repo", "no/such=someone/copy")[0] == 2
    assert run("pull", "uniavgen", "--repo", "not a name")[0] == 2


def test_a_token_is_asked_for_and_not_passed_on(
    run: Run, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    code, _, err = run("pull", "uniavgen")
    assert code == 5 and "HF_TOKEN" in error_line(err) and not folder.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, _, err = run("pull", "uniavgen")
    assert code == 0, err
    elsewhere = [request for request in hub.requests if request[1].startswith("/cdn/")]
    assert elsewhere and all(authorization is None for *_, authorization in elsewhere)


def test_a_mirror_that_lists_names_only_is_asked_for_each_file(run: Run, folder: Path, hub: Hub) -> None:
    hub.names_only = True
    assert run("pull", "uniavgen")[0] == 0
    assert run("verify", "uniavgen")[0] == 0
    assert (folder / VAE).read_bytes() == hub.repos[MODEL][VAE]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_found_before_anything_is_fetched(
    run: Run, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    code, _, err = run("pull", "uniavgen")
    assert code == 4 and "are to be fetched" in error_line(err) and "UNIAVGEN_WEIGHTS" in err
    assert hub.fetched() == []


def test_a_disk_that_fills_up_keeps_what_came(
    run: Run, hub: Hub, folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIAVGEN_WEIGHTS", str(small_disk))
    code, _, err = run("pull", "uniavgen")
    assert code == 4 and "are to be fetched" in error_line(err)
    monkeypatch.setattr(hub_client, "_check_space", lambda staging, missing: None)  # someone else filled it
    code, _, err = run("pull", "uniavgen")
    assert code == 4 and "no space left" in error_line(err)
    assert not (small_disk / "uniavgen").exists()


def test_a_folder_is_added_by_links_and_removed_without_its_files(
    run: Run, folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    for name, data in hub.repos[MODEL].items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_bytes(data)
    code, out, err = run("add", str(mine))
    assert (code, out) == (0, f"{folder}\n"), err
    assert "vocab.txt" in err  # warned of: it isn't there
    assert (folder / VAE).is_symlink() and (folder / VAE).resolve() == mine / VAE
    assert not (mine / weights.LOCK_NAME).exists()
    assert run("verify", "uniavgen")[0] == 0
    assert run("path", "uniavgen")[1] == f"{folder}\n"
    code, _, err = run("add", str(mine))
    assert code == 4 and "already" in err
    code, _, err = run("pull", "uniavgen")
    assert code == 4 and "linked" in err
    (mine / VAE).write_bytes(b"other")
    code, _, err = run("verify", "uniavgen")
    assert code == 5 and VAE in error_line(err)
    code, _, err = run("remove", "uniavgen")
    assert code == 2 and "--yes" in err and folder.exists()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *asked, **how: False)
    assert run("remove", "uniavgen")[0] == 130 and folder.exists()
    assert run("remove", "uniavgen", "--yes")[0] == 0
    assert not folder.exists() and files_in(mine) == set(hub.repos[MODEL])
    assert run("remove", "uniavgen", "--yes")[0] == 5


def test_the_hubs_cache_is_added_by_its_snapshot(run: Run, folder: Path, hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--MCG-NJU--UniAVGen"
    snapshot = cache / "snapshots" / ("a" * 40)
    (cache / "blobs").mkdir(parents=True)
    for number, (name, data) in enumerate(hub.repos[MODEL].items()):
        (cache / "blobs" / str(number)).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(cache / "blobs" / str(number))
    code, _, err = run("add", str(cache))
    assert code == 3 and err.endswith(f"such as {snapshot}\n") and not folder.exists()
    assert run("add", str(snapshot))[0] == 0 and run("verify", "uniavgen")[0] == 0
    assert run("remove", "uniavgen", "--yes")[0] == 0
    assert len(list((cache / "blobs").iterdir())) == len(hub.repos[MODEL])


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (3, "no folder", "add missing"),
        (3, "itself holds no .safetensors", "add ."),
        (2, "no name", "add . --name ../x"),
        (2, "not pulled from the hub", "pull nano"),
        (2, "insightface's buffalo_l", "pull insightface"),
        (2, "comes with the package", "remove nano --yes"),
        (2, "did you mean uniavgen", "pull uniavgn"),
        (5, "not installed", "verify uniavgen"),
        (5, "not installed", "remove uniavgen --yes"),
    ],
)
def test_what_can_not_be_done_is_one_line(
    code: int, said: str, line: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended, out, err = run(*line.split())
    assert (ended, out) == (code, "") and said in err.splitlines()[-1]


def test_a_folder_of_ones_own_hides_nothing_that_came_with_the_package(run: Run, tmp_path: Path) -> None:
    def listed() -> dict[str, dict]:
        return {row["name"]: row for row in json.loads(run("list", "--json")[1])["weights"]}

    assert listed()["nano"]["path"] == str(ROOT / "weights" / "nano")
    assert run("path", "nano")[1].strip() == str(ROOT / "weights" / "nano")
    mine = tmp_path / "weights" / "nano"
    shutil.copytree(ROOT / "weights" / "nano", mine)
    assert listed()["nano"]["path"] == str(mine)
    assert run("remove", "nano", "--yes")[0] == 0 and not mine.exists()
    assert listed()["nano"]["installed"] and (ROOT / "weights" / "nano").is_dir()


def test_files_cut_short_are_found_without_checksums(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "weights" / "nano", tmp_path / "nano")
    weights.check_whole(tmp_path / "nano")
    shard = sorted(tmp_path.rglob("joint-*.safetensors"))[0]
    whole = shard.read_bytes()
    for wrong in (whole[:-4], whole[:1000], whole[:4], b"", whole + b"x", b"\xff" * 100):
        shard.write_bytes(wrong)
        with pytest.raises(weights.WeightsError, match=shard.name):
            weights.check_whole(tmp_path / "nano")
    shard.unlink()
    with pytest.raises(weights.WeightsError, match=f"names {shard.name}, which is not there"):
        weights.check_whole(tmp_path / "nano")


def test_the_list_names_licences_and_hashes_from_the_lock(run: Run, folder: Path) -> None:
    code, out, _ = run("list")
    assert code == 0 and "non-commercial use" in out and "non-commercial research only" in out
    assert run("pull", "uniavgen")[0] == 0
    code, out, _ = run("list", "--json")
    row = next(row for row in json.loads(out)["weights"] if row["name"] == "uniavgen")
    assert row["installed"] and "uniavgen" in row["presets"] and "non-commercial" in row["notice"]
    plain = folder.parent / "without-its-lock"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns(weights.LOCK_NAME))
    assert row["sha256"] == weights.weights_sha256(plain)
    assert row["bytes"] == sum(file.size for file in weights.read_lock(folder).files.values())  # type: ignore[union-attr]
    assert run("path", "uniavgen-draft")[1] == f"{folder}\n"


def test_every_registry_entry_says_licence_and_notice() -> None:
    for name, entry in weights.registry().items():
        assert entry.licence and entry.about, name
        assert bool(entry.sources) != bool(entry.by_hand), name
    assert "non-commercial" in weights.registry()["uniavgen"].notice

"""Weights from the Hugging Face hub: whole or not at all, resumed where a pull was cut. No torch.

huggingface_hub itself keeps nothing of a download that was cut, so the part files are kept here and its own
`http_get` goes on from their end; HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read by the client.
"""

import errno
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from uniavgen_cli.config import weights_dir
from uniavgen_cli.engine.weights import (
    LOCK_NAME,
    PULLING,
    Lock,
    LockedFile,
    Origin,
    Progress,
    Source,
    WeightsSet,
    check_whole,
    file_sha256,
    make_folder,
    read_lock,
    registry,
    same_sizes,
    silent,
    write_lock,
)
from uniavgen_cli.errors import OutputError, UsageError, WeightsError

logger = logging.getLogger(__name__)

KEPT = "run it again: what was fetched is kept"
SPARE_BYTES = 256 * 2**20  # left free on the disk, for everything else that writes there


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One file of the hub: where it is, where it goes, and what it must be; sha256 or git's own blob hash."""

    repo: str
    revision: str
    path: str
    to: str
    size: int
    sha256: str
    git_sha1: str


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A set that is installed now; `fetched` of its files came over the network."""

    folder: Path
    files: int
    fetched: int
    bytes: int


def pull(
    name: str,
    *,
    repos: Mapping[str, str] | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> Pulled:
    """Install the set `name` from the hub; `repos` puts other repositories in the place of the registry's.

    The first pull learns revisions, sizes and checksums and writes them to the set's lock; a later one keeps
    to that lock, fetches what is missing, and needs no network when nothing is. `revision` is of the first
    repository. Raises WeightsError for what the hub won't give or gives damaged, OutputError for the disk.
    """
    entry = registry().get(name)
    if entry is None or not entry.sources:
        known = ", ".join(key for key, value in registry().items() if value.sources)
        by_hand = entry.by_hand if entry else f"there are: {known}"
        raise UsageError(f"{name} is not pulled from the hub", by_hand)
    folder = weights_dir() / name
    lock = read_lock(folder)
    if lock is not None and lock.added_from:
        raise OutputError(f"{name} is linked to {lock.added_from}", f"`uniavgen weights remove {name}` first")
    if lock is not None and not repos and not revision and same_sizes(folder, lock):
        return Pulled(folder=folder, files=len(lock.files), fetched=0, bytes=_total(lock))
    if unknown := set(repos or {}) - {source.repo for source in entry.sources}:
        raise UsageError(f"--repo: {name} has no repository {sorted(unknown)[0]}")
    origins = _origins(entry, lock, repos or {}, revision)
    staging = weights_dir() / PULLING / name
    with ExitStack() as stack:
        stack.enter_context(_explained([origin.repo for origin in origins.values()]))
        remotes = [file for source in entry.sources for file in _listing(source, origins[source.repo])]
        make_folder(staging)
        stack.enter_context(_alone(staging))
        here, missing = _sorted_out(folder, staging, remotes, lock)
        _check_space(staging, missing)
        done, total = 0, sum(file.size for file in missing)
        for file in missing:
            _fetch(file, staging, lambda path, now, before=done: progress(path, before + now, total))
            here[file.to] = _locked(file, staging / file.to)
            done += file.size
        progress("", total, total)
        commits = {file.repo: file.revision for file in remotes}
        read_from = {
            named: Origin(repo=origin.repo, revision=commits[origin.repo])
            for named, origin in origins.items()
        }
        lock = Lock(origins=read_from, files=here)
        write_lock(staging, lock)
        _land(staging, folder, {LOCK_NAME, *here})
    return Pulled(folder=folder, files=len(here), fetched=len(missing), bytes=_total(lock))


def _total(lock: Lock) -> int:
    return sum(file.size for file in lock.files.values())


def _origins(
    entry: WeightsSet, lock: Lock | None, repos: Mapping[str, str], revision: str | None
) -> dict[str, Origin]:
    """Where each repository of the registry is really read from: as asked for, else as it was last time."""
    origins = {}
    for i, source in enumerate(entry.sources):
        before = lock.origins.get(source.repo) if lock else None
        origin = before or Origin(repo=source.repo, revision=None)
        if source.repo in repos and repos[source.repo] != origin.repo:
            origin = Origin(repo=repos[source.repo], revision=None)
        if revision and i == 0:
            origin = Origin(repo=origin.repo, revision=revision)
        origins[source.repo] = origin
    return origins


def _locked(file: Remote, path: Path) -> LockedFile:
    return LockedFile(size=file.size, sha256=file.sha256 or file_sha256(path), repo=file.repo)


def _listing(source: Source, origin: Origin) -> list[Remote]:
    """The wanted files of a repository, at its default branch where no revision is named."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    repo = origin.repo
    try:
        info = HfApi().model_info(repo, revision=origin.revision, files_metadata=True)
    except HFValidationError:  # of the name, not of the answer
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a page to log in to, say
        raise WeightsError(
            f"what answers is no hub: it sends no list of {repo}", "check HF_ENDPOINT"
        ) from error
    commit = info.sha
    if commit is None:
        raise WeightsError(f"the hub names no revision of {repo}", "check HF_ENDPOINT")
    remotes = []
    for wanted in source.files:
        found = [file for file in info.siblings or [] if fnmatchcase(file.rfilename, wanted.path)]
        if not found:
            raise WeightsError(f"{repo} holds no {wanted.path}", "--repo names another repository")
        for file in found:
            to = wanted.to or file.rfilename
            if PurePosixPath(to).is_absolute() or ".." in PurePosixPath(to).parts or "\\" in to:
                raise WeightsError(f"{repo} names a file outside its folder: {to}", "do not trust it")
            size, blob = file.size, file.blob_id or ""
            sha256 = file.lfs.sha256 if file.lfs else ""
            if size is None or not (sha256 or blob):  # a mirror that lists names only
                metadata = get_hf_file_metadata(hf_hub_url(repo, file.rfilename, revision=commit))
                size, etag = metadata.size, metadata.etag or ""
                sha256, blob = (etag, "") if len(etag) == 64 else ("", etag if len(etag) == 40 else "")
            if size is None:
                raise WeightsError(f"the hub does not say how large {to} of {repo} is")
            if wanted.sha256 and sha256 and wanted.sha256 != sha256:
                logger.warning("%s of %s is not the file these weights were made with", to, repo)
            remotes.append(
                Remote(
                    repo=repo,
                    revision=commit,
                    path=file.rfilename,
                    to=to,
                    size=size,
                    sha256=sha256,
                    git_sha1=blob,
                )
            )
    return remotes


def _sorted_out(
    folder: Path, staging: Path, remotes: list[Remote], lock: Lock | None
) -> tuple[dict[str, LockedFile], list[Remote]]:
    """What is here already, installed or fetched by a pull that was cut, and what has to be fetched."""
    here, missing = {}, []
    for file in remotes:
        locked = lock.files.get(file.to) if lock else None
        if locked and file.sha256 in (locked.sha256, "") and _has_size(folder / file.to, file.size):
            here[file.to] = locked
        elif path := next((at / file.to for at in (staging, folder) if _is_whole(at / file.to, file)), None):
            here[file.to] = _locked(file, path)
        else:
            missing.append(file)
    return here, missing


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_whole(path: Path, file: Remote) -> bool:
    if not _has_size(path, file.size):
        return False
    if file.sha256:
        return file_sha256(path) == file.sha256
    return not file.git_sha1 or _git_sha1(path) == file.git_sha1


def _git_sha1(path: Path) -> str:
    """What git calls the file's content: the hub has no sha256 of small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_space(staging: Path, missing: list[Remote]) -> None:
    parts = (_part(staging, file) for file in missing)
    need = sum(file.size for file in missing) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(staging).free
    if missing and need + SPARE_BYTES > free:
        raise OutputError(
            f"{need / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free in {weights_dir()}",
            "make room, or name a folder on another disk in UNIAVGEN_WEIGHTS",
        )


def _part(staging: Path, file: Remote) -> Path:
    """Where a file is while it is not whole; named by its content, so that no other goes on from it."""
    return staging / f"{file.to}.{(file.sha256 or file.git_sha1 or file.revision)[:16]}.part"


def _fetch(file: Remote, staging: Path, progress: Any) -> None:
    """Fetch one file to its own name in `staging`, going on from what is there of it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = _part(staging, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as raw:
        counted = _Counted(raw, lambda size: progress(file.to, size))
        while True:
            start = counted.seek(0, io.SEEK_END)
            progress(file.to, start)
            try:
                http_get(
                    hf_hub_url(file.repo, file.path, revision=file.revision),
                    counted,  # type: ignore[arg-type]
                    resume_size=start,
                    # unpacked text would not match the size that is asked for
                    headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                    expected_size=file.size,
                )
                break
            except _transport_error():  # not every version of the client goes on by itself
                if counted.tell() == start:
                    raise
    if not _is_whole(part, file):
        part.unlink()
        raise WeightsError(
            f"{file.to} of {file.repo} arrived damaged: its checksum is not what the hub says", "pull again"
        )
    part.replace(staging / file.to)


class _Counted:
    """A file that tells how long it is with every write."""

    def __init__(self, file: Any, tell: Any) -> None:
        self._file = file
        self._tell = tell

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._tell(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _land(staging: Path, folder: Path, wanted: set[str]) -> None:
    """Move what was fetched to its place: a new set at once, else file by file, each of them whole."""
    for part in [*staging.rglob("*.part")]:
        part.unlink()
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix() not in wanted:
            path.unlink()  # of another revision that was never finished
    if not folder.exists():
        check_whole(staging)
        staging.rename(folder)
        return
    for path in sorted(staging.rglob("*"), key=lambda path: path.name == LOCK_NAME):  # the lock comes last
        target = folder / path.relative_to(staging)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.replace(target)
    shutil.rmtree(staging)
    check_whole(folder)


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """No other pull of the same set runs meanwhile."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(staging) + ".lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise OutputError(f"another pull of {staging.name} is running", "wait for it") from None


@contextmanager
def _explained(repos: list[str]) -> Iterator[None]:
    """The client's errors as ours, in one line; its own log and bars are silent meanwhile."""
    from huggingface_hub import errors, utils

    asked = ", ".join(repos)
    host = os.environ.get("HF_ENDPOINT", "the hub")
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and {asked} is not all here",
            "unset it, or `uniavgen weights add FOLDER` for files you have",
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{asked}: {str(error).splitlines()[0]}", "a repository is OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        raise WeightsError(*_refusal(error, asked, host)) from error
    except _transport_error() as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{host} can't be reached or was cut off ({reason})", KEPT) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left in {weights_dir()}", f"make room, then {KEPT}") from error
        if error.errno is None:  # the client's own: a size that is not what was announced
            raise WeightsError(str(error).splitlines()[0], KEPT) from error
        raise


def _transport_error() -> type[Exception]:
    """What a connection that fails raises: the HTTPError of httpx or httpx2, by the client's version."""
    from huggingface_hub import errors

    return errors.HfHubHTTPError.__mro__[1]


def _refusal(error: Any, asked: str, host: str) -> tuple[str, str]:
    """The hub's answer in words: what it refused, and what to do."""
    status = error.response.status_code if getattr(error, "response", None) is not None else 0
    kind = type(error).__name__
    if status in (401, 403) or kind == "GatedRepoError":
        return (
            f"{host} refuses {asked} without a token that may read it, or has no such repository",
            "set HF_TOKEN, or name another with --repo",
        )
    if status == 404:
        thing = {"RevisionNotFoundError": "no such revision of", "RepositoryNotFoundError": "no repository"}
        return f"{host} has {thing.get(kind, 'not every file of')} {asked} (404)", "name another with --repo"
    return f"{host} answers {status} for {asked}", KEPT

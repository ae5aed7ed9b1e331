"""A small hub on 127.0.0.1 that speaks what huggingface_hub asks of one, and fails when told to."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1000  # bytes from which a file is kept as the hub keeps large ones: by sha256, behind a redirect


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a mapping of paths to contents; the rest are its faults and what it saw."""

    daemon_threads = True

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = self
        self.store = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)  # of large files, as at the hub
        self.store.hub = self  # type: ignore[attr-defined]
        self.repos = repos
        self.token = ""  # without which it refuses, if there is one
        self.cut_after = 0  # bytes of a large file after which the connection breaks
        self.cuts = 0  # how often it breaks; then it lets pass
        self.waits = False  # it stands still where it would have cut
        self.damaged = ""  # a path of which it sends other bytes
        self.lost = ""  # a path it lists and does not have
        self.status = 0  # what it answers for every file
        self.names_only = False  # it lists names without sizes
        self.page = b""  # what it sends in place of a list
        self.requests: list[tuple[str, str, str | None, str | None]] = []  # verb, path, range, authorization
        self.reached = threading.Event()  # set where it cuts or waits

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[tuple[str, str | None]]:
        """Contents asked for so far: the end of the path, and the range."""
        return [
            (path.rpartition("/")[2], asked)
            for verb, path, asked, _ in self.requests
            if verb == "GET" and "/resolve/" in path
        ]


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted((k, _sha256(v)) for k, v in files.items())).encode()).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Any  # the hub or its store

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, verb: str) -> None:
        hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((verb, path, self.headers.get("Range"), self.headers.get("Authorization")))
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":  # what a redirect points to: signed elsewhere, so it needs no token
            repo, name = "/".join(parts[1:3]), "/".join(parts[3:])
            return self._content(name, hub.repos[repo][name])
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._refuse(401, "")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        files = hub.repos.get(repo)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        commit = commit_of(files)
        revision = "/".join(parts[5:]) if api else parts[3]
        if revision not in ("", "main", commit):
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._listing(repo, commit, files)
        name = "/".join(parts[4:])
        if name not in files or name == hub.lost:
            return self._refuse(404, "EntryNotFound")
        if hub.status:
            return self._refuse(hub.status, "")
        large = len(files[name]) >= LARGE
        if not large and verb == "GET":
            return self._content(name, files[name])
        self.send_response(302 if large else 200)
        if large:
            self.send_header("Location", f"http://127.0.0.1:{hub.store.server_address[1]}/cdn/{repo}/{name}")
            self.send_header("X-Linked-Etag", f'"{_sha256(files[name])}"')
            self.send_header("X-Linked-Size", str(len(files[name])))
        self.send_header("ETag", f'"{_git_sha1(files[name])}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0" if large else str(len(files[name])))
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _listing(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        if self.server.hub.page:
            return self._json(self.server.hub.page)
        siblings = []
        for name, content in files.items():
            one: dict[str, object] = {"rfilename": name}
            if not self.server.hub.names_only:
                one |= {"size": len(content), "blobId": _git_sha1(content)}
                if len(content) >= LARGE:
                    one["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 100}
            siblings.append(one)
        self._json(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def _json(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _content(self, name: str, content: bytes) -> None:
        hub: Hub = self.server.hub
        if name == hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.server is hub.store and hub.cuts and start + hub.cut_after < len(content):
            self.wfile.write(content[start : start + hub.cut_after])
            self.wfile.flush()
            hub.cuts -= 1
            hub.reached.set()
            if hub.waits:
                threading.Event().wait(30)
            self.close_connection = True
            return
        self.wfile.write(content[start:])


@contextmanager
def serve(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub(repos)
    servers = (hub, hub.store)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()

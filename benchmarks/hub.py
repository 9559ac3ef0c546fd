"""A Hugging Face hub on loopback: the hub's own protocol, over folders here, with every fault that a hub has.

``Hub(folder)`` serves ``folder/models/OWNER/NAME`` and ``folder/datasets/OWNER/NAME``, each at the revisions ``main``
and its commit. A process that is started with ``HF_ENDPOINT`` at its address (huggingface_hub reads it on import) takes
it for the hub: information and revisions of repositories, listings of files a page at a time, paths, files with their
commit, ETag and size, ranges, redirects to another path for large files, as to the hub's content network, gated and
missing repositories with the hub's own error codes, limits of the rate, and connections that are cut.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

#: Files of these kinds are kept by the hub as large files, and are read from another path.
_LARGE = (".safetensors", ".parquet", ".npz", ".pt")
#: Entries that a listing gives at a time.
_PAGE = 3

_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)/(?P<rest>.*))?")
_FILE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CDN = re.compile(r"/cdn/(?P<digest>[0-9a-f]{64})")


@dataclass
class Faults:
    """What goes wrong; may be changed while the hub runs.

    Attributes
    ----------
    gated, private
        Repositories that are refused without the token ``granted``: gated ones show their files, but do not give them.
    limited, failing
        How many of the next requests are answered with 429 and a ``Retry-After`` of no time; and with 500.
    cuts, cut
        The share of answers that are cut off after a random part, drawn by ``generator``; and what is in the paths of
        those that may be, a regular expression.
    """

    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    limited: int = 0
    failing: int = 0
    cuts: float = 0.0
    cut: str = ""
    generator: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - no secret


class Hub:
    """The hub over a folder; ``url`` is its address, ``faults`` what goes wrong, ``seen`` what it answered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults = Faults()
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = self.url.replace("127.0.0.1", "localhost")  # another host, as for clients of the hub

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Answer requests while the block runs."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def folder(self, kind: str, repo: str) -> Path:
        """Return the folder of a repository."""
        return self.root / kind / repo

    def files(self, kind: str, repo: str) -> dict[str, Path]:
        """Return a repository's files by their paths in it."""
        folder = self.folder(kind, repo)
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, kind: str, repo: str) -> str:
        """Return the commit of a repository's content."""
        content = (f"{name}\0{_sha256(path)}\n" for name, path in self.files(kind, repo).items())
        return hashlib.sha1("".join(content).encode(), usedforsecurity=False).hexdigest()

    def large(self, digest: str) -> Path | None:
        """Return the large file of a digest."""
        large = (path for path in self.root.rglob("*") if path.suffix in _LARGE)
        return next((path for path in large if _sha256(path) == digest), None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ThreadingHTTPServer

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def log_message(self, *_: object) -> None:
        """Say nothing on standard error."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self._is_refused():
            return
        if match := _API.fullmatch(path):
            self._api(match, {**parse_qs(address.query), **parse_qs(body)})
        elif match := _CDN.fullmatch(path):
            self._cdn(match["digest"])
        elif match := _FILE.fullmatch(path):
            self._file(match)
        else:
            self._refuse(404, "", "no such page")

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

    def _is_refused(self) -> bool:
        """Answer that there are too many requests, or that the hub is out of order, while it is to say so."""
        faults = self.hub.faults
        with self.hub.lock:
            limited, failing = faults.limited > 0, faults.failing > 0
            faults.limited, faults.failing = faults.limited - limited, faults.failing - failing
        if limited:
            self._answer(429, b"{}", {"Retry-After": "0"})
        elif failing:
            self._answer(500, b"{}", {})
        return limited or failing

    # --- what is there

    def _known(self, kind: str, repo: str, revision: str, *, content: bool) -> str | None:
        """Return the commit of a revision that may be read; otherwise refuse it as the hub does."""
        faults, granted = self.hub.faults, self.headers.get("Authorization") == "Bearer granted"
        status = 403 if self.headers.get("Authorization") else 401
        if not self.hub.folder(kind, repo).is_dir() or (repo in faults.private and not granted):
            self._refuse(401 if status == 401 else 404, "RepoNotFound", "Repository not found")
            return None
        if content and repo in faults.gated and not granted:
            self._refuse(status, "GatedRepo", f"Access to {kind[:-1]} {repo} is restricted")
            return None
        commit = self.hub.commit(kind, repo)
        if revision not in {"main", commit}:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _api(self, match: re.Match[str], options: dict[str, list[str]]) -> None:
        kind, repo, what = match["kind"], match["repo"], match["what"] or "revision"
        revision, _, below = (match["rest"] or "main").partition("/")
        commit = self._known(kind, repo, revision, content=False)
        if commit is None:
            return
        files = self.hub.files(kind, repo)
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            gated = "auto" if repo in self.hub.faults.gated else False
            self._json({"_id": "0", "id": repo, "sha": commit, "siblings": siblings, "private": False, "gated": gated})
        elif what == "tree":
            self._tree(kind, repo, below, options)
        elif what == "paths-info":
            self._json(
                [_entry(name, self.hub.folder(kind, repo)) for name in options.get("paths", []) if name in files]
            )
        else:
            self._refuse(404, "", f"no {what}")

    def _tree(self, kind: str, repo: str, below: str, options: dict[str, list[str]]) -> None:
        """List a folder, a few entries at a time, and say where the others are."""
        root = self.hub.folder(kind, repo)
        if not (root / below).is_dir():
            self._refuse(404, "EntryNotFound", f"{below} does not exist")
            return
        everything = options.get("recursive") == ["true"]
        paths = sorted((root / below).rglob("*") if everything else (root / below).iterdir())
        first = int(options.get("cursor", ["0"])[0])
        entries = [_entry(path.relative_to(root).as_posix(), root) for path in paths[first : first + _PAGE]]
        address, _, query = self.path.partition("?")
        rest = "&".join(option for option in query.split("&") if not option.startswith("cursor"))
        following = f'<{self.hub.url}{address}?{rest}&cursor={first + _PAGE}>; rel="next"'
        self._json(entries, {"Link": following} if first + _PAGE < len(paths) else {})

    def _file(self, match: re.Match[str]) -> None:
        kind, repo = match["kind"] or "models", match["repo"]
        commit = self._known(kind, repo, match["revision"], content=True)
        if commit is None:
            return
        file = self.hub.files(kind, repo).get(match["path"])
        if file is None:
            self._refuse(404, "EntryNotFound", f"{match['path']} does not exist", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git(file)}"'}
        if file.suffix not in _LARGE:
            self._send(file, headers)
            return
        digest = _sha256(file)
        linked = {"X-Linked-Size": str(file.stat().st_size), "X-Linked-ETag": f'"{digest}"'}
        self._answer(302, b"", headers | linked | {"Location": f"{self.hub.cdn}/cdn/{digest}"})

    def _cdn(self, digest: str) -> None:
        file = self.hub.large(digest)
        if file is None:
            self._refuse(403, "", "Access denied")
        else:
            self._send(file, {"ETag": f'"{digest}"'})

    # --- answers

    def _send(self, file: Path, headers: dict[str, str]) -> None:
        """Send a file, or the range of it that is asked for."""
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked is None:
            self._answer(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._answer(status, json.dumps({"error": message}).encode(), {**told, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        faults = self.hub.faults
        with self.hub.lock:
            whole = status not in {200, 206} or self.command != "GET" or not re.search(faults.cut, self.path)
            cut = not whole and faults.generator.random() < faults.cuts
            part = faults.generator.randrange(len(body)) if cut and body else len(body)
            self.hub.seen["cut" if cut else f"{status} {HTTPStatus(status).phrase}"] += 1
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:part])
        if cut:
            self.wfile.flush()
            self._cut(reset=part % 2 == 0)

    def _cut(self, *, reset: bool) -> None:
        """End the connection: by a reset, as a broken network does, or as if all had been sent."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _git(file: Path) -> str:
    """Return the id that git gives a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(name: str, root: Path) -> dict[str, object]:
    """Return what a listing says of a file or folder."""
    path = root / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    size = path.stat().st_size
    entry: dict[str, object] = {"type": "file", "path": name, "oid": _git(path), "size": size}
    if path.suffix in _LARGE:
        entry["lfs"] = {"oid": _sha256(path), "size": size, "pointerSize": 130}
    return entry

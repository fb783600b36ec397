"""A small Hugging Face Hub on this machine, for real clients: ``python -m tests.hub.local_hub --port 8000 --root DIR``.

It speaks what huggingface_hub needs for models: accounts, repositories, commits over LFS, branches, downloads, card
checks; and it fails on demand. ``DIR/owner/name/`` with files in it is served as the public model ``owner/name``. What
is pushed lives as long as the process. Clients need ``HF_ENDPOINT`` and ``HF_HUB_DISABLE_XET=1``.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from huggingface_hub import ModelCardData

TOKENS = {"hf_owner": "me", "hf_stranger": "stranger", "hf_reader": "you"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png")
LFS_SIZE = 5_000_000
CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """Content of a file: on disk if it is large, and known by its git or LFS hash."""

    path: Path
    size: int
    oid: str
    lfs: bool

    @classmethod
    def of_file(cls, path: Path, lfs: bool) -> "Blob":
        size = path.stat().st_size
        digest = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % size)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return cls(path, size, digest.hexdigest(), lfs)


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, Blob]


@dataclass
class Repo:
    name: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> Commit:
        history = self.branches.setdefault(branch, [])
        seed = f"{self.name} {branch} {len(history)} {sorted((p, b.oid) for p, b in files.items())} {message}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), message, files)
        history.append(made)
        return made

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [commit for history in self.branches.values() for commit in history]
        return next((commit for commit in every if commit.oid == revision), None)


@dataclass
class Fault:
    """``kind`` is a status, ``cut`` (half of the body is read) or ``cut after`` (done, but no one is told)."""

    method: str
    path: str  # regular expression
    kind: int | str
    times: int = 1


class LocalHub:
    """The server; a context manager that runs it in a thread."""

    def __init__(self, root: Path | None = None, port: int = 0) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.failed: list[str] = []
        self._folder = tempfile.TemporaryDirectory()
        self.blobs = Path(self._folder.name)
        for folder in sorted(path for path in (root or self.blobs).glob("*/*") if path.is_dir()):
            self.add(f"{folder.parent.name}/{folder.name}", folder)
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._folder.cleanup()

    def add(self, name: str, folder: Path, private: bool = False) -> Repo:
        """Serve the files of a folder, in place, as a model."""
        files = {
            path.relative_to(folder).as_posix(): Blob.of_file(path, is_lfs(path.name, path.stat().st_size))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        repo = self.repos[name] = Repo(name, private)
        repo.commit("main", files, "as found")
        return repo

    def every_file(self, name: str) -> dict[str, list[list[str]]]:
        """Names of the files in every revision of every branch."""
        with self.lock:
            history = self.repos[name].branches.items()
            return {branch: [sorted(commit.files) for commit in commits] for branch, commits in history}

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        """Content of a file."""
        commit = self.repos[name].find(revision)
        assert commit is not None
        return commit.files[path].path.read_bytes()

    def store(self, content: bytes, lfs: bool) -> Blob:
        path = self.blobs / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return Blob.of_file(path, lfs)


def is_lfs(name: str, size: int) -> bool:
    return name.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def check_card(content: str) -> list[str]:
    """Errors in a card's metadata, by huggingface_hub's own classes."""
    match = re.match(r"^---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1]) or {}
        card = ModelCardData(**data, ignore_metadata_errors=False)
    except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        return [f"metadata: {error}"]
    wrong = [] if isinstance(card.license, str | None) else ["license must be text"]
    for name in ("base_model", "datasets"):
        value = data.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(one)):
                wrong.append(f"{name}: {one!r} is no id on the Hub")
    wrong += [f"tags: {tag!r} is no text" for tag in data.get("tags", []) if not isinstance(tag, str)]
    return wrong


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = {"error": message, **body}


class Handler(BaseHTTPRequestHandler):
    """One request; :data:`ROUTES` says which method answers it."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        self.path, _, self.query = unquote(self.path).partition("?")
        fault = self.fault()
        if fault is not None and fault.kind == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.read_body()
        try:
            if fault is not None and isinstance(fault.kind, int):
                raise RefusedError(fault.kind, "it was told to fail")
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.path)
                if match and self.command in method.split():
                    result = action(self, *match.groups())
                    break
            else:
                raise RefusedError(404, f"nothing at {self.path}")
        except RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.send(json.dumps(refused.body).encode(), refused.status, {k: v for k, v in headers.items() if v})
            return
        if fault is not None:  # cut after
            self.close_connection = True
            self.connection.close()
        elif result is not None:
            self.send(json.dumps(result).encode())

    def fault(self) -> Fault | None:
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method == self.command and re.search(fault.path, self.path):
                    fault.times -= 1
                    self.hub.failed.append(f"{fault.kind} {self.command} {self.path}")
                    return fault
        return None

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, (headers or {}).pop(name, value))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Account of the token

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def repo(self, name: str, write: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        mine = user is not None and name.split("/")[0] == user
        if repo is None or (repo.private and not mine):
            if user is None:  # as the Hub: without a login a client cannot tell missing from private
                raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise RefusedError(401, "Invalid username or password.")
        if write and not mine:
            raise RefusedError(403, "Forbidden: you don't have the rights to write here")
        return repo

    def commit(self, name: str, revision: str) -> Commit:
        found = self.repo(name).find(revision)
        if found is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # Accounts, repositories

    def whoami(self) -> Any:
        user = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        access = {"accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": access}

    def create(self) -> Any:
        wanted, user = json.loads(self.body), self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        owner = wanted.get("organization") or user
        if owner != user:
            raise RefusedError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{wanted['name']}"
        with self.hub.lock:
            if name in self.hub.repos:
                raise RefusedError(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.repos[name] = Repo(name, bool(private))
            attributes = self.hub.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)
            self.hub.repos[name].commit("main", {".gitattributes": attributes}, "initial commit")
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def info(self, name: str, revision: str | None = None) -> Any:
        commit, repo = self.commit(name, revision or "main"), self.repo(name)
        siblings = [{"rfilename": path, "size": blob.size} for path, blob in sorted(commit.files.items())]
        found: dict[str, Any] = {"_id": name, "id": name, "modelId": name, "sha": commit.oid, "tags": []}
        found["private"] = repo.private
        if "README.md" in commit.files:
            card = commit.files["README.md"].path.read_text(encoding="utf-8")
            match = re.match(r"^---\r?\n(.*?)\r?\n---", card, re.DOTALL)
            found["cardData"] = yaml.safe_load(match[1]) if match else {}
            found |= {k: v for k, v in found["cardData"].items() if k in ("pipeline_tag", "library_name")}
        return {**found, "siblings": siblings, "disabled": False, "gated": False, "downloads": 0, "likes": 0}

    def tree(self, name: str, revision: str, folder: str | None = None) -> Any:
        commit, inside = self.commit(name, revision), f"{folder}/" if folder else ""
        found = [entry(path, blob) for path, blob in sorted(commit.files.items()) if path.startswith(inside)]
        if folder and not found:
            raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        return found

    def paths_info(self, name: str, revision: str) -> Any:
        commit = self.commit(name, revision)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        wanted = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        return [entry(path, commit.files[path]) for path in wanted if path in commit.files]

    def refs(self, name: str) -> Any:
        branches = self.repo(name).branches.items()
        found = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": history[-1].oid} for b, history in branches]
        return {"branches": found, "tags": [], "converts": []}

    def branch(self, name: str, branch: str) -> Any:
        repo = self.repo(name, write=True)
        with self.hub.lock:
            if branch in repo.branches:
                raise RefusedError(409, f"Reference already exists: {branch}")
            repo.branches[branch] = list(repo.branches["main"])
        return {}

    # Uploads

    def validate_yaml(self) -> Any:
        errors = [{"message": message} for message in check_card(json.loads(self.body)["content"])]
        if errors:
            raise RefusedError(400, "; ".join(one["message"] for one in errors), errors=errors, warnings=[])
        return {"errors": [], "warnings": []}

    def preupload(self, name: str, revision: str) -> Any:
        self.repo(name, write=True)
        files, now = json.loads(self.body)["files"], self.commit(name, revision).files
        return {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if is_lfs(one["path"], one["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": now[one["path"]].oid if one["path"] in now else None,
                }
                for one in files
            ]
        }

    def lfs_batch(self, name: str) -> Any:
        self.repo(name, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            known = (self.hub.blobs / one["oid"]).is_file()
            upload = {"upload": {"href": f"{self.hub.url}/_lfs/{one['oid']}"}}
            objects.append({"oid": one["oid"], "size": one["size"], **({} if known else {"actions": upload})})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "the content has another hash")
        (self.hub.blobs / oid).write_bytes(self.body)
        return {}

    def make_commit(self, name: str, branch: str) -> Any:
        repo = self.repo(name, write=True)
        with self.hub.lock:
            files, message = dict(self.commit(name, branch).files), ""
            for line in self.body.splitlines():
                key, value = (item := json.loads(line))["key"], item["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), lfs=False)
                elif key == "lfsFile":
                    if not (self.hub.blobs / value["oid"]).is_file():
                        raise RefusedError(400, f"the content of {value['path']} was not uploaded")
                    files[value["path"]] = Blob.of_file(self.hub.blobs / value["oid"], lfs=True)
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    raise RefusedError(400, f"unknown operation {key}")
            made = repo.commit(branch, files, message)
        return {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{made.oid}"}

    # Downloads

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.commit(name, revision)
        blob = commit.files.get(path)
        if blob is None:
            refused = RefusedError(404, "Entry not found", "EntryNotFound")
            headers = {"X-Error-Code": refused.code, "X-Repo-Commit": commit.oid}
            self.send(json.dumps(refused.body).encode(), 404, headers)
            return
        headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(blob.size)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        stop = min(int(asked[2]) + 1, blob.size) if asked and asked[2] else blob.size
        self.send_response(206 if asked else 200)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        for header, value in {**headers, "Content-Length": str(stop - start)}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with blob.path.open("rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(CHUNK, stop - start))):
                self.wfile.write(chunk)
                start += len(chunk)

    # For tests in other processes

    def set_faults(self) -> Any:
        self.hub.faults = [Fault(**one) for one in json.loads(self.body)]
        return {}

    def state(self) -> Any:
        repos = {name: self.hub.every_file(name) for name in self.hub.repos}
        private = sorted(name for name, repo in self.hub.repos.items() if repo.private)
        return {"repos": repos, "private": private, "requests": self.hub.requests, "failed": self.hub.failed}


def entry(path: str, blob: Blob) -> dict[str, Any]:
    large = {"lfs": {"oid": blob.oid, "size": blob.size, "pointerSize": 130}} if blob.lfs else {}
    return {"type": "file", "path": path, "size": blob.size, "oid": blob.oid, **large}


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.make_commit),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("POST", f"/api/models/{NAME}/paths-info/(.+)", Handler.paths_info),
    ("GET", f"/api/models/{NAME}/refs", Handler.refs),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("GET", f"/api/models/{NAME}/revision/(.+)", Handler.info),
    ("GET", f"/api/models/{NAME}", Handler.info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(\w+)", Handler.lfs_put),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("POST", "/_local/faults", Handler.set_faults),
    ("GET", "/_local/state", Handler.state),
]


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--root", type=Path, help="folder with owner/name/ of models to serve")
    options = parser.parse_args()
    hub = LocalHub(options.root, options.port)
    sys.stdout.write(f"HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_owner   serving {sorted(hub.repos)}\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        hub.server.serve_forever()


if __name__ == "__main__":
    main()

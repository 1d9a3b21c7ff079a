"""A server on loopback that stands in for the Hugging Face Hub.

It answers the requests that ``datasets`` makes, and those that publish a model.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from helpers import serve

COMMIT = "c0ffee" * 6 + "cafe"


class HubStandIn:
    """Serves the files of one repository: a data set, or a model, which also accepts uploads.

    As on the Hub, weights are uploaded by LFS and other files in the commit. ``log`` lists the requests.
    """

    def __init__(self, name: str, files: dict[str, bytes], kind: str = "datasets", token: str = "") -> None:
        self.name, self.kind, self.token = name, kind, token
        self._uploaded: dict[str, bytes] = {}
        self.files = files
        self.log: list[str] = []

    def serve(self) -> AbstractContextManager[str]:
        return serve(self._answer)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path = unquote(parts.path)
        self.log.append(f"{request.command} {request.path}")
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        api = f"/api/{self.kind}/{self.name}"
        resolve = f"{'/datasets' if self.kind == 'datasets' else ''}/{self.name}/resolve/"
        known = not self.token or request.headers.get("Authorization") == f"Bearer {self.token}"
        if request.command == "POST" and not known:
            self._json(request, {"error": "Invalid username or password."}, 401)
            return
        if request.command == "POST" and self.kind == "models":
            self._publish(request, path, api, body)
        elif request.command == "PUT" and path.startswith("/uploads/"):
            self._uploaded[path.removeprefix("/uploads/")] = body
            self._json(request, {})
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json(request, {"id": self.name, "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith(f"{api}/tree/"):
            inner = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self._json(request, self._tree(inner, "recursive" in parse_qs(parts.query)))
        elif path.startswith(f"{api}/paths-info/"):
            wanted = parse_qs(body.decode()).get("paths", [])
            if request.headers.get("Content-Type", "").startswith("application/json"):
                wanted = json.loads(body)["paths"]
            self._json(request, [self._entry(name) for name in wanted if name in self.files])
        elif path.startswith(resolve) and path.removeprefix(resolve).partition("/")[2] in self.files:
            self._file(request, self.files[path.removeprefix(resolve).partition("/")[2]])
        else:
            request.send_response(404)
            request.send_header(
                "X-Error-Code", "EntryNotFound" if path.startswith(resolve) else "RepoNotFound"
            )
            request.send_header("Content-Length", "0")
            request.end_headers()

    def _publish(self, request: BaseHTTPRequestHandler, path: str, api: str, body: bytes) -> None:
        here = f"http://{request.headers['Host']}"
        if path == "/api/repos/create":
            wanted = json.loads(body)
            assert f"{wanted['organization']}/{wanted['name']}" == self.name
            self._json(request, {"url": f"{here}/{self.name}", "id": self.name, "name": self.name})
        elif path == "/api/validate-yaml":
            self._json(request, {"errors": [], "warnings": []})
        elif path == f"{api}/preupload/main":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
            self._json(request, {"files": modes})
        elif path == f"/{self.name}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{here}/uploads/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            self._json(request, {"transfer": "basic", "objects": objects})
        elif path == f"{api}/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = self._uploaded[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    self.files[value["path"]] = content
            self._json(request, {"commitUrl": f"{here}/{self.name}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json(request, {"error": f"not found: {path}"}, 404)

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, object]] = {}
        for name in self.files:
            if not name.startswith(prefix):
                continue
            first, slash, _ = name.removeprefix(prefix).partition("/")
            if slash:
                entries[prefix + first] = {
                    "type": "directory",
                    "path": prefix + first,
                    "size": 0,
                    "oid": COMMIT,
                }
            if not slash or recursive:
                entries[name] = self._entry(name)
        return list(entries.values())

    def _json(self, request: BaseHTTPRequestHandler, value: object, status: int = 200) -> None:
        self._send(request, json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        tag = hashlib.sha1(content).hexdigest()
        self._send(request, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _send(
        self, request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], status: int = 200
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


def serve_all(*hubs: HubStandIn) -> AbstractContextManager[str]:
    """Serve several repositories at one address; the first also says that there are no others."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path) + "/"
        next((hub for hub in hubs if f"/{hub.name}/" in path), hubs[0])._answer(request)

    return serve(answer)


@contextmanager
def instead_of_the_hub(hub: HubStandIn, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let huggingface_hub in this process talk to ``hub``, and keep what it downloads in ``cache``.

    The library reads its environment when it is imported. So the variables of a user would change nothing here.
    """
    from huggingface_hub import constants

    with hub.serve() as address, monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield

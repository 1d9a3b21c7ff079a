"""A stand-in for the Hugging Face Hub's interface, on loopback: as much of it as ``datasets`` asks for."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from helpers import serve

COMMIT = "c0ffee" * 6 + "cafe"


class HubStandIn:
    """Serves one data set's files. ``log`` keeps the requests."""

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name = name
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
        api = f"/api/datasets/{self.name}"
        resolve = f"/datasets/{self.name}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
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

    def _json(self, request: BaseHTTPRequestHandler, value: object) -> None:
        self._send(request, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        tag = hashlib.sha1(content).hexdigest()
        self._send(request, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _send(self, request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
        request.send_response(200)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

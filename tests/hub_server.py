"""A model hub on this machine, which speaks the few addresses that loading and publishing need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit


class Hub:
    """``repositories`` are commits, oldest first, by name: each commit is (its identifier, its files)."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []
        self.token = "hf_of_the_tests"
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.serve(self)

            do_GET = do_POST = do_HEAD  # noqa: N815 - the names that the base class looks for

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, name: str, changed: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(name, [])
        files = {**(commits[-1][1] if commits else {}), **changed}
        text = json.dumps({key: hashlib.sha256(value).hexdigest() for key, value in files.items()}, sort_keys=True)
        commits.append((hashlib.sha1(f"{len(commits)} {text}".encode()).hexdigest(), files))
        return commits[-1][0]

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        status, headers, content = self.answer(path.strip("/").split("/"), body, request.headers.get("Authorization"))
        request.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def answer(self, parts: list[str], body: bytes, who: str | None) -> tuple[int, dict[str, str], bytes]:
        if parts[0] == "api":
            if who != f"Bearer {self.token}":
                return 401, {}, b"{}"
            return self.api(parts[1:], body)
        owner, name, _, revision, *file = parts
        commits = self.repositories.get(f"{owner}/{name}")
        if commits is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        found = [one for one in commits if revision in (one[0], "main")]
        if not found:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, files = found[-1]
        content = files.get("/".join(file))
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    def api(self, parts: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        def said(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
            return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, [])
            return said({"url": f"{self.url}/{name}", "id": name, "name": name})
        if parts == ["validate-yaml"]:
            return said({"errors": [], "warnings": []})
        _, owner, name, action = parts[:4]
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return said({"files": modes})
        if action == "commit":
            lines = [json.loads(line)["value"] | {"_": json.loads(line)["key"]} for line in body.splitlines()]
            changed = {one["path"]: base64.b64decode(one["content"]) for one in lines if one["_"] == "file"}
            commit = self.commit(f"{owner}/{name}", changed)
            return said({"commitUrl": f"{self.url}/{owner}/{name}/commit/{commit}", "commitOid": commit})
        return said(
            {
                "id": f"{owner}/{name}",
                "siblings": [],
                "sha": (self.repositories[f"{owner}/{name}"] or [("0" * 40,)])[-1][0],
            }
        )

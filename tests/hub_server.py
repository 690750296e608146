"""A stand-in for the Hugging Face hub's HTTP API, in a thread on loopback.

It does what a client needs to make a repository and commit a folder to it: small files in the
commit itself, large ones by Git LFS beforehand.
"""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LFS_FROM = 4096  # bytes


class Hub:
    """`repos` holds whether a repository is private, `files` what was committed to each.

    `requests` are (method, path, headers, body) of all that came in. Where `refuse` is a status,
    uploads of commits get it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.refuse = 0
        self.url = ""

    async def handle(self, request: Request) -> Response:
        body, path = await request.body(), request.url.path
        self.requests.append((request.method, path, dict(request.headers), body))
        repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return JSONResponse({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return JSONResponse({"transfer": "basic", "objects": self.batch(json.loads(body))})
        if request.method == "PUT":
            self.lfs[path.rpartition("/")[2]] = body
            return Response()
        if path.startswith("/verify/"):
            told = json.loads(body)
            found = self.lfs[told["oid"]]
            assert hashlib.sha256(found).hexdigest() == told["oid"]
            return JSONResponse({}, 200 if len(found) == told["size"] else 400)
        if "/preupload/" in path:
            return JSONResponse({"files": [self.mode(each) for each in json.loads(body)["files"]]})
        if "/commit/" in path:
            if self.refuse:
                return JSONResponse({"error": "no room"}, self.refuse)
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return JSONResponse({"id": repo, "private": self.repos[repo], "siblings": []})

    def create(self, told) -> Response:
        repo = f"{told['organization']}/{told['name']}"
        if repo in self.repos:
            return JSONResponse({"error": "exists", "url": f"{self.url}/{repo}"}, 409)
        self.repos[repo] = told.get("visibility") == "private"
        return JSONResponse({"url": f"{self.url}/{repo}"})

    def batch(self, told):
        return [
            {
                **each,
                "actions": {
                    "upload": {"href": f"{self.url}/lfs/{each['oid']}"},
                    "verify": {"href": f"{self.url}/verify/{each['oid']}"},
                },
            }
            for each in told["objects"]
        ]

    @staticmethod
    def mode(each):
        mode = "lfs" if each["size"] >= LFS_FROM else "regular"
        return {"path": each["path"], "uploadMode": mode, "shouldIgnore": False}

    def commit(self, repo, lines) -> Response:
        files = self.files.setdefault(repo, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.lfs[value["oid"]]
        oid = "0" * 40
        url = f"{self.url}/{repo}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url})

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        methods = ["GET", "POST", "PUT"]
        app = Starlette(routes=[Route("/{path:path}", self.handle, methods=methods)])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                yield self
            finally:
                server.should_exit = True
                thread.join()

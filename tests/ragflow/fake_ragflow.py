"""A RAGFlow of any version from 0.17 to 0.27, with its model routes alone: same paths, same keys, same refusals."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "ragflow-k3y"
EMAIL, PASSWORD, TOKEN = "me@example.com", "秘密 pass", "a-login-token"
TENANT = "tenant-1"

Body = dict[str, Any]
Said = tuple[int, str, Any]  # code, message, data
Route = Callable[[Body], Said]


class Refused(Exception):
    """Code and message."""


class FakeRagflow(ThreadingHTTPServer):
    """
    Args:
        version: of RAGFlow, such as (0, 26, 0).
        reaches: base URLs at which it finds a model server.
        read_password: what decrypts a login.
    """

    daemon_threads = True

    def __init__(
        self, version: tuple[int, int, int], reaches: set[str], read_password: Callable[[bytes], bytes] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version, self.reaches, self.read_password = version, reaches, read_password
        self.providers: set[str] = set()
        self.instances: dict[str, Body] = {}
        self.models: dict[tuple[str, str], Body] = {}  # of the older API, by factory and name
        self.defaults: dict[str, Body] = {}
        self.tenant: Body = dict.fromkeys(("llm_id", "embd_id", "rerank_id", "asr_id", "img2txt_id", "tts_id"))
        self.tenant |= {"asr_id": "paraformer@Tongyi-Qianwen", "tts_id": None, "img2txt_id": ""}
        self.changes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def routes(self) -> dict[str, Route]:
        if self.version >= (0, 26):
            return {
                "GET /api/v1/providers": lambda _: (0, "", [{"name": name} for name in sorted(self.providers)]),
                "PUT /api/v1/providers": self.add_provider,
                "GET /api/v1/providers/Xinference/instances": self.list_instances,
                "POST /api/v1/providers/Xinference/instances": self.create_instance,
                "GET /api/v1/models/default": lambda _: (0, "", {"models": list(self.defaults.values())}),
                "PATCH /api/v1/models/default": self.set_default,
            } | {f"PUT /api/v1/providers/Xinference/instances/{name}": self.update_instance for name in self.instances}
        newer = self.version >= (0, 25, 1)
        read, write = "GET /v1/user/tenant_info", "POST /v1/user/set_tenant_info"
        if newer:
            read, write = "GET /api/v1/users/me/models", "PATCH /api/v1/users/me/models"
        return {
            f"POST {'/api/v1/auth/login' if newer else '/v1/user/login'}": self.login,
            "POST /v1/llm/add_llm": self.add_llm,
            read: lambda _: (0, "success", {"tenant_id": TENANT, "name": "x"} | self.tenant),
            write: self.set_tenant,
        }

    def knows(self, authorization: str) -> bool:
        """API keys are taken from 0.23 on; the token of a login is sent without `Bearer`."""
        return authorization == TOKEN or (authorization == f"Bearer {API_KEY}" and self.version >= (0, 23))

    def _access(self, base: str, name: str) -> None:
        if base not in self.reaches:
            raise Refused(102, f"\nFail to access model(Xinference/{name}).Connection error.")

    # from 0.26
    def add_provider(self, body: Body) -> Said:
        name = self._wanted(body, "provider_name")["provider_name"]
        if name in self.providers:
            raise Refused(102, f"Provider {name} already exists")
        self.providers.add(name)
        return 0, "success", None

    def list_instances(self, _: Body) -> Said:
        self._provided()
        return 0, "", [{"id": name, "instance_name": name, "status": "1"} for name in self.instances]

    def create_instance(self, body: Body) -> Said:
        self._provided()
        name = self._wanted(body, "instance_name", "api_key")["instance_name"]
        if name == "default":
            raise Refused(102, "Instance name cannot be 'default'")
        if not body.get("model_info"):
            raise Refused(102, "No models found for provider 'Xinference'")
        for other in self.instances.values():
            if other["api_key"] == body["api_key"]:
                raise Refused(102, f"Already exist instance: {other['instance_name']} with api_key {body['api_key']}")
        self._access(body["base_url"], body["model_info"][0]["model_name"])
        self.instances[name if name not in self.instances else f"{name}_1"] = body
        return 0, "success", None

    def update_instance(self, body: Body) -> Said:
        if not body["verify"]:
            raise Refused(102, "it would not look")
        self._access(body["base_url"], body["model_info"][0]["model_name"])
        self.instances[body["instance_name"]] = body
        return 0, "success", None

    def set_default(self, body: Body) -> Said:
        kind = self._wanted(body, "model_type")["model_type"]
        info = self.instances.get(body["model_instance"], {}).get("model_info", [])
        if not any(one["model_name"] == body["model_name"] and kind in one["model_type"] for one in info):
            raise Refused(102, f"Model '{body['model_name']}' isn't a {kind} model")
        self.defaults[kind] = body | {"enable": True}
        return 0, "success", None

    def _provided(self) -> None:
        if "Xinference" not in self.providers:
            raise Refused(102, "No provider found for provider 'Xinference'")

    # up to 0.25
    def add_llm(self, body: Body) -> Said:
        self._wanted(body, "llm_factory", "model_type", "llm_name")
        self._access(body["api_base"], body["llm_name"])
        self.models[body["llm_factory"], body["llm_name"]] = body
        return 0, "success", True

    def set_tenant(self, body: Body) -> Said:
        self._wanted(body, "tenant_id", "asr_id", "embd_id", "img2txt_id", "llm_id")
        if body.pop("tenant_id") != TENANT:
            raise Refused(102, "No tenant")
        self.tenant |= body
        return 0, "success", True

    def login(self, body: Body) -> Said:
        assert self.read_password is not None
        if body["email"] != EMAIL:
            raise Refused(109, f"Email: {body['email']} is not registered!")
        if base64.b64decode(self.read_password(base64.b64decode(body["password"]))).decode() != PASSWORD:
            raise Refused(109, "Email and password do not match!")
        return 0, "Welcome back!", {"email": EMAIL}

    @staticmethod
    def _wanted(body: Body, *names: str) -> Body:
        missing = [name for name in names if name not in body]
        if missing:
            raise Refused(101, f"required argument are missing: {','.join(missing)}; ")
        return body


class Handler(BaseHTTPRequestHandler):
    server: FakeRagflow

    def do_GET(self) -> None:
        call = f"{self.command} {self.path}"
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        route = self.server.routes().get(call)
        if route is None:
            self._say(404, {"code": 404, "message": f"Not Found: {self.path}", "data": None, "error": "Not Found"})
            return
        if not call.endswith("/login") and not self.server.knows(self.headers.get("authorization", "")):
            self._say(401, {"code": 401, "message": "<Unauthorized '401: Unauthorized'>", "data": None})
            return
        if self.command != "GET":
            self.server.changes.append(call)
        try:
            code, message, data = route(body)
        except Refused as no:
            code, message, data = *no.args, None
        token = {"Authorization": TOKEN} if call.endswith("/login") and code == 0 else {}
        self._say(200, {"code": code, "message": message, "data": data}, token)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def _say(self, status: int, said: Body, headers: dict[str, str] | None = None) -> None:
        answer = json.dumps(said).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(fake: FakeRagflow) -> Iterator[FakeRagflow]:
    with fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            fake.shutdown()
            thread.join()

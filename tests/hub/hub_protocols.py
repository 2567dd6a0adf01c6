"""What the two hubs answer: from a request to an `Answer`, without any fault and without a socket."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_faults import Answer
from hub_repos import Repo, huggingface_info, huggingface_tree, modelscope_files

Stage = Literal["listing", "resolve", "bytes", "other"]
SIGNATURE = "Signature=swordfish"  # in every address of the CDN; it must never be shown to anyone
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class World:
    """What a server knows when it answers."""

    repos: dict[str, Repo]
    hub: str  # its address
    cdn: str
    page: int  # entries in one page of Hugging Face's listing
    most: int  # entries that ModelScope lists at once


@dataclass(frozen=True)
class Routed:
    stage: Stage
    path: str | None  # of a file
    answer: Answer


def route(world: World, method: str, url: str, headers: dict[str, str]) -> Routed:
    """The answer to one request; names of `headers` in lower case. A HEAD is answered with the body that a GET has."""
    parts = urlsplit(url)
    path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
    if path.startswith("/cdn/"):
        return _cdn(world, path, parts.query, headers)
    for pattern, answer in _ROUTES:
        if found := re.fullmatch(pattern, path):
            routed = answer(world, found.groupdict(""), query, headers)
            return Routed("resolve", routed.path, routed.answer) if method == "HEAD" else routed
    return Routed("other", None, Answer(404, {}, b"no such address"))


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(data).encode())


def ranged(data: bytes, headers: dict[str, str], more: dict[str, str]) -> Answer:
    """`data`, or the part of it that is asked for."""
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None:
        return Answer(200, {"Accept-Ranges": "bytes", **more}, data)
    start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    if start >= len(data):
        return Answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
    return Answer(206, {"Content-Range": f"bytes {start}-{end}/{len(data)}", **more}, data[start : end + 1])


def _cdn(world: World, path: str, query: str, headers: dict[str, str]) -> Routed:
    name, _, file = path.removeprefix("/cdn/").partition("/-/")
    if SIGNATURE not in query or "authorization" in headers:  # object stores refuse two ways to sign at once
        return Routed("bytes", file, Answer(403, {}, b"<Error>AccessDenied</Error>"))
    repo = world.repos[name]
    if not repo.ranges:
        headers = {}
    return Routed("bytes", file, ranged(repo.files[file], headers, {"ETag": f'"{repo.sha256(file)}"'}))


def _on_cdn(world: World, repo: Repo, file: str) -> str:
    return f"{world.cdn}/cdn/{repo.name}/-/{quote(file)}?Expires=1&{SIGNATURE}"


# Hugging Face


def _hf_refusal(repo: Repo | None, name: str, headers: dict[str, str], *, file: bool) -> Answer | None:
    """Why this caller may not read it; None when they may. Everyone may list what is in a gated model."""
    given = headers.get("authorization", "").removeprefix("Bearer ")
    if repo is not None and (repo.token is None or given == repo.token or (repo.gated and not file)):
        return None
    if repo is None or not repo.gated:  # whoever has no token cannot tell a missing model from a private one
        return _hf_error(404 if given else 401, "RepoNotFound", "Repository not found")
    message = f"Access to model {name} is restricted. You must have access to it and be authenticated to access it."
    return _hf_error(403 if given else 401, "GatedRepo", message)


def _hf_error(status: int, code: str, message: str) -> Answer:
    return _json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


def _hf_info(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    repo = world.repos.get(at["repo"])
    refusal = _hf_guard(repo, at, headers)
    return Routed("listing", None, refusal or _json(huggingface_info(_found(repo), blobs="blobs" in query)))


def _found(repo: Repo | None) -> Repo:
    assert repo is not None
    return repo


def _hf_guard(repo: Repo | None, at: dict[str, str], headers: dict[str, str]) -> Answer | None:
    if refusal := _hf_refusal(repo, at["repo"], headers, file="file" in at):
        return refusal
    if (at["revision"] or "main") not in (_found(repo).commit, *_found(repo).revisions):
        return _hf_error(404, "RevisionNotFound", f"Invalid rev id: {at['revision']}")
    return None


def _hf_tree(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    repo = world.repos.get(at["repo"])
    if refusal := _hf_guard(repo, at, headers):
        return Routed("listing", None, refusal)
    entries, start = huggingface_tree(_found(repo)), int(query.get("cursor", 0))
    end, more = start + world.page, {}
    if end < len(entries):
        address = f"{world.hub}/api/models/{at['repo']}/tree/{at['revision']}?recursive=True&cursor={end}"
        more = {"Link": f'<{address}>; rel="next"'}
    return Routed("listing", None, _json(entries[start:end], headers=more))


def _hf_resolve(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    repo, file = world.repos.get(at["repo"]), at["file"]
    if refusal := _hf_guard(repo, at, headers):
        return Routed("resolve", file, refusal)
    repo = _found(repo)
    if file not in repo.files:
        return Routed("resolve", file, _hf_error(404, "EntryNotFound", "Entry not found"))
    etag, size = f'"{repo.etag(file)}"', str(len(repo.files[file]))
    known = {"X-Repo-Commit": repo.commit, "X-Linked-Etag": etag, "X-Linked-Size": size, "ETag": etag}
    if not repo.is_large(file):
        if at["cache"]:
            return Routed("bytes", file, ranged(repo.files[file], headers, known))
        address = f"/api/resolve-cache/models/{repo.name}/{repo.commit}/{quote(file)}"
        return Routed("resolve", file, Answer(307, {**known, "Location": address}))
    if repo.xet:
        refresh = f"{world.hub}/api/models/{repo.name}/xet-read-token/{repo.commit}"
        known |= {"X-Xet-Hash": repo.sha256(file), "X-Xet-Refresh-Route": refresh}
        known |= {"Link": f'<{refresh}>; rel="xet-auth"'}
    return Routed("resolve", file, Answer(302, {**known, "Location": _on_cdn(world, repo, file)}))


# ModelScope


def _ms_error(status: int, code: int, message: str) -> Answer:
    return _json({"Code": code, "Message": message, "RequestId": "0", "Success": False}, status)


def _ms_guard(repo: Repo | None, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Answer | None:
    if repo is None:
        return _ms_error(404, 10010205001, f"Model {at['repo']} does not exist")
    given = headers.get("authorization", "").removeprefix("Bearer ")
    listing = "FilePath" not in query
    if repo.token is not None and given != repo.token and not (repo.gated and listing):
        return _ms_error(403, 10010205004, "access denied") if given else _ms_error(401, 10990101020, "用户未登录")
    if query.get("Revision", "master") not in (repo.commit, *repo.revisions):
        return _ms_error(404, 10010205007, f"Revision {query['Revision']} does not exist")
    return None


def _ms_files(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    repo = world.repos.get(at["repo"])
    if refusal := _ms_guard(repo, at, query, headers):
        return Routed("listing", None, refusal)
    entries = modelscope_files(_found(repo), query.get("Root", ""), recursive=query.get("Recursive") == "True")
    data = {"Files": entries[: world.most], "LatestCommitter": {"Id": ""}, "IsVisual": 0}
    envelope = {"Code": 200, "Data": data, "Message": "success", "RequestId": "0", "Success": True}
    return Routed("listing", None, _json(envelope))


def _ms_file(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    repo, file = world.repos.get(at["repo"]), query.get("FilePath", "")
    if refusal := _ms_guard(repo, at, query, headers):
        return Routed("resolve", file, refusal)
    repo = _found(repo)
    if file not in repo.files:
        return Routed("resolve", file, _ms_error(404, 10010205003, f"File {file} does not exist"))
    if repo.is_large(file):
        return Routed("resolve", file, Answer(302, {"Location": _on_cdn(world, repo, file)}))
    return Routed("bytes", file, Answer(200, {}, repo.files[file]))  # it takes no notice of a range here


def _ms_region(world: World, at: dict[str, str], query: dict[str, str], headers: dict[str, str]) -> Routed:
    return Routed("other", None, _json({"Data": {"InternalRegionQueryAddress": f"{world.cdn}/region-id"}}))


_ID = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    (rf"/api/v1/models/{_ID}/repo/files", _ms_files),
    (rf"/api/v1/models/{_ID}/repo", _ms_file),
    (r"/api/v1/repos/internalAccelerationInfo", _ms_region),
    (rf"/api/models/{_ID}(/revision/(?P<revision>[^/]+))?", _hf_info),
    (rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)", _hf_tree),
    (rf"(?P<cache>/api/resolve-cache/models)/{_ID}/(?P<revision>[^/]+)/(?P<file>.+)", _hf_resolve),
    (rf"(?P<cache>)/{_ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _hf_resolve),
)

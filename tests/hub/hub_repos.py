"""A model repository, and how each of the two hubs describes it in JSON."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    name: str  # "BAAI/bge-m3"
    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main", "master")  # branches and tags, beside the commit
    token: str | None = None  # the only one that may read it
    gated: bool = False  # it shows that it exists, and wants its terms accepted
    large: int = 1024  # files of at least so many bytes come by a redirect to the CDN, as LFS files do
    ranges: bool = True  # the CDN can send parts of files
    xet: bool = False  # large files are offered over Xet too
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # path -> {"size": ..., "sha256": ...}: lies

    def is_large(self, path: str) -> bool:
        return len(self.files[path]) >= self.large

    def size(self, path: str) -> int:
        return int(self.listed.get(path, {}).get("size", len(self.files[path])))

    def sha256(self, path: str) -> str:
        return str(self.listed.get(path, {}).get("sha256", hashlib.sha256(self.files[path]).hexdigest()))

    def git_sha1(self, path: str) -> str:
        data = self.files[path]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def etag(self, path: str) -> str:
        return self.sha256(path) if self.is_large(path) else self.git_sha1(path)

    def folders(self) -> list[str]:
        parents = {str(parent) for path in self.files for parent in PurePosixPath(path).parents}
        return sorted(parents - {"."})


def huggingface_tree(repo: Repo) -> list[dict[str, Any]]:
    """`/api/models/ID/tree/REVISION?recursive=True`, all pages."""
    folders = [{"type": "directory", "oid": repo.commit, "size": 0, "path": path} for path in repo.folders()]
    return folders + [_huggingface_file(repo, path) for path in sorted(repo.files)]


def _huggingface_file(repo: Repo, path: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": repo.git_sha1(path), "size": repo.size(path), "path": path}
    if repo.is_large(path):
        entry["lfs"] = {"oid": repo.sha256(path), "size": repo.size(path), "pointerSize": 134}
        if repo.xet:
            entry["xetHash"] = repo.sha256(path)
    return entry


def huggingface_info(repo: Repo, *, blobs: bool) -> dict[str, Any]:
    """`/api/models/ID/revision/REVISION`. It need not name every file of a large repository: here, the first 1000."""
    names = {"path": "rfilename", "oid": "blobId", "size": "size", "lfs": "lfs"} if blobs else {"path": "rfilename"}
    files = [_huggingface_file(repo, path) for path in sorted(repo.files)[:1000]]
    siblings = [{new: entry[old] for old, new in names.items() if old in entry} for entry in files]
    for sibling in siblings:
        if "lfs" in sibling:
            sibling["lfs"] = {"sha256": sibling["lfs"]["oid"], "size": sibling["size"], "pointerSize": 134}
    known = {"private": repo.token is not None, "gated": "manual" if repo.gated else False}
    return {"_id": "0", "id": repo.name, "modelId": repo.name, "sha": repo.commit, "siblings": siblings, **known}


def modelscope_files(repo: Repo, root: str, *, recursive: bool) -> list[dict[str, Any]]:
    """`Data.Files` of `/api/v1/models/ID/repo/files`."""
    entries = [_modelscope_folder(path) for path in repo.folders()]
    entries += [_modelscope_file(repo, path) for path in sorted(repo.files)]
    parent = PurePosixPath(root or ".")
    inside = [entry for entry in entries if not root or parent in PurePosixPath(entry["Path"]).parents]
    return inside if recursive else [entry for entry in inside if PurePosixPath(entry["Path"]).parent == parent]


def _modelscope_folder(path: str) -> dict[str, Any]:
    return {"Path": path, "Name": PurePosixPath(path).name, "Type": "tree", "Size": 0}


def _modelscope_file(repo: Repo, path: str) -> dict[str, Any]:
    return {
        "Path": path,
        "Name": PurePosixPath(path).name,
        "Type": "blob",
        "Mode": "33188",
        "Size": repo.size(path),
        "Sha256": repo.sha256(path),
        "IsLFS": repo.is_large(path),
        "Revision": repo.commit,
        "CommittedDate": 1700000000,
        "CommitMessage": "Upload",
    }

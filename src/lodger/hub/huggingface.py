"""Hugging Face's hub, through `huggingface_hub` (1.5 and newer, 2).

Addresses, headers, tokens (`HF_TOKEN`, or the login of its own command line), mirrors (`HF_ENDPOINT`), proxies and the
meaning of refusals are the SDK's. The bytes we stream ourselves over its session: `hf_hub_download` throws away what
has come when it fails or is killed, and `http_get` writes, and counts, 10 MiB at a time.

Never over Xet: it does not resume, and it fetches from hosts of its own choice past HF_ENDPOINT and our proxy. Files
that are stored there come over HTTP as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lodger.catalogue.repository import HubName
from lodger.errors import HubProblem, HubRefused, HubUnreachable
from lodger.hub.answers import (
    Asked,
    Meter,
    Retries,
    no_permission,
    nonsense,
    refusal,
    remote_file,
    seconds,
    silence,
    unknown,
    wrong_size,
)
from lodger.hub.base import Listing, RemoteFile

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile, RepoSibling

OFFICIAL_HOST = "huggingface.co"
MANY = 1000  # files; a description of a model need not name more


class HuggingFaceHub:
    name: HubName = "huggingface"

    def __init__(self, retries: Retries | None = None) -> None:
        self.retries = retries or Retries()

    def list_files(self, repo: str, revision: str | None) -> Listing:
        """As `Hub.list_files`. The revision is a commit."""
        return self.retries.run(lambda: self._list(repo, revision))

    def download(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], None]) -> Path:
        """As `Hub.download`."""
        target = folder / file.path
        if target.is_file() and target.stat().st_size == file.size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.incomplete")
        part.touch()
        meter = Meter(advance, part.stat().st_size)
        self.retries.run(lambda: self._fetch(listing, file, part, meter))
        return part.replace(target)

    def _list(self, repo: str, revision: str | None) -> Listing:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.hf_api import RepoFile

        with self._problems(repo, revision) as asked:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
            files: list[RepoFile | RepoSibling] = list(info.siblings or ())
            if len(files) >= MANY or any(file.size is None for file in files):
                tree = HfApi().list_repo_tree(repo, recursive=True, revision=info.sha)
                files = [entry for entry in tree if isinstance(entry, RepoFile)]
            found = tuple(_described(asked, file) for file in files)
            return Listing(self.name, repo, info.sha or revision or constants.DEFAULT_REVISION, found)

    def _fetch(self, listing: Listing, file: RemoteFile, part: Path, meter: Meter) -> None:
        """Bring `part` to the size of `file`, from where it is."""
        from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazy

        start = part.stat().st_size
        if start == file.size:
            return
        with self._problems(listing.repo, listing.revision, file.path) as asked:
            place = get_hf_file_metadata(hf_hub_url(listing.repo, file.path, revision=listing.revision)).location
            headers = build_hf_headers(headers={"Accept-Encoding": "identity"})  # so that ranges are of the file
            if not _may_have_token(place, asked.address):
                headers.pop("authorization", None)
            if 0 < start < file.size:
                headers["Range"] = f"bytes={start}-"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", place, headers=headers, timeout=timeout) as response:
                if response.status_code == 416:  # the part goes beyond the file, so it is of another one
                    os.truncate(part, 0)
                hf_raise_for_status(response)
                _receive(response, asked, file, part, meter)

    @contextmanager
    def _problems(self, repo: str, revision: str | None, path: str | None = None) -> Iterator[Asked]:
        """Whatever the SDK raises, as our errors; what the disk says, as it is."""
        from huggingface_hub import constants, errors

        asked = Asked(self.name, constants.ENDPOINT, "HF_ENDPOINT", "HF_TOKEN", repo, revision, path)
        try:
            yield asked
        except errors.HfHubHTTPError as error:
            raise _meaning(asked, error) from error
        except errors.HTTPError as error:  # type: ignore[attr-defined]  # httpx's, or httpx2's since 2.0
            raise silence(asked, error) from error
        except errors.OfflineModeIsEnabled as error:
            raise HubUnreachable(
                f"{asked.who} was not asked: the environment says HF_HUB_OFFLINE.", hint="Unset it to download."
            ) from error
        except errors.HFValidationError as error:
            raise HubRefused(
                f"{repo!r} is no name of a model on {asked.who}.", hint="Names are as ORG/NAME."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise nonsense(asked) from error


def _meaning(asked: Asked, error: HfHubHTTPError) -> HubProblem:
    from huggingface_hub import errors

    response = error.response
    if isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
        return no_permission(asked, response.status_code)
    if isinstance(error, errors.RepositoryNotFoundError):  # 401 where there is no token
        return unknown(asked, response.status_code)
    wait = seconds(response.headers.get("Retry-After"))
    return refusal(asked, response.status_code, url=str(response.request.url), retry_after=wait)


def _described(asked: Asked, file: RepoFile | RepoSibling) -> RemoteFile:
    sha256 = file.lfs.sha256 if file.lfs else None
    return remote_file(asked, file.rfilename, file.size or 0, sha256, None if sha256 else file.blob_id)


def _may_have_token(url: str, address: str) -> bool:
    """Only the hub may, and the hub that a mirror sends us on to: never its storage."""
    parts, ours = urlsplit(url), urlsplit(address)
    return (parts.scheme, parts.netloc) in ((ours.scheme, ours.netloc), ("https", OFFICIAL_HOST))


def _receive(response: Any, asked: Asked, file: RemoteFile, part: Path, meter: Meter) -> None:
    """Append the body of an httpx (or httpx2) response to `part`, or begin again where the hub sends everything."""
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    start = int(place[1]) if place else 0
    length = None if "Content-Encoding" in response.headers else response.headers.get("Content-Length")
    total = int(place[2]) if place else int(length) if length else file.size
    if total != file.size:
        raise wrong_size(asked, file, total)
    with part.open("r+b") as out:
        end = out.seek(0, os.SEEK_END)
        if start > end:
            raise nonsense(asked)
        if start < end:
            out.truncate(start)
            out.seek(start)
        meter.at(start)
        for chunk in response.iter_bytes():
            if meter.position + len(chunk) > file.size:
                out.truncate(0)
                raise wrong_size(asked, file, meter.position + len(chunk))
            out.write(chunk)
            meter.at(out.tell())
    if meter.position < file.size:
        raise silence(asked, EOFError())

"""ModelScope, through its light SDK `modelscope_hub` (0.5.1 and newer).

The SDK resumes, retries with backoff (`MODELSCOPE_DOWNLOAD_MAX_RETRIES`), compares sizes and sha256, and reads tokens
(`MODELSCOPE_API_TOKEN`, or the login of its own command line), address (`MODELSCOPE_ENDPOINT`) and proxies itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lodger.catalogue.repository import HubName
from lodger.errors import DamagedDownload
from lodger.hub.answers import Asked, Meter, nonsense, refusal, remote_file, silence
from lodger.hub.base import Listing, RemoteFile

if TYPE_CHECKING:
    from modelscope_hub import FileInfo, HubApi, HubConfig, ProgressCallback

BRANCH = "master"


class ModelScopeHub:
    name: HubName = "modelscope"

    def list_files(self, repo: str, revision: str | None) -> Listing:
        """As `Hub.list_files`. The SDK tells no commit: the revision is a branch or tag unless one was given."""
        from requests import RequestException

        def ask() -> list[FileInfo]:
            # A client that has listed once takes a later refusal for trouble and asks four times: a new one each time.
            return _client().list_repo_files(repo, "model", revision=revision or BRANCH)

        with self._problems(repo, revision) as asked:
            try:
                found = ask()
            except RequestException:  # an answer that broke off: the one trouble in which the SDK does not ask again
                found = ask()
        files = tuple(remote_file(asked, file.path, file.size, file.sha256) for file in found if not file.is_dir)
        return Listing(self.name, repo, revision or BRANCH, files)

    def download(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], None]) -> Path:
        """As `Hub.download`."""
        target = folder / file.path
        part = target.with_name(f"{target.name}.incomplete")  # the SDK's name for it
        meter = Meter(advance, part.stat().st_size if part.exists() else 0)
        with self._problems(listing.repo, listing.revision, file.path):
            self._downloads.download_repo(
                listing.repo,
                "model",
                revision=listing.revision,
                local_dir=folder,
                cache_dir=folder / ".modelscope",  # locks
                file_list=[{"Path": file.path, "Size": file.size, "Sha256": file.sha256}],
                progress_callbacks=[_callback(meter)],
                max_workers=1,
            )
        return target

    @cached_property
    def _downloads(self) -> HubApi:
        """One for all downloads: it keeps connections."""
        return _client()

    @contextmanager
    def _problems(self, repo: str, revision: str | None, path: str | None = None) -> Iterator[Asked]:
        """Whatever the SDK raises, as our errors; what the disk says, as it is."""
        from modelscope_hub.errors import APIError, FileDownloadError, FileIntegrityError, HubError, NetworkError
        from requests import RequestException

        address = _config().endpoint or ""
        asked = Asked(self.name, address, "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN", repo, revision, path)
        try:
            try:
                yield asked
            except FileDownloadError as error:  # of a repository: it says for each file what happened
                (failed,) = error.failed_files.values()
                raise failed from failed.__cause__
        except APIError as error:
            if error.status_code is None:
                raise nonsense(asked) from error
            wait = getattr(error, "retry_after", None)
            after = None if wait is None else int(wait)
            raise refusal(asked, error.status_code, url=error.url or address, retry_after=after) from error
        except FileIntegrityError as error:
            raise DamagedDownload(
                f"{asked.who} sends a wrong {asked.what}: {error.message}.",
                hint="Try again later, or name the other hub with --hub.",
            ) from error
        except (NetworkError, RequestException) as error:
            if isinstance(error, ValueError):  # the body was not JSON
                raise nonsense(asked) from error
            if type(error.__cause__) is OSError:  # the disk's, a quota say, which the SDK took for the network's
                raise error.__cause__ from None
            raise silence(asked, error) from error
        except (HubError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise nonsense(asked) from error


def _config() -> HubConfig:
    from modelscope_hub import HubConfig

    class Nameless(HubConfig):
        """Without the lasting id of this machine that the SDK sends along for statistics, and keeps in its home."""

        def get_session_id(self) -> str:
            return uuid.uuid4().hex

    return Nameless()


def _client() -> HubApi:
    from modelscope_hub import HubApi

    return HubApi(_config())


def _callback(meter: Meter) -> type[ProgressCallback]:
    from modelscope_hub import ProgressCallback

    class Progress(ProgressCallback):
        """One attempt. The SDK counts what is there already, so this is a position in the file."""

        position = 0

        def update(self, size: int) -> None:
            self.position += size
            meter.at(self.position)

    return Progress

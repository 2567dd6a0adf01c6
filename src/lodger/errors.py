"""Every error that Lodger shows to anyone, as one tree.

LodgerError
├── InvalidRequest (400)          the caller can mend it; nothing else is lost
│   ├── MalformedBody             not JSON, too deep, wrong types; names the field
│   ├── EmptyInput                nothing to embed, rerank or answer
│   ├── ContextExceeded           prompt and limit, both in tokens
│   ├── Unsupported               a feature or value that Lodger does not serve
│   ├── WrongKind                 a chat request to an embedding model, and so on
│   └── BodyTooLarge (413)        more bytes than one request may have
├── NotAllowed (403)              this caller may not do that here
│   └── KeyRequired (401)         this server wants its API key, and it was missing or wrong
├── UnknownModel (404)            no such uid; names the uids there are
├── UidTaken (400)                a model of this uid is there already
├── ModelProblem (400)            a model folder that cannot be served
│   ├── UnknownName               no such catalogue name; names the near misses
│   ├── FolderMissing             no such folder
│   │   └── NotDownloaded         a model that is known and not on this machine; says how to get it
│   ├── FolderWithoutWeights      a folder with no weights that Lodger reads
│   ├── DamagedWeights            truncated or inconsistent file, named, with bytes
│   └── UnknownArchitecture       no family that Lodger serves; names it
├── DoesNotFit (507)              the plan's refusal, with every number and the way out
├── OutOfMemory (507)             one request or one load ran out; the process lives
├── NotReady (503)                come back later; says when (Retry-After)
│   ├── ModelLoading              not ready yet
│   ├── ModelFailed               did not load, or died; with the reason
│   ├── ModelAsleep               it sleeps and cannot wake now; with the reason
│   ├── WorkerDown                its process is being restarted
│   ├── Draining                  the server is stopping
│   └── Overloaded (429)          too many requests wait already
├── Cancelled (499)               the client went away or asked for it
├── SetupProblem (500)            the command line's own: the fix is on this machine
│   ├── PortTaken                 by whom, and the next free port
│   ├── ConfigProblem             lodger.yaml or an option cannot be read; names the place
│   ├── AlreadyRunning            this home has a server
│   ├── NotRunning                this home has no server, or it does not answer
│   ├── MissingDependency         a package is not installed; says which and how
│   ├── NotEnoughDisk             before the first byte is written; with both sizes and the folder
│   ├── RagflowProblem            RAGFlow does not answer, or refuses; with its words
│   └── HubProblem                a hub of models gives no files: which, why, and what to try
│       ├── HubUnreachable        no answer from it
│       ├── HubRefused            it knows no such model, or wants a token for it
│       └── DamagedDownload       what it sent is not what its listing promises, again and again
└── InternalError (500)           a defect of ours; the log has the trace under the request id

The same error reads the same in the CLI, in the API (``detail`` and ``error.message``) and in the log. A message holds
measured numbers and what to do next; it never holds a trace, another caller's text, or (over the API) a path that the
caller did not send.
"""

from __future__ import annotations

import msgspec


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A LodgerError as a value: what crosses the socket between our processes and what `--json` prints."""

    code: str
    message: str
    hint: str | None = None
    retry_after: int | None = None  # seconds
    param: str | None = None  # the request field at fault, where there is one


class LodgerError(Exception):
    """Base of the tree.

    Args:
        message: one line for a person, with the numbers measured.
        hint: one line that says what to do next.
        retry_after: seconds after which the same request may succeed (HTTP ``Retry-After``).
        param: name of the request field at fault.
    """

    code = "lodger_error"
    status = 500
    retry_after: int | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def text(self) -> str:
        """Message and hint in one line, as the API and the log show it."""
        return f"{self.message} {self.hint}" if self.hint else self.message

    def info(self) -> ErrorInfo:
        return ErrorInfo(
            code=self.code, message=self.message, hint=self.hint, retry_after=self.retry_after, param=self.param
        )


class InvalidRequest(LodgerError):
    code, status = "invalid_request", 400


class MalformedBody(InvalidRequest):
    code = "malformed_body"


class EmptyInput(InvalidRequest):
    code = "empty_input"


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    code = "unsupported"


class WrongKind(InvalidRequest):
    code = "wrong_kind"


class BodyTooLarge(InvalidRequest):
    code, status = "body_too_large", 413


class NotAllowed(LodgerError):
    code, status = "not_allowed", 403


class KeyRequired(NotAllowed):
    code, status = "key_required", 401


class UnknownModel(LodgerError):
    code, status = "model_not_found", 404


class UidTaken(LodgerError):
    code, status = "uid_taken", 400


class ModelProblem(LodgerError):
    code, status = "model_problem", 400


class UnknownName(ModelProblem):
    code = "unknown_name"


class FolderMissing(ModelProblem):
    code = "folder_missing"


class NotDownloaded(FolderMissing):
    code = "not_downloaded"


class FolderWithoutWeights(ModelProblem):
    code = "folder_without_weights"


class DamagedWeights(ModelProblem):
    code = "damaged_weights"


class UnknownArchitecture(ModelProblem):
    code = "unknown_architecture"


class DoesNotFit(LodgerError):
    code, status = "does_not_fit", 507


class OutOfMemory(LodgerError):
    code, status = "out_of_memory", 507


class NotReady(LodgerError):
    code, status, retry_after = "not_ready", 503, 5


class ModelLoading(NotReady):
    code = "model_loading"


class ModelFailed(NotReady):
    code, retry_after = "model_failed", 30


class ModelAsleep(NotReady):
    code, retry_after = "model_asleep", 30


class WorkerDown(NotReady):
    code = "worker_down"


class Draining(NotReady):
    code = "draining"


class Overloaded(NotReady):
    code, status = "overloaded", 429


class Cancelled(LodgerError):
    code, status = "cancelled", 499


class SetupProblem(LodgerError):
    code, status = "setup_problem", 500


class PortTaken(SetupProblem):
    code = "port_taken"


class ConfigProblem(SetupProblem):
    code = "config_problem"


class AlreadyRunning(SetupProblem):
    code = "already_running"


class NotRunning(SetupProblem):
    code = "not_running"


class MissingDependency(SetupProblem):
    code = "missing_dependency"


class NotEnoughDisk(SetupProblem):
    code = "not_enough_disk"


class RagflowProblem(SetupProblem):
    code = "ragflow_problem"


class HubProblem(SetupProblem):
    code = "hub_problem"


class HubUnreachable(HubProblem):
    code = "hub_unreachable"


class HubRefused(HubProblem):
    code = "hub_refused"


class DamagedDownload(HubProblem):
    code = "damaged_download"


class InternalError(LodgerError):
    code, status = "internal_error", 500


def _walk(cls: type[LodgerError]) -> dict[str, type[LodgerError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _walk(child)
    return found


BY_CODE: dict[str, type[LodgerError]] = _walk(LodgerError)


def from_info(info: ErrorInfo) -> LodgerError:
    """The error that `LodgerError.info` described; an unknown code becomes an InternalError with the same text."""
    cls = BY_CODE.get(info.code, InternalError)
    return cls(info.message, hint=info.hint, retry_after=info.retry_after, param=info.param)

"""Opens the files of a model folder, which anybody may have made: none of them leads elsewhere, none of them blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lodger.errors import ModelProblem

AGAIN = "Fetch it again: `lodger pull --verify` with the model's name replaces what is damaged."
LFS_POINTER = b"version https://git-lfs"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def open_file(folder: Path, name: str, error: type[ModelProblem] = ModelProblem) -> BinaryIO:
    """The regular file `name` (may hold slashes) of `folder`, to read.

    Raises:
        FileNotFoundError: there is no such file.
        error: it cannot be read, is no regular file, or is a link that leads out of the folder or to nothing.
    """
    shown = name[:100]
    target = inside(folder, name, error)
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer; for a regular file it means nothing.
        opened = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.lexists(folder / name):
            raise error(f"{shown} cannot be read: it is a link to no file.", hint=AGAIN) from None
        raise
    except OSError as problem:
        raise error(f"{shown} cannot be read: {problem.strerror}.") from None
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):
        os.close(opened)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise error(f"{shown} cannot be read: it is {what}, not a file.")
    return os.fdopen(opened, "rb")


def inside(folder: Path, name: str, error: type[ModelProblem] = ModelProblem) -> str:
    """Where the file `name` of `folder` really is.

    Raises:
        error: it is a link that leads out of the folder.
    """
    target = os.path.realpath(folder / name)
    if not _belongs(os.path.realpath(folder), target):
        raise error(f"{name[:100]} is a link that leads out of the model's folder.", hint="Put the file itself there.")
    return target


def _belongs(folder: str, target: str) -> bool:
    """Whether a file is in the folder; or where Hugging Face's cache keeps it, which links
    models--org--name/snapshots/REVISION/FILE to models--org--name/blobs/HASH.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    if os.path.commonpath([folder, target]) == folder:
        return True
    snapshots = os.path.dirname(folder)
    model = os.path.dirname(snapshots)
    cached = os.path.basename(snapshots) == "snapshots" and os.path.basename(model).startswith("models--")
    return cached and os.path.dirname(target) == os.path.join(model, "blobs")

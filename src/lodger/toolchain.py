"""What Triton needs on the machine to run our kernels. Nothing here imports it."""

from __future__ import annotations

import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path


def missing() -> list[str]:
    """What must be installed before kernels can be built; empty where they can.

    Triton builds the code that launches a kernel with a C compiler and Python's headers, on a kernel's first use.
    """
    header = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    needs = {
        "the package triton": find_spec("triton") is not None,
        "a C compiler (gcc or clang)": any(map(shutil.which, ("gcc", "clang"))),
        "Python's headers (python3-dev)": header.exists(),
    }
    return [need for need, there in needs.items() if not there]

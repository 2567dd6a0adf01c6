"""Run one program's parts: ``run.py PROGRAM CASE``. Says of each whether it is right; ends with 1 when one is not."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable


def refusal(call: Callable[[], object], *kinds: type[Exception]) -> Exception:
    """The error that a call must end in."""
    try:
        call()
    except kinds as error:
        return error
    raise AssertionError("no error")


def main(program: str) -> int:
    wrong = 0
    for part in importlib.import_module(program).PARTS:
        try:
            part()
        except Exception:
            wrong += 1
            print(f"FAILED {part.__name__}: {traceback.format_exc()}", flush=True)
        else:
            print(f"ok {part.__name__}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))

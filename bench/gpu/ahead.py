"""A part that waits, with what takes long to import imported: while the part before it measures.

    python -m bench.gpu.ahead NAME,NAME,... MODULE [ARGUMENT...]

It goes on as `python -m MODULE ARGUMENT...` once a line comes in.
"""

from __future__ import annotations

import runpy
import sys
from importlib import import_module


def main() -> None:
    names, module, *arguments = sys.argv[1:]
    for name in filter(None, names.split(",")):
        import_module(name)
    if not sys.stdin.readline():
        return  # nobody wants it any more
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

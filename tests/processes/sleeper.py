"""A child that says what it is and waits. `deaf` ignores SIGTERM; `fail` prints and ends badly."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

how, ready = sys.argv[1], sys.argv[2]
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("half way", flush=True)
Path(ready).touch()
if how == "fail":
    print("first cause\n\nlast words", file=sys.stderr)
    sys.exit(3)
if how != "done":
    signal.pause()

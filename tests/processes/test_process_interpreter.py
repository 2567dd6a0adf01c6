"""A process that serves does not search for garbage in what it imported."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import gc, sys
from lodger import interpreter
interpreter.begin()
assert not gc.isenabled()
import lodger.api.app
interpreter.settle()
looked_at = len(gc.get_objects())
class Cycle: pass
gone = []
import weakref
for _ in range(3):
    cycle = Cycle(); cycle.own = cycle; gone.append(weakref.ref(cycle)); del cycle
gc.collect()
print(gc.get_freeze_count() > 20_000, looked_at < 2_000, all(ref() is None for ref in gone), gc.isenabled())
"""


def test_what_is_imported_is_left_alone_and_later_garbage_is_found() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4

"""The kernels on this card against float32: the tests that need a GPU, counted.

python -m bench.gpu.checks [--out FILE]
"""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import part

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests" / "runtime" / "kernels"
PROCESSES = 14  # where pytest-xdist is there; they share the card, and compile beside each other


class Count:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self.outcomes, self.failures = Counter[str](), list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.failed:
            self.failures.append(report.nodeid)


def measure() -> dict[str, Any]:
    counted = Count()
    command = [
        "-q",
        "-m",
        "gpu",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        f"--rootdir={ROOT}",
        str(TESTS),
    ]
    if find_spec("xdist"):
        command += ["-n", str(min(PROCESSES, len(os.sched_getaffinity(0))))]
    pytest.main(command, plugins=[counted])
    return {"outcomes": dict(counted.outcomes), "failures": counted.failures}


def main() -> None:
    options = part.options(__doc__)
    raw = measure()
    part.write(options, raw)
    if raw["failures"] or not raw["outcomes"].get("passed"):
        raise SystemExit("Error: not every kernel computes what float32 does here.")


if __name__ == "__main__":
    main()

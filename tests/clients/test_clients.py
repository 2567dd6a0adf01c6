"""The real packages of PyPI and npm against a real server. `make test-clients` installs them, and runs this.

Each program is a file in programs/ that runs in an environment of its own, because the packages' pins clash.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent.parent / ".clients"
PYTHON = {  # environment -> program
    "openai": "openai_sdk",
    "anthropic": "anthropic_sdk",
    "cohere": "cohere_sdk",
    "litellm": "litellm_sdk",
    "xinference-1": "xinference_sdk",
    "xinference-4": "xinference_sdk",
    "xinference-command": "xinference_command",
    "langchain-xinference": "langchain_xinference_sdk",
    "langchain-openai": "langchain_openai_sdk",
    "llama-index": "llama_index_sdk",
}
PATIENCE = 600.0  # seconds


def run(command: list[str], case: dict[str, str], home: Path) -> None:
    done = subprocess.run(
        [*command, json.dumps(case)], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={"PATH": "/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_COLOR": "1", "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "ok " in done.stdout


@pytest.mark.clients
@pytest.mark.parametrize("name", PYTHON)
def test_python(name: str, case: dict[str, str], tmp_path: Path) -> None:
    python = ENVIRONMENTS / name / "bin" / "python"
    assert python.exists(), "run scripts/clients, or `make test-clients`"
    run([str(python), str(HERE / "programs" / "run.py"), PYTHON[name]], case, tmp_path)


@pytest.mark.clients
def test_node(case: dict[str, str], tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node, "Node.js is not installed"
    program = ENVIRONMENTS / "node" / "openai_node.mjs"  # beside its node_modules, where Node looks for them
    assert program.exists(), "run scripts/clients, or `make test-clients`"
    run([node, str(program)], case, tmp_path)


def test_every_environment_has_its_program_and_its_pins() -> None:
    pinned = {file.stem for file in (HERE / "environments").glob("*.txt")}
    assert pinned == set(PYTHON)
    assert {f"{name}.py" for name in (*PYTHON.values(), "run")} == {
        file.name for file in (HERE / "programs").glob("*.py")
    }
    for file in (HERE / "environments").glob("*.txt"):
        assert all("==" in line for line in file.read_text().splitlines() if line and not line.startswith("#")), file

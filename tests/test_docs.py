"""The documents are true: commands parse, requests reach a route, links resolve, tables are what the source says."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced code blocks in one of `languages`."""
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        if language in languages:
            yield body


def shell_lines(page: Path) -> Iterator[str]:
    """Commands of shell blocks (after `$ ` where there is output too), and of inline code; continuations are joined."""
    for body in blocks(page, "sh", "bash", "console"):
        joined = re.sub(r"\\\n\s*", " ", body)
        lines = joined.splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        yield from prompted or [line for line in lines if line and not line.startswith("#")]
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    yield from re.findall(r"`((?:lodger|make) [^`]+)`", prose)


def calls(program: str) -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for line in shell_lines(page):
            words = shlex.split(line.split(" | ")[0], comments=True)
            if words and Path(words[0]).name == program:
                found.append((f"{page_id(page)}: {line}", [word for word in words[1:] if word not in ("...", "&")]))
    return found


@pytest.mark.parametrize(("line", "words"), [pytest.param(*call, id=call[0]) for call in calls("lodger")])
def test_every_lodger_command_parses(line: str, words: list[str]) -> None:
    import typer.main

    from lodger.cli import _app

    group = typer.main.get_command(_app())
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version")
        return
    whole = group.make_context("lodger", [], resilient_parsing=True)
    command = group.get_command(whole, words[0])
    assert command is not None, f"there is no command {words[0]}"
    if hasattr(command, "get_command"):  # a group, such as `lodger ragflow`
        whole, words = command.make_context(words[0], [], parent=whole, resilient_parsing=True), words[1:]
        command = command.get_command(whole, words[0])
        assert command is not None, f"there is no command {words[0]} in it"
    command.make_context(words[0], words[1:], parent=whole)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    asked = {words[0] for _, words in calls("make")}
    assert {"demo", "test"} <= asked <= targets


def test_every_curl_sends_json_to_a_route() -> None:
    from lodger.api.dialects import routers

    served = {route.path for router in routers() for route in router.routes}
    asked = calls("curl")
    assert len(asked) >= 3, "the README shows the guide's three requests"
    for line, words in asked:
        path = re.sub(r"^https?://[^/]+", "", next(word for word in words if word.startswith("http")))
        assert path in served, line
        for data in (words[i + 1] for i, word in enumerate(words) if word in ("-d", "--data")):
            json.loads(data)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place) if place else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}, target


def test_every_error_has_its_row() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "error_table"))["page"]()
    assert (ROOT / "docs" / "errors.md").read_text() == written, "run scripts/error_table"
    rows = re.findall(r"^\| `\w+` \| \d+ \| .*? \| (.*) \|$", written, flags=re.M)
    assert len(rows) > 30
    assert all(rows[1:]), "the tree in errors.py says of every class when it is raised"


def test_every_yaml_block_is_a_configuration(tmp_path: Path) -> None:
    from lodger.config import load_config

    found = [body for page in PAGES for body in blocks(page, "yaml")]
    assert found, "the README shows a lodger.yaml"
    for body in found:
        yaml.safe_load(body)
        file = tmp_path / "lodger.yaml"
        file.write_text(body)
        load_config(file)


def test_the_plans_on_the_pages_are_what_lodger_prints() -> None:
    pages = runpy.run_path(str(ROOT / "scripts" / "readme_plans"))["pages"]()
    for page, printed in pages.items():
        assert page.read_text() == printed, f"{page_id(page)}: run scripts/readme_plans"
        assert "$ lodger plan --gpu" in printed
    readme = pages[ROOT / "README.md"]
    assert readme.count("$ lodger plan --gpu") == 2
    assert readme.count("Smallest grants:") == 1, "one of them is a refusal with every number"


def test_the_tables_of_a_gpu_are_what_the_newest_results_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gpu_tables"))
    for page, printed in script["pages"]().items():
        assert page.read_text() == printed, f"{page_id(page)}: run scripts/gpu_tables"
    shown = {
        mark[1] for page in script["PAGES"] for mark in re.findall(r"(<!-- gpu ([a-z0-9-]+) -->)", page.read_text())
    }
    assert shown == set(script["TABLES"]), "every table stands on a page"


def test_the_locks_hold_what_the_project_asks_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    groups = {name: re.findall(r'^  "([^"]+)",?$', body, flags=re.M) for name, body in _lists(text)}
    locked = [_pins(ROOT / "requirements" / f"{name}.txt") for name in ("lock", "demo", "test")]
    for wanted in (Requirement(line) for name in ("dependencies", "dev") for line in groups[name]):
        name = canonicalize_name(wanted.name)
        pins = [pin for lock in locked for pin in lock.get(name, ())]
        if name == "torch":
            pins = _pins(ROOT / "requirements" / "torch-cuda.txt")["torch"]
            assert f"TORCH_VERSION={pins[0]}\n" in (ROOT / "scripts" / "versions").read_text()
        assert pins, f"{name} is not locked: run scripts/lock"
        assert all(wanted.specifier.contains(pin) for pin in pins), f"{name} {pins}: run scripts/lock"


def test_every_pin_has_hashes() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        for block in re.split(r"^(?=[A-Za-z0-9])", file.read_text(), flags=re.M)[1:]:
            assert re.match(r"[A-Za-z0-9._-]+==\S+", block), f"{file.name}: {block[:80]}"
            assert "--hash=sha256:" in block, f"{file.name}: {block[:80]}"


def _lists(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(dependencies|dev) = \[\n(.*?)^\]", text, flags=re.M | re.S)


def _pins(file: Path) -> dict[str, list[str]]:
    """Name -> the pinned versions, one for each range of Pythons."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", file.read_text(), flags=re.M):
        pins.setdefault(canonicalize_name(name), []).append(version)
    return pins

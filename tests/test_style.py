"""Size limits and forbidden habits, over everything that is ours."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(file for folder in ("src", "tests", "bench") for file in (ROOT / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 350, 60

# The only modules that may catch everything, once each. A comment there says which border it is; the log has the trace.
BORDERS = {
    "api/border.py": "an HTTP request",
    "worker/host.py": "a message from the gateway",
    "runtime/recovery.py": "a step on the device, in the thread that owns it",
    "supervisor/keeper.py": "the watcher of a child process",
}


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


def broad_handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Handlers that catch everything: `except:`, `except Exception`, `except BaseException`, alone or in a tuple."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = {"BaseException"} if node.type is None else {ast.unparse(part) for part in ast.walk(node.type)}
            if caught & {"Exception", "BaseException"}:
                yield node


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the handler always ends in a bare `raise`: it cleans up and hides nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_files_and_functions_are_short(file: Path) -> None:
    source = file.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [
        f"{file}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions
        if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_no_bare_except_and_nothing_left_to_do(file: Path) -> None:
    source = file.read_text()
    bare = [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ExceptHandler) and n.type is None]
    assert not bare, f"{file}: bare except in lines {bare}"
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    comments = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and words.search(token.string)
    ]
    assert not comments, f"{file}: unfinished work in lines {comments}"


def test_everything_is_caught_only_at_the_named_borders() -> None:
    wrong, found = [], set()
    for file in (ROOT / "src" / "lodger").rglob("*.py"):
        lines = file.read_text().splitlines()
        for handler in broad_handlers(ast.parse("\n".join(lines))):
            if raises_again(handler):
                continue
            name = str(file.relative_to(ROOT / "src" / "lodger"))
            said = " ".join(lines[max(0, handler.lineno - 2) : handler.lineno + 1])
            if name not in BORDERS or "border" not in said or name in found:
                wrong.append(f"{file}:{handler.lineno}")
            found.add(name)
    assert not wrong, "\n".join(wrong)
    assert found == set(BORDERS)


def test_modules_say_what_they_are() -> None:
    silent = [
        str(file)
        for file in (ROOT / "src").rglob("*.py")
        if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent, "\n".join(silent)


def test_the_checks_can_fail() -> None:
    tree = ast.parse("try:\n    pass\nexcept (OSError, Exception):\n    pass\n")
    assert len(list(broad_handlers(tree))) == 1
    tree = ast.parse("try:\n    pass\nexcept BaseException:\n    close()\n    raise\n")
    assert all(raises_again(handler) for handler in broad_handlers(tree))

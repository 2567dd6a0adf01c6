"""Size limits and forbidden habits, over everything that is ours."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_FILE, LONGEST_FUNCTION = 350, 60

# The only modules that may catch everything, once each. A comment there says which border it is; the log has the trace.
BORDERS = {
    "api/border.py": "an HTTP request",
    "worker/host.py": "a message from the gateway",
    "runtime/recovery.py": "a step on the device, in the thread that owns it",
    "supervisor/keeper.py": "the watcher of a child process",
}


@cache
def sources() -> dict[Path, str]:
    files = [file for folder in ("src", "tests", "bench") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    return {file: file.read_text() for file in files}


def broad_handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Handlers that catch everything: `except:`, `except Exception`, `except BaseException`, alone or in a tuple."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = {"BaseException"} if node.type is None else {ast.unparse(part) for part in ast.walk(node.type)}
            if caught & {"Exception", "BaseException"}:
                yield node


def late_decoders(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls inside of functions that decode into types of ours, or make a decoder for them."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for call in (node for function in functions for node in ast.walk(function) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        into = {"Decoder": call.args, "decode": [key.value for key in call.keywords if key.arg == "type"]}
        words = {part.id for one in into.get(name, []) for part in ast.walk(one) if isinstance(part, ast.Name)}
        if words - {"dict", "list", "str", "Any", "msgspec"}:
            yield call


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the handler always ends in a bare `raise`: it cleans up and hides nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_files_and_functions_are_short() -> None:
    long = []
    for file, source in sources().items():
        lines = len(source.splitlines())
        if lines > LONGEST_FILE:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{file}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_nothing_is_left_to_do() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [
        f"{file}:{token.start[0]} {token.string}"
        for file, source in sources().items()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and words.search(token.string)
    ]
    assert not found, "\n".join(found)


def test_no_bare_except() -> None:
    bare = [
        f"{file}:{node.lineno}"
        for file, source in sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare, "\n".join(bare)


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


def test_types_are_decoded_by_what_was_made_with_the_module() -> None:
    """msgspec looks at a type when it is first decoded, and crashes where two threads do that at once (0.22)."""
    late = [
        f"{file}:{call.lineno}"
        for file in (ROOT / "src" / "lodger").rglob("*.py")
        if file.name != "channel.py"  # a gateway or a worker has one thread for those
        for call in late_decoders(ast.parse(file.read_text()))
    ]
    assert not late, "\n".join(late)


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
    tree = ast.parse("def read(data):\n    decode(data, type=dict[str, Made])\n    Decoder(Moved | Failed)\n")
    assert len(list(late_decoders(tree))) == 2

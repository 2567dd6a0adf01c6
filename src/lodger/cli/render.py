"""How things look: errors, tables, JSON, progress. Colour only on a terminal, and never with NO_COLOR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lodger.errors import LodgerError


def talk() -> Console:
    """stderr, for people."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def say(message: str = "") -> None:
    talk().print(message)


def show_error(error: LodgerError) -> None:
    console = talk()
    console.print(Text.assemble(("Error: ", "bold red"), error.message))
    if error.hint:
        console.print(Text.assemble(("hint: ", "bold cyan"), error.hint))


def show_json(value: Any) -> None:
    """One JSON document on stdout, indented; structs as objects."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns on stdout. Nothing is cut: a pipe has no width, and a terminal may wrap."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for number, line in enumerate(lines):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        console.print("  ".join(padded).rstrip(), style="bold" if number == 0 else None)


def plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"

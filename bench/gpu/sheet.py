"""The table of a run: what was measured, beside its limit, a peer's number, and what was to be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEADS = ("what", "measured", "limit", "%", "peer", "target", "met")


@dataclass(frozen=True)
class Row:
    """One measurement. `less`: less of it is better, as of seconds and bytes. None: there is no such number."""

    what: str
    measured: float
    unit: str
    limit: float | None = None
    peer: float | None = None
    target: float | None = None
    less: bool = False

    @property
    def share(self) -> float | None:
        """Of the limit, 1 at the limit itself."""
        if not self.limit or not self.measured:
            return None
        return self.limit / self.measured if self.less else self.measured / self.limit

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.measured <= self.target if self.less else self.measured >= self.target


def cells(row: Row) -> list[str]:
    digits = _digits(row.measured)
    share = row.share
    target = "" if row.target is None else f"{'≤' if row.less else '≥'} {number(row.target, digits)}"
    return [
        row.what,
        f"{number(row.measured, digits)} {row.unit}".rstrip(),
        number(row.limit, digits),
        "" if share is None else f"{share:.0%}",
        number(row.peer, digits),
        target,
        {None: "", True: "yes", False: "NO"}[row.met],
    ]


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _digits(value: float) -> int:
    """Three figures that count, and all of those before the point."""
    if value == 0:
        return 0
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2


def text(rows: Iterable[Row]) -> str:
    """For a terminal."""
    lines = [list(HEADS), *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def markdown(rows: Iterable[Row]) -> str:
    """For a page."""
    lines = [list(HEADS), ["---"] + ["---:"] * (len(HEADS) - 1), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

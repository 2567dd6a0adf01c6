"""A device described in words: plan for a card that is not here."""

from __future__ import annotations

from lodger.device.view import DeviceView, Neighbour
from lodger.errors import ConfigProblem
from lodger.units import gib, parse_size

_HINT = "Write it like '80GiB,free=14GiB' or 'A100:80GiB,free=14GiB,neighbour=60GiB'."


def parse_device(text: str, index: int = 0) -> DeviceView:
    """GPU number `index` as ``[NAME:]TOTAL[,free=SIZE][,neighbour=SIZE]...`` describes it.

    Without `free`, all is free that the neighbours do not hold.

    Raises:
        ConfigProblem: not of that form, or more free or held than there is.
    """
    head, *options = (part.strip() for part in text.split(","))
    name, _, size = head.rpartition(":")
    total = _size(text, size)
    free: int | None = None
    neighbours: list[Neighbour] = []
    for option in options:
        key, _, value = option.partition("=")
        if key.strip() == "free" and free is None:
            free = _size(text, value)
        elif key.strip() == "neighbour":
            neighbours.append(Neighbour(pid=0, used=_size(text, value)))
        else:
            raise ConfigProblem(f"{option!r} in the device {text!r} is not understood.", hint=_HINT)
    held = sum(neighbour.used or 0 for neighbour in neighbours)
    free = max(0, total - held) if free is None else free
    if free + held > total or not total:
        raise ConfigProblem(
            f"{text!r}: {gib(free)} free and {gib(held)} held by neighbours are more than {gib(total)}.", hint=_HINT
        )
    return DeviceView(
        id=f"cuda:{index}",
        kind="cuda",
        name=name or f"GPU of {gib(total)}",
        total=total,
        free=free,
        neighbours=tuple(neighbours),
        simulated=True,
    )


def _size(text: str, value: str) -> int:
    try:
        return parse_size(value)
    except ConfigProblem as error:
        raise ConfigProblem(f"{error.message[:-1]} in the device {text!r}.", hint=_HINT) from None

"""Why a model fits on none of several devices, with the numbers of each, and the smallest change. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from lodger.device.view import DeviceView
from lodger.errors import DoesNotFit
from lodger.plan.demand import available, demands, fits, needed
from lodger.plan.refusal import grants, shortage
from lodger.plan.remedies import join_names, remedy
from lodger.plan.values import Candidate

Places = Callable[[Candidate], Sequence[str] | None]  # devices that a model would go on, beside what is there


class Room(NamedTuple):
    """One device that the model may go on, with all that would be on it then, the model too."""

    device: DeviceView
    candidates: tuple[Candidate, ...]
    reserve: int

    @property
    def enough(self) -> bool:
        return fits(self.device, demands(self.device, self.candidates), self.reserve)

    @property
    def missing(self) -> int:
        """Bytes; not positive where only a model's own limit is in the way."""
        return needed(self.device, demands(self.device, self.candidates)) - available(self.device, self.reserve)


def spread_refusal(candidate: Candidate, rooms: Sequence[Room], places: Places) -> DoesNotFit:
    """The error that says so.

    Args:
        places: tries the model asked for differently; None where it does not fit either.
    """
    spec = candidate.spec
    ids = join_names([room.device.id for room in rooms])
    what = f"{spec.replicas} replicas of {spec.uid} do" if spec.replicas > 1 else f"{spec.uid} does"
    parts = [f"{what} not fit on {ids}."]
    for room in rooms:
        wants = demands(room.device, room.candidates)
        said = " ".join(shortage(room.device, wants, room.reserve)) or f"{spec.uid} would fit."
        parts.append(f"{room.device.id}: {said} {grants(room.device, wants)}")
    return DoesNotFit(" ".join(parts), hint=_other_wish(candidate, places) or _change(rooms))


def _other_wish(candidate: Candidate, places: Places) -> str | None:
    """It would fit if it asked for no GPU by its number, or for fewer replicas."""
    spec = candidate.spec
    if spec.gpu and (found := places(replace(candidate, spec=replace(spec, gpu=())))):
        return f"Set gpu of {spec.uid} to auto: there is room on {join_names(list(found))}."
    for fewer in range(spec.replicas - 1, 0, -1):
        if found := places(replace(candidate, spec=replace(spec, replicas=fewer))):
            return f"Set replicas of {spec.uid} to {fewer}: there is room on {join_names(list(found))}."
    return None


def _change(rooms: Sequence[Room]) -> str:
    """On the device that lacks least; the first of equals."""
    lacking = [room for room in rooms if not room.enough]
    least = min(lacking, key=lambda room: room.missing)
    text = remedy(least.device, least.candidates, least.reserve).text
    return text if len(rooms) == 1 else f"On {least.device.id}: {text[0].lower()}{text[1:]}"

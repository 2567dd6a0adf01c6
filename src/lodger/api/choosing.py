"""Which model is meant where a request names none."""

from __future__ import annotations

from lodger.errors import MalformedBody
from lodger.service import Service
from lodger.tasks import Kind


def named_or_only(asked: str | None, service: Service, kind: Kind) -> str:
    """`asked`, or the uid of the one model of this kind: TEI's clients and Cohere's older ones send no name.

    Raises:
        MalformedBody: none is named, and there is none or more than one of them.
    """
    if asked:
        return asked
    uids = [model.uid for model in service.models() if model.facts and model.facts.kind == kind]
    if len(uids) == 1:
        return uids[0]
    which = f"name one of {', '.join(uids)}" if uids else f"and no {kind} model was launched"
    raise MalformedBody(f"model: no model is named; {which}.", param="model")

"""`lodger list`: the models and their states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodger.cli.options import ApiKey, Endpoint, HomeDir, Json, connect

if TYPE_CHECKING:
    from lodger.service import ModelStatus


def run(endpoint: Endpoint = None, api_key: ApiKey = None, home: HomeDir = None, json: Json = False) -> None:
    """List the models, those that failed too."""
    from lodger.cli.render import say, show_json, show_table

    models = connect(endpoint, api_key, home).models()
    if json:
        show_json(models)
    elif not models:
        say("No models. Launch one with `lodger launch --model-path FOLDER --model-uid UID`.")
    else:
        show_table(("UID", "TYPE", "NAME", "STATE", "DEVICE"), [_row(model) for model in models])


def _row(model: ModelStatus) -> tuple[str, ...]:
    facts, spec = model.facts, model.spec
    kind = facts.kind if facts else spec.kind
    name = spec.name or (facts.name if facts else spec.path)
    return model.uid, kind or "-", name or "-", model.state, ", ".join(model.devices) or "-"

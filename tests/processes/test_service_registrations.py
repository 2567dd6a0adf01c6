"""Names that users register for folders: models are launched by them, and some outlive the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from service_world import run, say, serving

from lodger.errors import InvalidRequest
from lodger.spec import ModelSpec


def test_a_registered_name_is_launched_listed_and_forgotten(tmp_path: Path) -> None:
    mine = json.dumps({"model_name": "mine", "model_specs": [{"model_uri": f"file://{tmp_path}"}]})

    async def main() -> None:
        home = tmp_path / "home"
        async with serving(home) as service:
            await service.register("chat", mine, persist=True)
            with pytest.raises(InvalidRequest, match="conflicts with existing model mine"):
                await service.register("chat", mine, persist=True)
        async with serving(home) as service:
            known = {one.name: one.builtin for one in await service.registrations("chat")}
            assert (known["mine"], known["qwen3"]) == (False, True)
            launched = await service.launch(ModelSpec(uid="a", name="mine"))
            assert (launched.spec.path, launched.spec.kind) == (str(tmp_path), "chat")
            assert await say(service, "a", "x y") == "x y"
            await service.unregister("chat", "mine")
            assert "mine" not in {one.name for one in await service.registrations("chat")}
            assert await say(service, "a", "still here") == "still here"
        async with serving(home) as service:
            assert "mine" not in {one.name for one in await service.registrations("chat")}

    run(main())

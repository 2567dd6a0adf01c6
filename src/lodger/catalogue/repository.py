"""`Repository`: one model on the hubs, and the folder that it gets here."""

from __future__ import annotations

from typing import Literal

import msgspec

HubName = Literal["modelscope", "huggingface"]


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model can be fetched. An id of None: it is not on that hub."""

    folder: str  # under models/: "bge-m3"
    modelscope: str | None = None  # "BAAI/bge-m3"
    huggingface: str | None = None

    def on(self, hub: HubName) -> str | None:
        """Its id on `hub`."""
        return self.modelscope if hub == "modelscope" else self.huggingface

"""What a running Xinference serves, as its REST tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lodger.adopt import Adopted, Adoption
from lodger.adopt.launched import adopted
from lodger.client import Client
from lodger.errors import LodgerError


def read_server(client: Client, *, card: int | None, folders: tuple[Path, ...]) -> Adoption:
    """
    Raises:
        NotRunning, KeyRequired: nothing answers there, or it wants a key.
        LodgerError: it serves no models.
    """
    rows = client.get("/v1/models")
    listed = rows["data"] if isinstance(rows, dict) and "data" in rows else []
    cached = _cached(client)
    models: list[Adopted] = []
    left: list[str] = []
    for row in listed:
        launch = _launch(row, cached)
        try:
            models.append(adopted(launch, card=card, folders=folders, taken=[one.spec.uid for one in models]))
        except LodgerError as error:
            left.append(f"{row['id']}: {error.text}")
    if not models and not left:
        raise LodgerError(f"{client.base_url} serves no models.", hint="Launch them there first, or name a folder.")
    return Adoption(models=tuple(models), left=tuple(left), source=client.base_url, port=urlsplit(client.base_url).port)


def _launch(row: Mapping[str, Any], cached: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the list as the options that it was launched with."""
    kind = row.get("model_type")
    numbers = [one for one in row.get("accelerators") or () if str(one).isdecimal()]
    path = next((_folder(one) for one in cached if _folder(one) and _same(row, one)), None)
    return {
        "model_uid": row["id"],
        "model_name": row.get("model_name"),
        "model_type": kind,
        "model_path": path,
        "model_size_in_billions": None if path else row.get("model_size_in_billions"),
        "model_format": row.get("model_format"),
        "quantization": row.get("quantization"),
        "context_length": row.get("context_length") if kind == "LLM" else None,
        "gpu_idx": sorted(set(map(int, numbers))) or None,
        "replica": row.get("replica") or None,
    }


def _cached(client: Client) -> list[Mapping[str, Any]]:
    """Folders that Xinference fetched. Older ones do not tell."""
    try:
        rows = client.get("/v1/cache/models")["list"]
    except (LodgerError, KeyError, TypeError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _same(row: Mapping[str, Any], cached: Mapping[str, Any]) -> bool:
    """Whether it is the same name, of the same size and made the same way where both say so."""
    told = ("model_size_in_billions", "model_format", "quantization")
    return row.get("model_name") == cached.get("model_name") and all(
        None in (row.get(name), cached.get(name)) or str(row[name]) == str(cached[name]) for name in told
    )


def _folder(cached: Mapping[str, Any]) -> str | None:
    """Where it lies, if that is on this machine."""
    path = cached.get("real_path") or cached.get("path")
    return str(path) if path and Path(path).is_dir() else None

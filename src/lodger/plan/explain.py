"""A plan for people and for scripts: the same rows as a table, as plain text, and as JSON in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from lodger.plan.values import ModelPlan, Plan
from lodger.units import gib

if TYPE_CHECKING:
    from rich.table import Table

_INDENT = "  "


class Row(NamedTuple):
    """One line of a plan. `depth` 0 stands for itself, deeper rows are parts of the row above."""

    name: str
    size: int | None  # bytes; None where nobody tells
    detail: str = ""
    depth: int = 0


def rows(plan: Plan) -> list[Row]:
    """Device and neighbours, the reserve, the worker, every model by part, and what is left."""
    lines = [*_device_rows(plan), Row("reserve", plan.reserve, "stays free for others")]
    if plan.models:
        lines.append(Row("worker process", plan.process, _process_detail(plan)))
    if plan.steps:
        largest = max(plan.models, key=lambda model: model.budget.activations)
        steps = f"one step at a time, the largest of {largest.budget.step_tokens:,} tokens by {largest.uid}"
        beside = any(model.budget.beside for model in plan.models)
        steps += ", and texts beside chats" if beside else ""
        lines.append(Row("activations", plan.steps, steps))
    for model in plan.models:
        lines += _model_rows(plan, model)
    return [*lines, Row("left", plan.left, "not needed")]


def plan_table(plan: Plan) -> Table:
    """A rich table of `rows`."""
    from rich.table import Table

    table = Table("", "", "", box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for row in rows(plan):
        bold = "bold" if row.depth == 0 else None
        table.add_row(_INDENT * row.depth + row.name, _size(row), row.detail, style=bold)
    return table


def plan_text(plan: Plan) -> str:
    """Aligned lines without colour, for the log."""
    lines = [(_INDENT * row.depth + row.name, _size(row), row.detail) for row in rows(plan)]
    names, sizes = (max(len(line[column]) for line in lines) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {size:>{sizes}}  {detail}".rstrip() for name, size, detail in lines)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for a script; every size in bytes."""
    return {
        "device": msgspec.to_builtins(plan.device),
        "reserve": plan.reserve,
        "available": plan.available,
        "process": plan.process,
        "activations": plan.steps,
        "needed": plan.needed,
        "left": plan.left,
        "models": [
            {
                "uid": model.uid,
                "kind": model.facts.kind,
                "path": model.facts.path,
                "dtype": model.dtype,
                "quantization": model.quantization,
                "total": plan.added(model),
                **msgspec.to_builtins(model.budget),
                "kv_tokens": model.kv_tokens,
                "shares": model.shares,
                "notes": list(model.notes),
            }
            for model in plan.models
        ],
    }


def _device_rows(plan: Plan) -> list[Row]:
    device = plan.device
    facts = [device.id, f"driver {device.driver}" if device.driver else "", "as described" if device.simulated else ""]
    lines = [Row(device.name, device.total, ", ".join(filter(None, facts))), Row("free", device.free, depth=1)]
    if device.ours:
        lines.append(Row("held by Lodger", device.ours, depth=1))
    others = device.total - device.free - device.ours
    if others > 0:
        lines.append(Row("held by others", others, depth=1))
    for neighbour in device.neighbours:
        who = ", ".join(filter(None, (neighbour.user, neighbour.command)))
        name = f"pid {neighbour.pid}" if neighbour.pid else "neighbour"
        lines.append(Row(name, neighbour.used, who, depth=2))
    return lines


def _process_detail(plan: Plan) -> str:
    return "CUDA context, kernels and cuBLAS" if plan.device.kind == "cuda" else "libraries and tokenizers"


def _model_rows(plan: Plan, model: ModelPlan) -> list[Row]:
    budget, added, shared = model.budget, plan.added(model), plan.is_shared(model)
    weights = f"{model.quantization} weights, " if model.quantization else ""
    detail = f"{model.facts.kind}, {model.dtype}, {weights}context {budget.context_length:,} tokens"
    lines = [Row(model.uid, added, detail)]
    lines.append(Row("weights", 0 if shared else budget.weights, f"those of {model.shares}" if shared else "", depth=1))
    if budget.kv_cache:
        lines.append(Row("KV cache", budget.kv_cache, f"{model.kv_tokens:,} tokens", depth=1))
    if budget.captured:
        what = f"of up to {budget.sequences} chats" if budget.kv_cache else "of texts"
        lines.append(Row("captured steps", budget.captured, what, depth=1))
    if not plan.steps:
        lines.append(Row("activations", budget.activations, f"steps of {budget.step_tokens:,} tokens", depth=1))
    return lines + [Row("note", None, note, depth=1) for note in model.notes]


def _size(row: Row) -> str:
    if row.size is None:
        return "" if row.name == "note" else "unknown"
    return gib(row.size) if row.size >= 0 else f"-{gib(-row.size)}"

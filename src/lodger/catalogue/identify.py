"""`identify`: which folder a spec means, and everything known of the model in it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lodger.catalogue.builtin import Entry, builtin
from lodger.catalogue.config_files import read_fields
from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.names import named
from lodger.catalogue.resolve import resolve
from lodger.spec import ModelSpec

OFFICIAL_TEMPLATE = "qwen3-reranker"  # what "yes-no" rerankers of other names were made from


def identify(spec: ModelSpec, models_dir: Path) -> tuple[ModelSpec, ModelFacts]:
    """`spec` with its folder as an absolute path, and the facts of the model there: read from the folder, completed by
    what only the catalogue knows. That is found by the spec's name or the folder's own.

    Raises:
        ModelProblem, WrongKind: see `resolve` and `inspect_folder`.
    """
    found = resolve(spec, models_dir)
    folder = Path(found.path or "")
    entry = _entry(spec.name, folder)
    facts = inspect_folder(folder, found.kind or (entry.kind if entry else None))
    return found, complete(facts, entry)


def complete(facts: ModelFacts, entry: Entry | None) -> ModelFacts:
    """Facts with the prompts of `entry` where the folder says none, and with a template for a "yes-no" reranker, whose
    instruction is the folder's default prompt if it has one."""
    known = builtin()
    if entry and entry.prompts and facts.pooling and not any(facts.prompts.values()):
        facts = msgspec.structs.replace(facts, prompts=known.prompts[entry.prompts])
    if entry and entry.matryoshka and facts.kind == "embedding":
        facts = msgspec.structs.replace(facts, matryoshka=True)
    if facts.rerank_method == "yes-no" and facts.rerank_template is None:
        template = (entry.rerank_template if entry else None) or OFFICIAL_TEMPLATE
        official = known.rerank_templates[template]
        said = facts.prompts.get(facts.default_prompt or "") or official.instruction
        facts = msgspec.structs.replace(facts, rerank_template=msgspec.structs.replace(official, instruction=said))
    return facts


def _entry(name: str | None, folder: Path) -> Entry | None:
    """The catalogue's entry, unless the folder holds something else under that name."""
    architectures = read_fields(folder, "config.json").values.get("architectures")
    for entry in (named(name or ""), named(folder.name)):
        if entry and isinstance(architectures, list) and entry.architecture in architectures:
            return entry
    return None

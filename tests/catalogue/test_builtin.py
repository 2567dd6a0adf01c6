"""Every row of builtin.yaml is sane, and a mistake in it is refused when it is read."""

from __future__ import annotations

import string

import msgspec
import pytest

from lodger.catalogue.builtin import Builtin, Entry, builtin
from lodger.catalogue.families import FAMILIES
from lodger.catalogue.identify import OFFICIAL_TEMPLATE
from lodger.catalogue.names import hub_id, key

ROWS = builtin().models
each_row = pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)


def test_no_name_means_two_models() -> None:
    names = [key(name) for entry in ROWS for name in {key(name) for name in entry.names}]
    assert len(names) == len(set(names))
    sizes = [(entry.xinference, entry.size) for entry in ROWS if entry.xinference]
    assert len(sizes) == len(set(sizes))
    assert not {entry.xinference and key(entry.xinference) for entry in ROWS} & set(names)


@each_row
def test_ids_are_well_formed_and_on_both_hubs(entry: Entry) -> None:
    for repo in (entry.repository.modelscope, entry.repository.huggingface):
        assert repo is not None
        assert hub_id(repo) == repo
    assert (entry.hub is None) == (entry.modelscope is not None) == (entry.huggingface is not None)
    assert hub_id(f"org/{entry.name}") == f"org/{entry.name}"  # the name can be a folder's


@each_row
def test_a_row_is_of_a_family_that_is_served(entry: Entry) -> None:
    assert entry.architecture in {name for family in FAMILIES.values() for name in family.architectures}
    assert (entry.size is None) == (entry.xinference is None)
    assert entry.prompts is None or entry.kind == "embedding"
    assert entry.rerank_template is None or entry.kind == "rerank"


@pytest.mark.parametrize("name", builtin().rerank_templates)
def test_templates_hold_their_three_names_once(name: str) -> None:
    template = builtin().rerank_templates[name]
    fields = [field for _, field, _, _ in string.Formatter().parse(template.body) if field is not None]
    assert sorted(fields) == ["document", "instruction", "query"]
    assert template.instruction
    assert (template.yes, template.no) == ("yes", "no")


def test_the_official_rerank_prompt_is_that_of_the_model_card() -> None:
    template = builtin().rerank_templates[OFFICIAL_TEMPLATE]
    body = template.body.format(instruction=template.instruction, query="Q", document="D")
    assert template.prefix + body + template.suffix == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: Q\n"
        "<Document>: D<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_prompts_are_for_queries_and_documents() -> None:
    for prompts in builtin().prompts.values():
        assert prompts
        assert set(prompts) <= {"query", "document"}
        assert all(prompts.values())
    assert {entry.prompts for entry in ROWS} - {None} == set(builtin().prompts)


ROW = {"name": "a", "kind": "chat", "architecture": "LlamaForCausalLM", "hub": "b/a"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modelscop": "b/a"}, "modelscop"),
        ({"kind": "image"}, "image"),
        ({"prompts": "none"}, "there are no prompts 'none'"),
        ({"rerank_template": "none"}, "there is no rerank template 'none'"),
    ],
)
def test_a_mistake_is_refused(change: dict[str, str], said: str) -> None:
    file = {"models": [{**ROW, **change}], "prompts": {}, "rerank_templates": {}}
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(file, Builtin)
    assert msgspec.convert({**file, "models": [ROW]}, Builtin).models[0].name == "a"

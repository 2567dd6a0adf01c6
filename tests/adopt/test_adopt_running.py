"""`lodger adopt URL`: the rows that a running Xinference lists, as a lodger.yaml that Lodger's own reader takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_http import Scripted, scripted

from lodger.adopt import Adopted, Adoption
from lodger.adopt.document import scalar, text, write
from lodger.adopt.running import read_server
from lodger.client import Client
from lodger.config import Config, load_config
from lodger.errors import ConfigProblem, KeyRequired, LodgerError
from lodger.spec import ModelSpec
from lodger.units import GIB

# As Xinference 4.1.0 lists the guide's three models.
QWEN = {
    "id": "qwen3-4b-chat-local", "object": "model", "created": 0, "owned_by": "xinference", "model_type": "LLM",
    "address": "127.0.0.1:37519", "accelerators": ["2"], "model_name": "Qwen3-Instruct", "model_lang": ["en", "zh"],
    "model_ability": ["generate", "chat"], "model_description": "", "model_format": "pytorch",
    "model_size_in_billions": 4, "model_family": "Qwen3-Instruct", "quantization": "none", "revision": None,
    "context_length": 262144, "model_engine": "transformers", "replica": 1,
}  # fmt: skip
BGE = {
    "id": "bge-m3-local", "model_type": "embedding", "accelerators": [], "model_name": "bge-m3", "replica": 1,
    "model_engine": "sentence_transformers", "model_format": "pytorch", "dimensions": 1024, "max_tokens": 8192,
    "quantization": "none",
}  # fmt: skip
RERANK = BGE | {"id": "bge-reranker-v2-m3-local", "model_type": "rerank", "model_name": "bge-reranker-v2-m3"}


def read(rows: list[dict[str, Any]], *, cache: Any = None, folders: tuple[Path, ...] = ()) -> Adoption:
    with scripted() as server:
        serve(server, rows, cache)
        return read_server(Client(server.url), card=80 * GIB, folders=folders)


def serve(server: Scripted, rows: list[dict[str, Any]], cache: Any = None) -> None:
    server.reply = (404, {}, b'{"detail": "Not Found"}')
    server.replies["GET /v1/models"] = (200, {}, json.dumps({"object": "list", "data": rows}).encode())
    if cache is not None:
        server.replies["GET /v1/cache/models"] = (200, {}, json.dumps(cache).encode())


def loaded(adoption: Adoption, folder: Path) -> Config:
    write(adoption, folder / "lodger.yaml", over=False)
    return load_config(folder / "lodger.yaml")


def test_the_guides_three_models_keep_uids_names_gpu_and_size(tmp_path: Path) -> None:
    config = loaded(read([QWEN, BGE, RERANK]), tmp_path)
    assert [spec.uid for spec in config.models] == ["qwen3-4b-chat-local", "bge-m3-local", "bge-reranker-v2-m3-local"]
    chat, bge, rerank = config.models
    assert (chat.name, chat.size_in_billions, chat.gpu, chat.kind) == ("Qwen3-Instruct", "4", (2,), "chat")
    assert chat.context_length is None, "a plan would have to set aside all that the model knows"
    assert (bge.kind, rerank.kind) == ("embedding", "rerank")
    assert "262,144" in (tmp_path / "lodger.yaml").read_text()


def test_a_smaller_context_is_kept(tmp_path: Path) -> None:
    assert loaded(read([QWEN | {"context_length": 8192}]), tmp_path).models[0].context_length == 8192


def test_the_port_goes_along_so_that_clients_need_no_change(tmp_path: Path) -> None:
    adoption = read([BGE])
    assert loaded(adoption, tmp_path).port == adoption.port


def test_folders_are_those_that_xinference_fetched_or_that_are_named(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    folder = tiny("bge-m3")
    cache = {"list": [{"model_name": "bge-m3", "path": "/gone", "real_path": str(folder)}]}
    assert read([BGE], cache=cache).models[0].spec.path == str(folder)
    larger = {"list": [{"model_name": "Qwen3-Instruct", "model_size_in_billions": 30, "path": str(folder)}]}
    assert read([QWEN], cache=larger).models[0].spec.path is None, "the folder of another size of that name"
    (tmp_path / "BAAI").mkdir()
    (tmp_path / "BAAI" / "bge-m3").symlink_to(folder)
    (one,) = read([BGE], folders=(tmp_path,)).models
    assert one.spec.path is not None
    assert Path(one.spec.path).resolve() == folder.resolve()
    assert one.notes == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_format": "ggufv2", "quantization": "Q4_K_M"}, "ggufv2 q4_k_m, which Lodger does not serve"),
        ({"model_format": "awq", "quantization": "Int4"}, "such as Qwen3-Instruct-AWQ"),
        ({"quantization": "4-bit"}, "quantization has no effect"),
        ({"model_name": "my-own-model"}, "does not know this name"),
    ],
)
def test_what_cannot_be_kept_is_named_in_the_file(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    adoption = read([QWEN | change], folders=(tmp_path,))
    assert any(says in note for note in adoption.models[0].notes)
    assert says in text(adoption)


def test_eight_bits_stay_eight_bits() -> None:
    assert read([QWEN | {"quantization": "8-bit"}]).models[0].spec.quantization == "int8"


def test_models_of_other_kinds_and_uids_that_no_client_can_carry_are_left_out_by_name() -> None:
    adoption = read([BGE, {"id": "whisper", "model_type": "audio", "model_name": "whisper"}, QWEN | {"id": "a/b"}])
    assert [one.spec.uid for one in adoption.models] == ["bge-m3-local"]
    assert "whisper: Lodger serves no audio models." in adoption.left
    assert any(left.startswith("a/b:") for left in adoption.left)
    assert "# not taken over: whisper" in text(adoption)


def test_a_server_that_wants_a_key_or_serves_nothing_says_so() -> None:
    with pytest.raises(LodgerError, match="serves no models"):
        read([])
    with scripted() as server:
        server.reply = (401, {}, b'{"detail":"Could not validate credentials"}')
        with pytest.raises(KeyRequired):
            read_server(Client(server.url), card=None, folders=())


def test_a_file_that_is_there_stays_unless_told(tmp_path: Path) -> None:
    file = tmp_path / "lodger.yaml"
    file.write_text("models: mine\n")
    with pytest.raises(ConfigProblem, match="there already"):
        write(read([BGE]), file, over=False)
    assert file.read_text() == "models: mine\n"
    write(read([BGE]), file, over=True)
    assert load_config(file).models
    assert [one.name for one in tmp_path.iterdir()] == ["lodger.yaml"], "nothing else is left"


@example("~")
@example("no")
@example("a\u2028 b\uffff 😀")
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_text_reads_back_as_itself(value: str) -> None:
    assert yaml.safe_load(scalar(value)) == value


def test_every_limit_reads_back(tmp_path: Path) -> None:
    spec = ModelSpec(
        uid="1e3", name="no", path="/a b/模型: x", kind="chat", context_length=4096, memory=6 * GIB, dtype="bfloat16",
        quantization="int8", gpu=(0, 2), replicas=2,
    )  # fmt: skip
    adoption = Adoption(models=(Adopted(spec=spec, notes=("a\nnote: #",)),), left=("x\ny",), source="s")
    assert loaded(adoption, tmp_path).models == (spec,)


def test_the_command(lodger: Callable[..., Any], tmp_path: Path) -> None:
    with scripted() as server:
        serve(server, [QWEN, BGE, RERANK])
        done = lodger("adopt", server.url)
        assert done.returncode == 0, done.stderr
        assert "bge-m3-local" in done.stdout
        assert len(load_config(tmp_path / "lodger.yaml").models) == 3
        again = lodger("adopt", server.url)
        assert again.returncode == 1
        assert "--force" in again.stderr

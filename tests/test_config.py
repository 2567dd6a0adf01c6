"""lodger.yaml: what it may say, and what is said about mistakes in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lodger.config import Config, load_config
from lodger.errors import ConfigProblem
from lodger.spec import ModelSpec
from lodger.units import GIB, MIB

EXAMPLE = Path(__file__).parent.parent / "examples/lodger.yaml"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "lodger.yaml"
    file.write_text(text)
    return file


def problem(tmp_path: Path, text: str) -> ConfigProblem:
    with pytest.raises(ConfigProblem) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in caught.value.text
    assert caught.value.hint
    return caught.value


def test_the_example_names_the_guides_three_models() -> None:
    config = load_config(EXAMPLE)
    assert [spec.uid for spec in config.models] == [
        "qwen3-4b-chat-local",
        "bge-m3-local",
        "bge-reranker-v2-m3-local",
    ]
    assert config.models[1].path == str(EXAMPLE.parent / "models/bge-m3")
    assert config.models[0].context_length == 8192
    assert (config.host, config.port, config.reserve) == ("127.0.0.1", 9997, GIB)


def test_a_folder_is_enough(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "models:\n  chat: ./some/folder\n"))
    assert config == Config(models=(ModelSpec(uid="chat", path=str(tmp_path / "some/folder")),))


def test_everything_at_once(tmp_path: Path) -> None:
    text = """
host: 0.0.0.0
port: 80
api_key: secret
reserve: 512MiB
device: cuda:1
home: state
hub: huggingface
models:
  1.5:
    path: /abs/model
    kind: rerank
    context_length: 4096
    memory: 1.5 GiB
    dtype: bfloat16
    engine: transformers
    description: ranks
    sleep_after: 1.5h
  named: {name: Qwen3-Instruct, size_in_billions: 4}
  bge-m3:
"""
    config = load_config(written(tmp_path, text))
    first, named, known = config.models
    assert config.home == tmp_path / "state"
    assert (config.reserve, config.device, config.api_key) == (512 * MIB, "cuda:1", "secret")
    assert config.hub == "huggingface"
    assert first == ModelSpec(
        uid="1.5",
        path="/abs/model",
        kind="rerank",
        context_length=4096,
        memory=3 * GIB // 2,
        dtype="bfloat16",
        engine="transformers",
        description="ranks",
        sleep_after=5400,
    )
    assert named == ModelSpec(uid="named", name="Qwen3-Instruct", size_in_billions="4")
    assert known == ModelSpec(uid="bge-m3")


@pytest.mark.parametrize(
    ("written_as", "seconds"), [("10m", 600), ("90s", 90), ("1 h", 3600), ("2d", 172800), ("45", 45)]
)
def test_times(tmp_path: Path, written_as: str, seconds: int) -> None:
    config = load_config(written(tmp_path, f"models: {{chat: {{path: x, sleep_after: {written_as}}}}}"))
    assert config.models[0].sleep_after == seconds


@pytest.mark.parametrize(("written_as", "gpus"), [("auto", ()), ("0", (0,)), ("[1, 0, 1]", (0, 1))])
def test_the_gpus_of_a_model(tmp_path: Path, written_as: str, gpus: tuple[int, ...]) -> None:
    text = f"models: {{chat: {{path: x, gpu: {written_as}, replicas: 2}}}}"
    [spec] = load_config(written(tmp_path, text)).models
    assert (spec.gpu, spec.replicas) == (gpus, 2)


def test_a_folder_in_the_users_home(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "models: {chat: ~/model}"))
    assert config.models[0].path == str(Path.home() / "model")


MODELS = "models: {chat: folder}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (MODELS + "prot: 1\n", "lodger.yaml:2: unknown option 'prot'.", "Did you mean 'port'?"),
        (MODELS + "zzz: 1\n", "lodger.yaml:2: unknown option 'zzz'.", "Options here: models, host, port"),
        (
            "models:\n  chat:\n    path: x\n    contextlength: 3\n",
            "lodger.yaml:4: unknown option 'models.chat.contextlength'.",
            "Did you mean 'context_length'?",
        ),
        (MODELS + "port: x\n", "lodger.yaml:2: port should be a valid integer, not 'x'.", ""),
        (MODELS + "port: 99999\n", "lodger.yaml:2: port should be less than or equal to 65535, not 99999.", ""),
        (MODELS + "port: true\n", "lodger.yaml:2: port should be a valid integer, not True.", ""),
        (MODELS + "reserve: lots\n", "reserve should be a size such as 14GiB or 512MiB, not 'lots'.", ""),
        (MODELS + "reserve: -1\n", "reserve should be greater than or equal to 0, not -1.", ""),
        (MODELS + "hub: hf\n", "lodger.yaml:2: hub should be 'modelscope' or 'huggingface', not 'hf'.", ""),
        (MODELS + "device: gpu\n", "device should be one of cpu, cuda, cuda:0, not 'gpu'.", ""),
        ("models: {chat: {kind: chatty}}", "models.chat.kind should be 'chat', 'embedding' or 'rerank', not 'ch", ""),
        ("models: {chat: {dtype: int8}}", "models.chat.dtype should be one of float32, bfloat16, float16, not 'i", ""),
        ("models: {chat: {context_length: 0}}", "models.chat.context_length should be greater than or equal to 1", ""),
        ("models: {chat: {sleep_after: soon}}", "models.chat.sleep_after should be a time such as 10m, 90s or 2h", ""),
        ("models: {chat: {sleep_after: 0}}", "models.chat.sleep_after should be greater than 0, not 0.", ""),
        ("models: {chat: {sleep_after: true}}", "models.chat.sleep_after should be a time such as", ""),
        ("models: {chat: {gpu: cuda:0}}", "models.chat.gpu should be auto, a GPU's number such as 0, or several", ""),
        ("models: {chat: {gpu: [0, -1]}}", "models.chat.gpu should be auto, a GPU's number", ""),
        ("models: {chat: {gpu: []}}", "models.chat.gpu should be auto, a GPU's number", ""),
        ("models: {chat: {gpu: true}}", "models.chat.gpu should be auto, a GPU's number", ""),
        ("models: {chat: {replicas: 0}}", "models.chat.replicas should be greater than or equal to 1, not 0.", ""),
        ("models: {chat: 5}", "models.chat should be a valid dictionary", "Write a folder, or options: path"),
        ("", "lodger.yaml:1: no models are named.", "Write 'models:'"),
        ("port: 1\nmodels:\n", "lodger.yaml:2: models should be a valid dictionary", "Write 'models:'"),
        ("models: {}\n", "lodger.yaml:1: no models are named.", "Write 'models:'"),
        ("models: [a]\n", "models should be a valid dictionary", "'UID: FOLDER'"),
        ("- a\n", "lodger.yaml:1: list instead of options.", "Begin with 'models:'"),
        ("models:\n  a: x\n  b: y\n  a: z\n", "lodger.yaml:4: 'a' is there already, in line 2.", "another name"),
        ("models:\n  a b: x\n", "lodger.yaml:2: model uid 'a b' cannot be used", "1 to 100 letters"),
        ("models:\n  a: x\n b: y\n", "lodger.yaml:3: ", "Mend the YAML"),
        ("models: {a: [}\n", "lodger.yaml:1: ", "Mend the YAML"),
        ("a: 1\n---\nb: 2\n", "lodger.yaml:2: ", "Mend the YAML"),
        ("models: {a: !!python/name:os.system x}\n", "lodger.yaml:1: could not determine a constructor", "Mend"),
        ("a: &a [*a]\n", "lodger.yaml:1: nested too deep.", ""),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str, hint: str) -> None:
    error = problem(tmp_path, text)
    assert message in error.message
    assert hint in (error.hint or "")


def test_all_mistakes_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    error = problem(tmp_path, "port: x\nmodels:\n  a: {kind: y, memory: z}\nhots: 3\n")
    places = [word for word in error.message.split() if word.startswith("lodger.yaml:")]
    assert places == ["lodger.yaml:1:", "lodger.yaml:3:", "lodger.yaml:3:", "lodger.yaml:4:"]


def test_a_key_is_never_printed(tmp_path: Path) -> None:
    assert "hush" not in problem(tmp_path, MODELS + "api_key: [hush]\n").text


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match="No such file"):
        load_config(tmp_path / "none.yaml")
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00\x00\x81")
    with pytest.raises(ConfigProblem, match="not YAML"):
        load_config(file)


def test_importing_it_costs_nothing_until_a_file_is_read() -> None:
    code = "import sys, lodger.config; print(*({'pydantic', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"

"""What is measured on a GPU: the limits' arithmetic, the table, the JSON, and parts that fail alone."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import bounds, document, folders, memory, parts, reading, sheet
from bench.gpu.bounds import QWEN3_4B, XLM_R_LARGE, Rates
from bench.gpu.parts import PARTS
from lodger.device.view import DeviceView
from lodger.units import GIB, MIB

RATES = Rates(move=3.0e12, product=700e12)
CARD = {
    "name": "NVIDIA H100 80GB HBM3",
    "memory.total": "81559 MiB",
    "driver_version": "580.65.06",
    "clocks.max.sm": "1980 MHz",
    "clocks.max.mem": "2619 MHz",
    "power.limit": "700.00 W",
}


def test_the_shapes_are_those_of_the_published_models() -> None:
    assert QWEN3_4B.layer_parameters + QWEN3_4B.head_parameters == pytest.approx(4.022e9, rel=1e-3)
    assert QWEN3_4B.key_bytes == 147_456
    assert XLM_R_LARGE.layer_parameters * 2 == pytest.approx(0.604e9, rel=1e-3)


def test_one_chat_reads_its_weights_and_many_read_keys_too() -> None:
    assert bounds.decode_step_s(RATES, QWEN3_4B, 1, 320) == pytest.approx(2.70e-3, rel=2e-3)
    assert bounds.decode_step_s(RATES, QWEN3_4B, 128, 320) == pytest.approx(4.70e-3, rel=2e-3)
    assert bounds.decode_step_s(RATES, QWEN3_4B, 1, 320, weight_bytes=1) == pytest.approx(1.486e-3, rel=2e-3)
    slow = Rates(move=3.0e12, product=70e12)
    assert bounds.decode_step_s(slow, QWEN3_4B, 256, 320) == pytest.approx(256 * 8.23e9 / 70e12, rel=1e-2)


def test_a_chat_is_its_prefill_and_its_steps() -> None:
    prefill = bounds.prefill_s(RATES, QWEN3_4B, 256)
    assert prefill == pytest.approx(2 * 256 * 3.633e9 / 700e12, rel=0.02)
    step = bounds.decode_step_s(RATES, QWEN3_4B, 8, 320)
    assert bounds.chats_s(RATES, QWEN3_4B, 8, 256, 128) == pytest.approx(8 * prefill + 127 * step)


def test_long_texts_cost_their_scores() -> None:
    short, long = (bounds.encoded_tok_s(RATES, XLM_R_LARGE, [length]) for length in (173, 8192))
    assert short == pytest.approx(700e12 / 0.604e9, rel=0.03)
    assert 0.4 < long / short < 0.5
    assert bounds.prefill_s(RATES, XLM_R_LARGE, 8192) < bounds.prefill_s(RATES, XLM_R_LARGE, 8192, causal=False)


def test_a_row_says_its_share_of_the_limit_and_whether_the_target_is_met() -> None:
    rate = sheet.Row("chat", 6367, "tok/s", limit=10_000, peer=5190, target=7500)
    assert sheet.cells(rate) == ["chat", "6,367 tok/s", "10,000", "64%", "5,190", "≥ 7,500", "NO"]
    time_ = sheet.Row("wake", 0.36, "s", limit=0.15, target=0.5, less=True)
    assert sheet.cells(time_) == ["wake", "0.36 s", "0.15", "42%", "", "≤ 0.50", "yes"]
    assert sheet.cells(sheet.Row("sleep", 0.5, "s"))[2:] == ["", "", "", "", ""]
    soak = sheet.Row("soak grows by", 0, "bytes", target=0, less=True)
    assert sheet.cells(soak) == ["soak grows by", "0 bytes", "", "", "", "≤ 0", "yes"]


def test_the_table_for_a_terminal_and_for_a_page() -> None:
    both = [sheet.Row("a", 1, "s"), sheet.Row("b", 2000, "tok/s", target=1000)]
    lines = sheet.text(both).splitlines()
    assert lines[0].split() == list(sheet.HEADS)
    assert {len(line) for line in lines[:1]} == {len(lines[2])}
    assert sheet.markdown(both).splitlines()[3] == "| b | 2,000 tok/s |  |  |  | ≥ 1,000 | yes |"


def raw_parts() -> dict[str, Any]:
    chats = [{"streams": n, "tok_s": 200 * n, "graph_ms": 4.0, "step_ms": 5.0} for n in (1, 8)]
    drawn = [{"streams": 256, "rules": "top-k", "tok_s": 9000.0, "step_ms": 12.0}]
    products = [
        {"product": name, "tokens": 8, "int8": 20e-6, "bfloat16": 30e-6, "read": 10e-6}
        for name in ("qkv", "out", "gate_up", "down")
    ]
    limits = {"move_bytes_s": 3e12, "product_flop_s": 7e14, "to_card_bytes_s": 55e9, "from_card_bytes_s": 50e9}
    case = {"case": "decode 1 x 320", "seconds": 2e-6, "bytes": 3e6}
    sleeps = [{"sleep": 0.5, "first token": wait} for wait in (0.3, 0.4, 0.6)]
    texts = [{"lane": lane, "step_tokens": 8192, "tok_s": 6e5, "limit_tok_s": 1e6} for lane in ("embed", "rerank")]
    held = {"planned": {"weights": 2**33, "process": 2**29, "total": 9 * 2**30}, "quantization": None}
    held["measured"] = {"weights": 2**33, "process": 1.1 * 2**29, "total": 9.05 * 2**30}
    starts: list[dict[str, Any]] = [{"start_s": wait, "after load": 8.4 * 2**30} for wait in (40.0, 18.0)]
    starts[1]["first_ms"] = {"chat": [30.0, 12.0, 10.0, 11.0], "emb": [4.0, 3.0, 3.0, 3.0]}
    gaps = {"p50": 5.0, "p99": 6.5}
    beside = {"between_tokens_ms": gaps, "embed_tok_s": 4e5}
    all_three = beside | {"rerank_ms": {"n": 8, "p50": 20.0}}
    lanes = {"chats alone": {"between_tokens_ms": gaps}, "chats, a book": beside, "chats, a book, reranks": all_three}
    held_at = [{"card": 11 * 2**30}, {"card": 11 * 2**30 + 2**20}]
    streams = [{"streams": n, "alone": {"tok_s": 100.0 * n}, "http": {"tok_s": 91.0 * n}} for n in (8, 128)]
    long = {"documents": 2, "tokens": 8192, "tok_s": 2e5, "held_mib": 100.0}
    budget = {"budget": 11.2, "chats": 128, "rates": [100.0, 9100.0, 9500.0], "held": 11 * 2**30}
    raw = {
        "budget": budget,
        "checks": {"outcomes": {"passed": 200, "failed": 1}, "failures": ["a test"]},
        "http": {"rows": streams, "texts": [{"form": "base64", "alone_texts_s": 4000.0, "http": {"texts_s": 3000.0}}]},
        "lanes": {"together": lanes, "apart": {"chats, a book": beside}},
        "soak": {"held": held_at, "answers": {"chat": 15_000, "embed": 5_000}},
        "encode": {"rows": texts, "operations_s": 7e14, "long": [long]},
        "memory": {"budgets": {"9.1": held}},
        "start": {"budget": 8.5, "quantization": "int8", "starts": starts},
        "limits": limits,
        "decode": {"rows": chats, "drawn": drawn, "prefill": {"tokens": 8000, "first_ms": 150.0}},
        "decode-int8": {"rows": chats[:1]},
        "attention": limits | {"rows": [case]},
        "w8a16": {"rows": products},
        "sleep": {"model": {"rounds": sleeps}},
        "younger": {"table": [{"what": "brought along", "measured": 1, "unit": "s"}]},
    }
    return {name: {"state": "ok", "seconds": 1.0, "result": result} for name, result in raw.items()}


def test_every_part_is_read_into_rows_beside_its_peers_and_targets() -> None:
    found = {row.what: row for row in reading.rows(raw_parts() | {"none": {"result": None}})}
    one = found["chat, bfloat16, 1 x 256 + 128 tokens"]
    assert (one.measured, one.peer, one.target, one.met) == (200, 225.8, 310, False)
    assert one.limit == pytest.approx(128 / bounds.chats_s(Rates(3e12, 7e14), QWEN3_4B, 1, 256, 128))
    prefill = found["chat, bfloat16: first token after 8,000 tokens"]
    assert (prefill.measured, prefill.peer) == (150, 134)
    assert prefill.limit == pytest.approx(1e3 * bounds.prefill_s(Rates(3e12, 7e14), QWEN3_4B, 8000))
    assert found["chat, int8, 1 x 256 + 128 tokens"].limit > one.limit
    assert found["attention: decode 1 x 320"].share == pytest.approx(0.5)
    product = found["int8 products of a layer, 8 tokens"]
    assert (product.measured, product.target, product.met) == (pytest.approx(80), pytest.approx(120), True)
    pairs = found["2,048 pairs, steps of 8,192 tokens"]
    assert (pairs.measured, pairs.peer, pairs.share, pairs.met) == (600, 510, pytest.approx(0.6), False)
    assert found["three models in 9.1 GiB, bfloat16: held"].met
    assert found["three models in 9.1 GiB, bfloat16: off the plan"].measured == pytest.approx(0.556, rel=1e-2)
    assert found["three models in 9.1 GiB, bfloat16: off the plan, process"].met is False
    assert found["start to three models that answered"].met
    assert found["start to three models that answered, nothing compiled"].met is False
    assert found["chat: the first request once it is ready"].met is False
    assert found["emb: the first request once it is ready"].met
    assert found["three models behind HTTP in 8.5 GiB, int8: held"].met
    assert (found["128 chats through HTTP"].share, found["128 chats through HTTP"].met) == (0.91, True)
    assert found["texts through HTTP, base64"].share == 0.75
    assert found["8 chats through HTTP"].target is None
    assert found["kernels against float32: failures beside 200 passes"].met is False
    inside = found["128 chats, three models in 11.2 GiB, int8"]
    assert (inside.measured, inside.peer, inside.met) == (9500, 4694, True)
    assert found["2 documents of 8,192 tokens at once"].share == pytest.approx(0.2 / 0.4968, rel=1e-2)
    book = found["8 chats beside a book: between tokens, p99"]
    assert (book.measured, book.peer, book.met) == (6.5, 12.28, True)
    assert found["8 chats beside a book: embedded meanwhile"].met
    assert found["8 chats beside a book and reranks: 64 documents reranked in"].measured == 20
    assert found["three processes: 8 chats beside a book: between tokens, p99"].target is None
    assert found["20,000 mixed requests: the card's use grows by"].met is False
    assert found["wake to first token"].measured == 0.4
    assert "brought along" in found


def test_a_part_of_another_shape_costs_its_own_rows_only(capsys: pytest.CaptureFixture[str]) -> None:
    odd = raw_parts() | {"decode": {"state": "ok", "seconds": 1.0, "result": {"rows": [{"streams": 1}]}}}
    found = {row.what for row in reading.rows(odd)}
    assert "wake to first token" in found
    assert not any("bfloat16, 1 x" in what for what in found)
    assert "decode: its reader" in capsys.readouterr().err


def test_without_the_cards_limits_rows_have_none() -> None:
    chats = {"decode": raw_parts()["decode"]}
    assert {row.limit for row in reading.rows(chats)} == {None}


# MiB that were held in steps' captures, and by steps in the memory that they share (H100, 0352f30), by GiB in all.
HELD = {8.5: (91.1, 139.6), 10: (111.4, 311.3), 11.9: (92.3, 137.6), 16: (229.3, 532.7), 24: (243.6, 862.3)}


@pytest.mark.parametrize(("budget", "quantization"), memory.BUDGETS)
def test_the_plan_is_cut_into_the_parts_that_are_measured(
    budget: float, quantization: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = DeviceView(id="cuda:0", kind="cuda", name="any", total=80 * GIB, free=0, compute_capability=(9, 0))
    monkeypatch.setattr(memory, "this_card", lambda: card)
    monkeypatch.setattr(folders, "write_weights", lambda *_: None)  # the plan reads headers
    made, _ = memory.planned(folders.write_folders(tmp_path), budget, quantization)
    found = memory.promised(made)
    assert found.pop("total") == sum(found.values()) <= budget * GIB
    assert found["captured"] / MIB == pytest.approx(HELD[budget][0], rel=0.03)
    assert found["activations"] / MIB == pytest.approx(HELD[budget][1], rel=0.03)


def test_every_part_has_a_reader() -> None:
    assert set(PARTS) == set(reading.READERS)


def now(commit: str = "abc", **states: str) -> dict[str, Any]:
    done = {name: {"state": state, "seconds": 1.0, "result": {}} for name, state in states.items()}
    host = {"cpu": "a processor", "cores": 16, "gpus": [], "cards": [CARD]}
    software = {"torch": "2.11.0", "triton": "3.6.0", "transformers": None}
    return {"date": "2026-01-31", "hardware": host, "software": software, "commit": commit, "parts": done}


def test_parts_that_did_not_run_again_keep_what_they_had() -> None:
    before = document.merge(None, now("abc", decode="ok", sleep="ok"))
    merged = document.merge(before, now("def", sleep="failed"))
    assert {name: (part["state"], part["commit"]) for name, part in merged["parts"].items()} == {
        "decode": ("ok", "abc"),
        "sleep": ("failed", "def"),
    }
    assert before["parts"]["sleep"]["state"] == "ok", "nothing is changed in place"


def test_a_file_of_another_run_is_added(tmp_path: Path) -> None:
    files = tmp_path / "one.json", tmp_path / "two.json"
    for file, one in zip(files, (now("abc", limits="ok"), now("def", soak="ok")), strict=True):
        document.write(file, document.merge(None, one))
    command = [sys.executable, "-m", "bench.gpu", "--out", str(files[0]), "--add", str(files[1])]
    subprocess.run(command, capture_output=True, text=True, cwd=parts.ROOT, timeout=120, check=True)
    merged = json.loads(files[0].read_text())["parts"]
    assert {name: part["commit"] for name, part in merged.items()} == {"limits": "abc", "soak": "def"}


def test_numbers_of_two_cards_are_not_merged() -> None:
    other = now()
    other["hardware"] = other["hardware"] | {"cards": [CARD | {"name": "NVIDIA A100"}]}
    with pytest.raises(SystemExit, match="NVIDIA A100"):
        document.merge(other, now())


def test_the_hardware_line_has_what_decides_the_speed() -> None:
    assert document.line(now()) == (
        "2026-01-31, NVIDIA H100 80GB HBM3 (81559 MiB, driver 580.65.06, up to 1980 and 2619 MHz, 700 W),"
        " 16 cores of a processor, torch 2.11.0, triton 3.6.0, commit abc"
    )
    begun = document.begin("given")
    assert begun["software"]["torch"]
    assert begun["commit"]


@pytest.mark.parametrize("name", PARTS)
def test_parts_say_that_they_need_a_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")  # without nvidia-smi
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit, match="^Error: bench.gpu needs an NVIDIA GPU, .*\nhint: "):
        importlib.import_module(PARTS[name].module).main()
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(PARTS[name].module).main()
    assert "--out" in capsys.readouterr().out


def test_a_table_of_a_file_needs_no_gpu(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    one = now("abc") | {"parts": raw_parts()}
    one["parts"]["decode"] |= {"state": "failed", "said": ["a trace", "ValueError: no"]}
    document.write(file, document.merge(None, one))
    command = [sys.executable, "-m", "bench.gpu", "--show", "--out", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=parts.ROOT, timeout=120)
    assert "chat, bfloat16, 8 x 256 + 128 tokens" in done.stdout
    assert done.stdout.endswith("decode: failed after 1.0 s: ValueError: no\n")
    assert done.returncode == 1
    assert json.loads(file.read_text())["parts"]["sleep"]["commit"] == "abc"

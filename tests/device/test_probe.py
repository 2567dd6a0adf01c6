"""Choosing a device, and describing one that is not here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lodger.device.fake import parse_device
from lodger.device.probe import choose_device, probe, probe_devices
from lodger.device.view import DeviceView
from lodger.errors import ConfigProblem
from lodger.units import GIB


def gpu(index: int, free: int, ours: int = 0) -> DeviceView:
    return DeviceView(id=f"cuda:{index}", kind="cuda", name="A100", total=80, free=free, ours=ours)


CPU = DeviceView(id="cpu", kind="cpu", name="RAM", total=500, free=400)


def test_the_gpu_with_most_free_memory() -> None:
    assert choose_device((gpu(0, 10), gpu(1, 30), gpu(2, 30), CPU)).id == "cuda:1"


def test_what_we_hold_keeps_us_where_we_are() -> None:
    assert choose_device((gpu(0, 5, ours=40), gpu(1, 30), CPU)).id == "cuda:0"


def test_the_cpu_where_there_is_no_gpu() -> None:
    assert choose_device((CPU,)) is CPU


def test_a_device_by_name() -> None:
    views = (gpu(0, 10), gpu(1, 30), CPU)
    assert choose_device(views, "cuda:0").id == "cuda:0"
    assert choose_device(views, "cuda").id == "cuda:1"
    with pytest.raises(ConfigProblem, match="no device 'cuda:7'") as caught:
        choose_device(views, "cuda:7")
    assert caught.value.hint == "Devices: cuda:0, cuda:1, cpu."


def test_this_machine_has_a_cpu() -> None:
    views = probe_devices()
    assert views[-1].id == "cpu"
    assert all(view.kind == "cuda" for view in views[:-1])
    assert probe("cpu").total == views[-1].total


def test_probing_is_quick_to_import_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, lodger.device.probe as p; assert 'pynvml' not in sys.modules; p.probe_devices();"
        "print(*({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_card_in_words() -> None:
    view = parse_device("80GiB,free=14GiB")
    assert (view.total, view.free, view.neighbours) == (80 * GIB, 14 * GIB, ())
    assert view.simulated
    assert (view.id, view.kind) == ("cuda:0", "cuda")
    view = parse_device("A100:80GiB, free=14GiB, neighbour=60GiB")
    assert view.name == "A100"
    assert [(n.used, n.user, n.command) for n in view.neighbours] == [(60 * GIB, None, None)]
    assert parse_device("24GiB,neighbour=4GiB,neighbour=8GiB").free == 12 * GIB
    assert parse_device("24GiB").free == 24 * GIB


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a size"),
        ("eighty", "'eighty' is not a size in the device 'eighty'"),
        ("80GiB,free=x", "'x' is not a size"),
        ("80GiB,fre=1GiB", "'fre=1GiB' in the device '80GiB,fre=1GiB' is not understood"),
        ("80GiB,free=1GiB,free=2GiB", "'free=2GiB'"),
        ("8GiB,free=14GiB", "14.00 GiB free and 0 B held by neighbours are more than 8.00 GiB"),
        ("80GiB,free=30GiB,neighbour=60GiB", "more than 80.00 GiB"),
        ("0GiB", "more than 0 B"),
    ],
)
def test_a_card_in_wrong_words(text: str, said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        parse_device(text)
    assert said in caught.value.message
    assert "80GiB,free=14GiB" in (caught.value.hint or "")

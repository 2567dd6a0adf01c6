"""RAM for a CPU worker: the machine's, inside what cgroups allow."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil
import pytest

from lodger.device.host import cgroup_limits, probe_host
from lodger.units import GIB, MIB


def group(folder: Path, limit: str, usage: int, inactive: int, *, version: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}.get(
        version, ("memory.max", "memory.current", "inactive_file")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\nfile 7\n")


def root(tmp_path: Path, cgroup: str) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Some  CPU @ 2 GHz\n")
    return tmp_path


def test_version_2_counts_reclaimable_files_as_free(tmp_path: Path) -> None:
    here = root(tmp_path, "0::/app\n")
    group(here / "sys/fs/cgroup/app", str(2 * GIB), GIB, 256 * MIB, version=2)
    assert cgroup_limits(here) == [(2 * GIB, GIB + 256 * MIB)]


def test_version_1(tmp_path: Path) -> None:
    here = root(tmp_path, "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n")
    group(here / "sys/fs/cgroup/memory", str(GIB), 300 * MIB, 0, version=1)  # only the container's part is mounted
    assert cgroup_limits(here) == [(GIB, GIB - 300 * MIB)]


def test_the_tightest_group_above_us_decides(tmp_path: Path) -> None:
    here = root(tmp_path, "0::/slice/app\n")
    group(here / "sys/fs/cgroup/slice/app", "max", 10, 0, version=2)
    group(here / "sys/fs/cgroup/slice", str(300 * MIB), 100 * MIB, 0, version=2)
    view = probe_host(root=here)
    assert (view.total, view.free) == (300 * MIB, 200 * MIB)
    assert view.name == "RAM of Some CPU @ 2 GHz"


def test_without_a_limit_the_machine_decides(tmp_path: Path) -> None:
    here = root(tmp_path, "0::/\n")
    view = probe_host(root=here)
    assert view.total == psutil.virtual_memory().total
    assert 0 < view.free <= view.total
    assert (view.id, view.kind, view.ours) == ("cpu", "cpu", 0)


def test_nothing_readable_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == []


def test_ours_is_what_nobody_else_could_have() -> None:
    nobody = 2**22 + 1  # above the highest pid there can be
    ours = probe_host((os.getpid(), nobody)).ours
    assert 0 < ours < psutil.Process().memory_info().rss
    private, shared = bytearray(64 * MIB), mmap.mmap(-1, 32 * MIB)
    shared.write(b"1" * len(shared))
    assert probe_host((os.getpid(),)).ours - ours == pytest.approx(len(private) + len(shared), rel=0.1)


def test_pages_of_files_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    before = probe_host((os.getpid(),)).ours
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert not any(pages[at] for at in range(0, len(pages), mmap.PAGESIZE))
        assert probe_host((os.getpid(),)).ours - before < 8 * MIB

"""Cores are counted as granted: by affinity, by the quotas of control groups, and per process."""

import os

import pytest

from grpo_guard.parallel import cores


@pytest.fixture
def grant(tmp_path, monkeypatch):
    """Return a function (affinity, membership, files) that sets what this process is granted."""

    def grant(affinity, membership="", files=()):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")
        (tmp_path / "membership").write_text(membership)
        for name, text in dict(files).items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return grant


@pytest.mark.parametrize(
    ("affinity", "processes", "share"),
    [(8, None, 8), (8, "4", 2), (1, "8", 1), (8, "0", 8), (8, "two", 8)],
)
def test_processes_divide_the_cores_of_the_affinity(grant, monkeypatch, affinity, processes, share):
    grant(affinity)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cores.cores_per_process() == share


@pytest.mark.parametrize(
    ("membership", "files", "granted"),
    [
        ("0::/", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/job/step", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "50000 100000\n"}, 1),
        (
            "3:memory:/a\n2:cpu,cpuacct:/a",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("", {}, 8),
    ],
)
def test_quotas_of_control_groups_count(grant, membership, files, granted):
    grant(8, membership, files)
    assert cores.granted_cores() == granted

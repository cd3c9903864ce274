"""What does not fit into memory is refused before it is tried, and what fits is not."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.soundness.forgeries import Folder, build, certify
from robustcert.check import Free, UnreadableError, check, free_memory, prove_network, reader
from robustcert.check.command import main
from robustcert.check.memory import bytes_at_least
from robustcert.check.network.reading import read_network
from robustcert.network.linear import Convolution, Dense, Flatten
from robustcert.network.network import PlainNetwork

GB = 10**9


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("honest") / "maxmin", build("maxmin"))


def leave(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """So many bytes are free."""
    monkeypatch.setattr(reader, "free_memory", lambda: Free(size, "as a test has it"))


def test_a_file_that_does_not_fit_is_refused_with_both_numbers(
    honest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = max(path.stat().st_size for path in honest.iterdir())
    leave(monkeypatch, size - 1)
    assert main([str(honest)]) == 2
    said = capsys.readouterr().out
    assert said.startswith("UNREADABLE, nothing is verified: reading ")
    assert f"at least {size / 1e6:.3g} MB of memory are needed" in said
    assert "free (as a test has it)" in said
    assert said.count("\n") == 1


def test_products_that_do_not_fit_are_refused_before_anything_is_proved(
    honest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcert.check.folder.bytes_at_least", lambda operations: 7 * GB)
    leave(monkeypatch, 6 * GB)
    for attempt in (check, prove_network):
        with pytest.raises(UnreadableError, match=r"products: at least 7 GB .* and 6 GB are free"):
            attempt(honest)
    leave(monkeypatch, 7 * GB)
    assert check(honest).verified


PEAK = """
import re, sys
import numpy
from robustcert.check.command import main

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
status = main([sys.argv[1], "--exact", "0"])
print(peak() - before)
"""


def large(kind: str) -> PlainNetwork:
    """A network whose constants are more than what else a check takes."""
    torch.manual_seed(0)
    operations = {
        "dense": (Flatten(), Dense(torch.randn(2048, 3072)), Dense(torch.randn(3, 2048))),
        "convolution": (
            Convolution(torch.randn(512, 3, 3, 3), stride=(8, 8), padding=(1, 1)),
            Convolution(torch.randn(512, 512, 3, 3), padding=(1, 1)),
            Flatten(),
            Dense(torch.randn(3, 512 * 16)),
        ),
    }
    return PlainNetwork(operations[kind], (3, 32, 32))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it asks the kernel for the peak")
@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_no_check_takes_less_than_what_it_is_said_to_take_at_least(
    kind: str, tmp_path: Path
) -> None:
    path = certify(tmp_path / kind, large(kind))
    folder = Folder(path)
    operations = read_network(folder.claim["network"], folder.tensors)
    command = [sys.executable, "-c", PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "VERIFIED" in done.stdout or "PARTLY" in done.stdout
    told = (path / "network.safetensors").stat().st_size + bytes_at_least(operations)
    assert 2**24 < told <= int(done.stdout.splitlines()[-1])


def test_a_file_above_four_gigabytes_is_not_too_large_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "network.safetensors"
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**32 + 1)
    leave(monkeypatch, 2**32)
    # What decides is the memory that is free.
    with pytest.raises(UnreadableError, match=r"at least 4\.29 GB of memory are needed"):
        reader.read_bytes(tmp_path, name)
    with (tmp_path / name).open("wb") as file:
        file.truncate(reader.MAX_FILE[name] + 1)
    with pytest.raises(UnreadableError, match="bytes, more than"):
        reader.read_bytes(tmp_path, name)


# The limits


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\nSwapFree: 1000 kB\n"}


def test_swap_counts_as_memory(tmp_path: Path) -> None:
    free = free_memory(system(tmp_path, MACHINE))
    assert free.bytes == 1024 * 4_001_000
    assert "proc/meminfo" in free.limit


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_the_least_limit_of_all_groups_counts_and_files_in_memory_do_not(
    mount: str, tmp_path: Path
) -> None:
    group = f"{mount}/jobs/mine"
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "500\n",
        f"{mount}/jobs/memory.max": f"{2 * GB}\n",
        f"{mount}/jobs/memory.current": f"{GB + 300}\n",
        f"{mount}/jobs/memory.stat": f"anon 300\ninactive_file {GB - 7}\nactive_file 7\n",
    }
    free = free_memory(system(tmp_path, MACHINE | files))
    assert free.bytes == 2 * GB - 300
    assert free.limit == "memory.max of the control group 'jobs'"


def test_the_first_version_of_groups_counts_where_a_container_sees_it(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "9:cpu:/\n4:memory:/somewhere/outside\n",
        f"{group}/memory.limit_in_bytes": f"{GB}\n",
        f"{group}/memory.usage_in_bytes": "900\n",
        f"{group}/memory.stat": "total_inactive_file 800\n",
    }
    free = free_memory(system(tmp_path, MACHINE | files))
    assert free.bytes == GB - 100


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from robustcert.check import free_memory
print(*free_memory(), sep="|")
"""


def test_a_limit_of_the_process_counts() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    size, limit = done.stdout.strip().split("|")
    assert 0 < int(size) < 2**31
    assert "ulimit" in limit


def test_where_the_system_tells_nothing_nothing_is_refused(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this process has a limit of its own")
    assert free_memory(tmp_path).lacks(10**18) is None

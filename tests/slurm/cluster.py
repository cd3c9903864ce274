"""A Slurm of two nodes on this machine: real daemons on the loopback interface, in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge"
# Takes the place of `sacct`, which has nothing to say on a cluster that keeps no accounts.
SACCT = Path(__file__).parent / "bin"

_CONFIGURATION = """\
ClusterName=robustcert
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=2
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=8 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=8 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def install() -> None:
    """Install Slurm where this user may, else say how.

    Raises:
        RuntimeError: it is not installed, and cannot be.
    """
    if all(map(_which, DAEMONS)):
        return
    if os.getuid() == 0 and shutil.which("apt-get"):
        subprocess.run(INSTALL, shell=True, check=True, stdout=subprocess.DEVNULL)
    if not all(map(_which, DAEMONS)):
        raise RuntimeError(f"these tests need Slurm. As root: {INSTALL}")


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, and stop them at the end.

    Args:
        folder: For their configuration, state and logs.

    Yields:
        The environment to call ``sbatch`` and the like with.
    """
    if os.getuid() != 0:
        raise RuntimeError("these tests start Slurm's daemons: run them as root")
    for name in ("munge", "state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(parents=True)
    # munged refuses a key or a socket that others could have put there.
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/tmp"):
            path.chmod(path.stat().st_mode & ~0o022 | 0o011)
    ports = dict(zip(("port", "port1", "port2"), _free_ports(3), strict=True))
    host = socket.gethostname().partition(".")[0]
    text = _CONFIGURATION.format(folder=folder, host=host, **ports)
    (folder / "slurm.conf").write_text(text)
    # Nobody opens these: only their number counts.
    for name in ("gpu0", "gpu1"):
        (folder / name).touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{SACCT}:{os.environ['PATH']}",
        # The nodes' names resolve to no address.
        "MASTER_ADDR": "127.0.0.1",
    }
    try:
        _start_munge(folder)
        for daemon in (["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]):
            subprocess.run([_which(daemon[0]) or "", *daemon[1:]], env=environment, check=True)
        _await_nodes(folder, environment)
        yield environment
    finally:
        _stop(folder, environment)


def _start_munge(folder: Path) -> None:
    munge = folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    options = [
        f"--{name}={munge / name}" for name in ("socket", "key-file", "pid-file", "log-file")
    ]
    options[1] = f"--key-file={key}"
    command = [_which("munged") or "", "--force", *options, f"--seed-file={munge / 'seed'}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _await_nodes(folder: Path, environment: dict[str, str]) -> None:
    for _ in range(120):
        asked = subprocess.run(
            ["timeout", "2", "sinfo", "-h", "-t", "idle", "-o", "%D"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == "2":
            return
        time.sleep(0.25)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"Slurm did not come up: {asked.stdout}{asked.stderr}\n{logs}")


def _stop(folder: Path, environment: dict[str, str]) -> None:
    # A job's last word is for a controller that is there to hear it.
    for _ in range(40):
        for command in ("scancel --user=root --full", "squeue --noheader"):
            asked = subprocess.run(
                ["timeout", "5", *command.split()],
                env=environment,
                capture_output=True,
                check=False,
            )
        if not asked.stdout:
            break
        time.sleep(0.25)
    pids = [*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", folder / "munge" / "pid-file"]
    running = [int(path.read_text()) for path in pids if path.exists()]
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    # The controller writes its state once more; only then may its folder go.
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in running):
            break
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listening in sockets:
        listening.bind(("127.0.0.1", 0))
    ports = [int(listening.getsockname()[1]) for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

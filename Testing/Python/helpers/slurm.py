"""A real Slurm of this machine alone: controller and node on loopback, with files and a MUNGE key of their own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "squeue", "scancel")
PARTITION = "ct"
_SECONDS_TO_START = 60

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MessageTimeout=30
SlurmctldParameters=enable_configless
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs={processors} RealMemory=64000 State=UNKNOWN
PartitionName={partition} Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of Slurm and MUNGE that are not installed."""
    return [name for name in PROGRAMS if _program(name) is None]


@contextlib.contextmanager
def running(folder: Path, processors: int = 4) -> Iterator[dict[str, str]]:
    """Run a Slurm whose files lie in `folder`; yields the environment in which `sbatch` and the like talk to it.

    Raises RuntimeError with the end of the logs where it does not come up.
    """
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    ports = _free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            controller_port=ports[0],
            node_port=ports[1],
            user=getpass.getuser(),
            folder=folder,
            processors=processors,
            partition=PARTITION,
        ),
        encoding="utf-8",
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n", encoding="utf-8")
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [_program("munged"), "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    commands = [
        munge,
        [_program("slurmctld"), "-D", "-f", str(configuration)],
        [_program("slurmd"), "-D", "-f", str(configuration), "-N", "localhost"],
    ]
    processes: list[subprocess.Popen] = []
    try:
        for command in commands:
            with open(folder / "output.txt", "ab") as output:
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
                )
            if len(processes) == 1:
                _wait_for(lambda: (folder / "munge.socket").exists(), processes, folder)
        _wait_for(lambda: _node_state(environment) == "idle", processes, folder)
        yield environment
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def jobs(environment: dict[str, str]) -> list[str]:
    """Numbers of the jobs that wait or run."""
    return _output(["squeue", "--noheader", "--format=%i"], environment).split()


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def _node_state(environment: dict[str, str]) -> str:
    return _output(["sinfo", "--noheader", "--format=%T"], environment).strip()


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _wait_for(condition, processes: list[subprocess.Popen], folder: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            logs = [folder / name for name in ("munge.log", "slurmctld.log", "slurmd.log", "output.txt")]
            texts = [f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs if log.is_file()]
            raise RuntimeError("Slurm does not come up.\n" + "\n".join(texts))
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

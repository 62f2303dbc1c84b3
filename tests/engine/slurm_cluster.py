"""A real SLURM with one node on this machine, for tests: daemons, key, ports and state of its own in a folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "scontrol", "squeue", "scancel")
SECONDS = 60  # a daemon answers after one or two
# Partition "low" gives way to "high".
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobSubmitPlugins=lua
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_min_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=10000
PartitionName=high Nodes=ALL PriorityTier=10
PartitionName=one Nodes=ALL PriorityTier=1
"""
# Partition "one" takes a job until the file "taken" is gone, and answers as MaxSubmitJobs, which needs a data base.
LIMIT = """
function slurm_job_submit(job, partitions, user)
    if job.partition ~= "one" then
        return slurm.SUCCESS
    end
    local taken = io.open("{folder}/taken")
    if taken then
        taken:close()
        slurm.log_user("AssocMaxSubmitJobLimit")
        return slurm.ESLURM_ACCOUNTING_POLICY
    end
    io.open("{folder}/taken", "w"):close()
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
"""


class Slurm:
    """The commands of a cluster, which `environment` makes that of every process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.node = folder, socket.gethostname().partition(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: object) -> str:
        """What a command of the cluster's says. Raises CalledProcessError."""
        command = list(map(str, words))
        return subprocess.run(command, env=os.environ | self.environment, check=True, stdout=-1, text=True).stdout

    def jobs(self) -> dict[str, str]:
        """Number of each job that SLURM knows -> its state."""
        lines = self.run("squeue", "--noheader", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def clear(self) -> None:
        """Cancel all jobs and wait until they are over."""
        self.run("scancel", f"--user={getpass.getuser()}")
        (self.folder / "taken").unlink(missing_ok=True)
        for _ in range(5 * SECONDS):
            if not self.run("squeue", "--noheader"):
                return
            time.sleep(0.2)


def absent() -> str:
    """What a SLURM of our own lacks here; empty where nothing."""
    lacking = [name for name in PROGRAMS if not find(name)]
    return f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge" if lacking else ""


def find(program: str) -> str | None:
    """Its path; daemons are where only root looks for programs."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def cluster() -> Iterator[Slurm]:
    """A SLURM that answers. Ends with its jobs and daemons, by their process ids."""
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        made, daemons = Slurm(Path(name)), []
        write_configuration(made)
        try:
            for words in commands(made):
                daemons.append(start(made, words))
            until(lambda: answers(made), made, daemons)
            yield made
        finally:
            end(made, daemons)


def write_configuration(made: Slurm) -> None:
    for name in ("state", "spool"):
        (made.folder / name).mkdir()
    made.folder.chmod(0o755)  # as munged asks of its socket's folder
    controller_port, node_port = free_ports(2)
    facts = {"host": made.node, "user": getpass.getuser(), "folder": made.folder}
    text = CONFIG.format(controller_port=controller_port, node_port=node_port, **facts)
    (made.folder / "slurm.conf").write_text(text)
    (made.folder / "job_submit.lua").write_text(LIMIT.format(folder=made.folder))
    key = made.folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)


def commands(made: Slurm) -> list[list[str]]:
    """Of the daemons, which stay in the foreground: their process ids are ours to end."""
    paths = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    own = [f"--{option}={made.folder / name}" for option, name in paths.items()]
    return [["munged", "--foreground", "--force", "--log-file=/dev/null", *own], ["slurmctld", "-D"], ["slurmd", "-D"]]


def start(made: Slurm, words: list[str]) -> subprocess.Popen[bytes]:
    program, *rest = words
    log = (made.folder / f"{program}.out").open("wb")
    with log:
        return subprocess.Popen(
            [str(find(program)), *rest],
            env=os.environ | made.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def answers(made: Slurm) -> bool:
    try:
        return "idle" in made.run("sinfo", "--noheader", "--format=%T")
    except subprocess.CalledProcessError:
        return False


def until(look: Callable[[], Any], made: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Raises AssertionError, with the daemons' last words, where it does not come to pass."""
    for _ in range(5 * SECONDS):
        if any(daemon.poll() is not None for daemon in daemons):
            break
        if look():
            return
        time.sleep(0.2)
    logs = (path for path in made.folder.iterdir() if path.suffix in (".log", ".out"))
    raise AssertionError(
        "SLURM did not start: " + "\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in logs)
    )


def end(made: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):  # where it never answered
        made.clear()
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def free_ports(count: int) -> list[int]:
    """Numbers that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

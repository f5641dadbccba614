"""A real Slurm on this machine: one node with two cores, a partition that is preempted and one that preempts.

It needs root and Debian's packages slurm-wlm and munge. All its files lie in one folder, and no other Slurm on the
machine is touched.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "munged", "runuser")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
SlurmdTimeout=20
MaxArraySize={max_array_size}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not found: Debian's packages slurm-wlm and munge have them"
    return None if os.geteuid() == 0 else "a Slurm of one's own needs root"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Raises TimeoutError if the condition does not become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for: {what}")
        time.sleep(0.3)


class Cluster:
    """Running from `start` to `stop`. environment: what a client's process needs to find it."""

    def __init__(self, folder: Path, max_array_size: int = 3):
        """max_array_size: Slurm's MaxArraySize; an array may have one job less."""
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(parents=True)
        host = os.uname().nodename.partition(".")[0]
        text = CONFIGURATION.format(host=host, folder=folder, max_array_size=max_array_size)
        (folder / "slurm.conf").write_text(text)
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        shutil.chown(munge, "munge", "munge")
        shutil.chown(munge / "key", "munge", "munge")
        (munge / "key").chmod(0o400)
        for parent in self.folder.parents:  # pytest's folders are closed to other users
            parent.chmod(parent.stat().st_mode | 0o011)
        self.folder.chmod(0o755)
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{name}={munge / file}" for name, file in files.items()]
        self._start("munged", ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force", *options])
        wait_until((munge / "socket").exists, "munged")
        self._start("slurmctld", ["slurmctld", "-D", "-i"])
        self.start_node()
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), f"a node (see {self.folder})")

    def start_node(self) -> None:
        """Start the node's daemon."""
        self._start("slurmd", ["slurmd", "-D"])

    def crash_node(self) -> None:
        """Kill the node's daemon and all that runs below it at one moment, as a power cut does.

        All of it is halted first. Otherwise a process that outlives another one could tell Slurm of its end.
        """
        daemon = self._daemons.pop("slurmd")
        daemon.send_signal(signal.SIGSTOP)
        halted: set[int] = set()
        while new := self._processes_on_the_node() - halted:  # a process may start another one before it is halted
            for process in new:
                _send(process, signal.SIGSTOP)
            halted |= new
        daemon.kill()
        daemon.wait()
        for process in halted:
            _send(process, signal.SIGKILL)

    def _processes_on_the_node(self) -> set[int]:
        """What runs below the node's daemon: Slurm's own processes for the jobs, and the jobs'."""
        mine, found = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), set()
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                process = int(entry)
                variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                of_a_job = any(each.startswith(b"SLURM_JOB_ID=") for each in variables)
                if mine in variables and (of_a_job or _name(process) == "slurmstepd"):
                    found.add(process)
        return found

    def run(self, *command: str) -> str:
        """What a command of Slurm prints; "" if it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def do_not_wait(self) -> None:
        """Slurm keeps a job that queues again waiting for two minutes: end that."""
        for job in self.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i").split():
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def stop(self) -> None:
        self.run("scancel", "--partition=low")
        for name in reversed(list(self._daemons)):
            process = self._daemons[name]
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes_on_the_node():
            _send(process, signal.SIGKILL)

    def _start(self, name: str, command: list[str]) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


def _name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)

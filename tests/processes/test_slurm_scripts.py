"""The batch scripts of docs/scaling.md, run by bash as by `sbatch`, with an `srun` that starts tasks here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from click import Command

from siamusic_fast.cli import load_command
from siamusic_fast.models import checkpoint
from siamusic_fast.processes.environment import slurm_environment
from siamusic_fast.shards.manifest import ShardSet
from tests.processes.test_loopback import until

ROOT = Path(__file__).parents[2]
_PATIENCE = 300.0
SRUN = """
import os, signal, sys
from pathlib import Path

words = sys.argv[1:]
options = {}
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    options[name] = value
kills = options.get("--kill-on-bad-exit") == "1"
nodes, per_node = (int(os.environ[f"SLURM_{name}"]) for name in ("NNODES", "NTASKS_PER_NODE"))
Path("pids").unlink(missing_ok=True)
noted = ["sh", "-c", 'echo "$$" >> pids; exec "$@"', "sh", *words]
tasks = set()
for rank in range(nodes * per_node):
    step = {
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank % per_node,
        "SLURM_NODEID": rank // per_node,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": nodes * per_node,
        "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})",
        "CPUS": options.get("--cpus-per-task", 1),
    }
    environment = {**os.environ, **{name: str(value) for name, value in step.items()}}
    tasks.add(os.spawnvpe(os.P_NOWAIT, noted[0], noted, environment))
signal.signal(signal.SIGTERM, lambda *_: [os.kill(task, signal.SIGKILL) for task in tasks])
codes = [0]
while tasks:
    pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    tasks.remove(pid)
    codes.append(code if code >= 0 else 128 - code)
    if codes[-1] and kills:
        for task in tasks:
            os.kill(task, signal.SIGKILL)
sys.exit(max(codes))
"""
"""Starts the tasks of all nodes on this machine, and returns their highest exit code, as SLURM's does.

SIGTERM makes it kill them (`_srun_signal_mgr` in SLURM's src/srun/libsrun/srun_job.c). CPUS of a task are
those that srun was told of, as since SLURM 22.05 it does not inherit them from sbatch (sbatch's manual).
"""
SCANCEL = """
import os, signal, sys
from contextlib import suppress
from pathlib import Path

assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]]
for pid in Path("pids").read_text().split():
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGTERM)
"""
"""Sends SIGTERM to the tasks, and not to the batch script, as SLURM's does (its manual, --batch)."""
SCONTROL = """
import sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(sys.argv[3].split(",")))
else:
    with Path("scontrol.log").open("a") as file:
        print(*sys.argv[1:], file=file)
"""
NOTES_ITS_TASK = """
import json, os, signal, sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with open(f"task-{os.environ['SLURM_PROCID']}.json", "w") as file:
    json.dump([sys.argv, dict(os.environ)], file)
if os.environ["ENDS_WITH"] == "SIGTERM":
    signal.sigwait({signal.SIGTERM})
    open(f"saved-{os.environ['SLURM_PROCID']}", "w").close()
    sys.exit(128 + signal.SIGTERM)
sys.exit(int(os.environ["ENDS_WITH"]))
"""


def scripts() -> dict[str, str]:
    """Return the batch scripts of the page: that with `srun` alone, and that with torchrun."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    blocks = [
        "\n".join(line.removeprefix("    ") for line in block.splitlines())
        for block in re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", page, re.MULTILINE)
    ]
    direct, by_torchrun = blocks
    return {"srun": direct, "torchrun": by_torchrun}


@dataclass(frozen=True)
class Cluster:
    """A folder in which batch scripts run, with commands of SLURM on the PATH."""

    folder: Path

    @property
    def commands(self) -> Path:
        return self.folder / "bin"

    def add(self, name: str, code: str) -> None:
        """Put the command `name` on the PATH, a program in Python."""
        self.commands.mkdir(exist_ok=True)
        path = self.commands / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)

    def sbatch(self, script: str, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run `script` on nodes that are all this machine; `overrides` replace its own options."""
        options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE))
        options |= dict(word.removeprefix("--").split("=") for word in overrides)
        job = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": ",".join(["localhost", "127.0.0.1"][: int(options["nodes"])]),
            "SLURM_NNODES": options["nodes"],
            "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
            "SLURM_GPUS_ON_NODE": options["gpus-per-node"],
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        }
        path = os.pathsep.join([str(self.commands), sysconfig.get_path("scripts"), os.environ["PATH"]])
        here = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env={**os.environ, **job, **here, **environment},
                stderr=log,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def requeued(self) -> list[str]:
        path = self.folder / "scontrol.log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.add("srun", SRUN)
    made.add("scancel", SCANCEL)
    made.add("scontrol", SCONTROL)
    return made


def options_of(command: Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_the_tasks_of_a_job_know_their_ranks_and_have_the_words_of_the_command_line(cluster: Cluster) -> None:
    cluster.add("siamusic-fast", NOTES_ITS_TASK)
    assert cluster.sbatch(scripts()["srun"], ENDS_WITH="0").wait(_PATIENCE) == 0, cluster.log
    for rank in range(8):
        words, environment = json.loads((cluster.folder / f"task-{rank}.json").read_text())
        known = slurm_environment(environment)
        assert words[1] == "pretrain"
        assert {word for word in words if word.startswith("--")} < options_of(load_command("pretrain"))
        assert (known["RANK"], known["WORLD_SIZE"]) == (str(rank), "8")
        assert (known["LOCAL_RANK"], known["LOCAL_WORLD_SIZE"]) == (str(rank % 4), "4")
        assert environment["CPUS"] == "8"
        assert (known["MASTER_ADDR"], environment["GLOO_SOCKET_IFNAME"]) == ("localhost", "ib0")


def test_a_job_goes_back_into_the_queue_when_its_time_is_up_and_not_after_an_error(cluster: Cluster) -> None:
    cluster.add("siamusic-fast", NOTES_ITS_TASK)
    job = cluster.sbatch(scripts()["srun"], "--ntasks-per-node=1", ENDS_WITH="1")
    assert job.wait(_PATIENCE) > 0
    assert cluster.requeued == []
    for task in cluster.folder.glob("task-*.json"):
        task.unlink()
    job = cluster.sbatch(scripts()["srun"], "--ntasks-per-node=1", ENDS_WITH="SIGTERM")
    until(lambda: len(list(cluster.folder.glob("task-*.json"))) == 2, _PATIENCE)
    job.terminate()
    assert job.wait(_PATIENCE) == 128 + signal.SIGTERM
    assert cluster.requeued == [f"requeue {os.getpid()}"]
    assert list(cluster.folder.glob("saved-*"))  # not of all: srun kills the others when the first has ended


def test_torchrun_is_started_once_on_each_node_with_the_same_words(cluster: Cluster) -> None:
    cluster.add("torchrun", NOTES_ITS_TASK)
    job = cluster.sbatch(scripts()["torchrun"], ENDS_WITH="0")
    assert job.wait(_PATIENCE) == 0, cluster.log
    first, second = (json.loads((cluster.folder / f"task-{node}.json").read_text()) for node in range(2))
    assert first[0] == second[0]
    assert first[1]["CPUS"] == second[1]["CPUS"] == "32"
    told = dict(zip(first[0][1::2], first[0][2::2], strict=False))
    assert (told["--nnodes"], told["--nproc-per-node"]) == ("2", "4")
    assert (told["--rdzv-endpoint"], told["--rdzv-id"]) == ("localhost:29500", str(os.getpid()))
    assert not sorted(cluster.folder.glob("task-2.json"))


def _settings(cluster: Cluster, shard_set: ShardSet, epochs: int) -> None:
    values = {
        **{"data": str(shard_set.folder), "backend": "torch", "backbone": "resnet18", "batch_size": 2},
        **{"mel": {"seconds": 0.25}, "epochs": epochs, "knn_every": 0, "quiet": True},
        "projection_dim": 32,
    }
    (cluster.folder / "mine.yaml").write_text(json.dumps(values))


def _of_here(script: str) -> str:
    """Return `script` with an interface and a port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return script.replace("ib0", "lo").replace(":29500", f":{free.getsockname()[1]}")


@pytest.mark.slow
def test_a_job_of_slurm_whose_time_is_up_saves_and_goes_on_when_it_is_started_again(
    cluster: Cluster, shard_set: ShardSet
) -> None:
    _settings(cluster, shard_set, epochs=4)  # 24 steps
    run, script = cluster.folder / "runs" / "first", _of_here(scripts()["srun"])
    one_task = ("--ntasks-per-node=1", "--gpus-per-node=1")
    job = cluster.sbatch(script, *one_task)
    until(lambda: (run / "metrics.jsonl").exists() or job.poll() is not None, _PATIENCE)
    job.terminate()
    assert job.wait(_PATIENCE) == 128 + signal.SIGTERM, cluster.log
    assert cluster.requeued == [f"requeue {os.getpid()}"]
    stopped = checkpoint.load(run / "checkpoint.pt", "pretraining")["step"]
    assert stopped < 24
    assert cluster.sbatch(script, *one_task).wait(_PATIENCE) == 0, cluster.log
    done = checkpoint.load(run / "checkpoint.pt", "pretraining")
    assert (done["step"], len(done["ranks"])) == (24, 2)


@pytest.mark.slow
def test_a_job_of_torchrun_in_slurm_trains_on_all_nodes(cluster: Cluster, shard_set: ShardSet) -> None:
    _settings(cluster, shard_set, epochs=1)
    job = cluster.sbatch(_of_here(scripts()["torchrun"]), "--gpus-per-node=1")
    assert job.wait(_PATIENCE) == 0, cluster.log
    done = checkpoint.load(cluster.folder / "runs" / "first" / "checkpoint.pt", "pretraining")
    assert (done["step"], len(done["ranks"])) == (6, 2)

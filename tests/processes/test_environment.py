import pytest

from siamusic_fast.processes.environment import first_host, slurm_environment, tasks_per_node

# What SLURM sets for the sixth of eight tasks of `srun -N 2 --ntasks-per-node 4`, sixth on the second node.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}


def test_a_task_of_srun_gets_the_place_that_torch_asks_for() -> None:
    found = slurm_environment(TASK)
    port = int(found.pop("MASTER_PORT"))
    assert found == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu03",
    }
    assert 1024 < port < 65536


def test_tasks_of_a_job_meet_at_one_port_and_jobs_at_different_ones() -> None:
    def port(**changes: str) -> str:
        return slurm_environment({**TASK, **changes})["MASTER_PORT"]

    assert port(SLURM_PROCID="0", SLURM_NODEID="0", SLURM_LOCALID="0") == port()
    assert len({port(), port(SLURM_JOB_ID="4712"), port(SLURM_STEP_ID="1")}) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {name: value for name, value in TASK.items() if name != "SLURM_STEP_ID"},  # a script of sbatch
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},  # a shell of srun --pty
    ],
    ids=["no SLURM", "batch script", "interactive shell"],
)
def test_a_program_that_is_not_one_of_several_tasks_has_no_place(environment: dict[str, str]) -> None:
    assert slurm_environment(environment) == {}


# Lists as `scontrol show hostnames` reads them.
@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[07-09,12],gpu3", "node07"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("a[3,5]-ib.cluster", "a3-ib.cluster"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_node_are_counted_out() -> None:
    assert tasks_per_node("4(x2),1") == [4, 4, 1]
    assert tasks_per_node("3") == [3]

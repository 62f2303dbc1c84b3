"""Runs as jobs of submitit: side by side, left and found again, stopped and gone on with, here and on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from safetensors import safe_open

from benchmark.api import UserError
from benchmark.cli import commands
from benchmark.engine import execution, executors, slurm
from benchmark.records import run_identity
from tests import ROOT
from tests.helpers.processes import ONE_OF_TWO, SMALL, TINY, bench, checkpoint_of, rows

SECONDS = 240  # a command takes about twenty
STOPPED = "bench: stopped; the same command goes on where it stopped"
submitit = pytest.importorskip("submitit", reason="jobs need the extra scale")


def words(*methods: str) -> list[str]:
    return ["run", *(word for method in methods for word in ("--method", method)), "--task", "uncond", *SMALL]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of two runs one after the other in one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert bench(*words("muni", "mopoe"), "--runs", folder).status == 0
    return folder


def start(*arguments: object, err: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command in a session of its own, as from a terminal: it hears Ctrl-C, though these tests may not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmark.cli.commands", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=err,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(*arguments: object) -> tuple[int, str, str]:
    with start(*arguments) as process:
        out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it is anything."""
    for _ in range(10 * SECONDS):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to pass")


def submitted(runs: Path) -> int:
    return len(list((runs / ".jobs").glob("*_submitted.pkl")))


def holders(runs: Path) -> list[str]:
    """Numbers of the processes that work on runs."""
    return [number for lock in runs.rglob("lock") if (number := execution.holder(lock.parent))]


def signal_as_slurm(runs: Path) -> None:
    """SIGUSR2 to the process at work and to submitit's above it, before the first checkpoint."""
    (holder,) = until(lambda: holders(runs))
    above = Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()[1]
    assert not list(runs.rglob("checkpoint.safetensors"))
    for number in (above, holder):
        os.kill(int(number), signal.SIGUSR2)


def saved_update(runs: Path) -> int:
    """Of the checkpoint; -1 before there is one."""
    for path in runs.rglob("checkpoint.safetensors"):
        with safe_open(path, "pt") as file:
            return int(file.metadata()["updates"])
    return -1


@pytest.mark.slow
def test_two_jobs_side_by_side_that_are_left_and_found_again(whole: Path, runs: Path) -> None:
    command = [*words("muni", "mopoe"), "--runs", runs, "--executor", "local", "--max-jobs", "2"]
    with (runs / "err").open("w") as file, start(*command, err=file) as process:
        until(lambda: len(list(runs.rglob("job.json"))) == 2)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to everything that was started there
        assert process.wait(SECONDS) == 130
    numbers = [json.loads(path.read_text())["number"] for path in runs.rglob("job.json")]
    (line,) = (line for line in (runs / "err").read_text().splitlines() if line.startswith("bench: jobs go on: local "))
    assert all(number in line for number in numbers)
    assert submitted(runs) == 2
    assert rows(runs) == []
    assert finish(*command)[0] == 0  # waits for them
    assert submitted(runs) == 2
    assert rows(runs) == rows(whole)
    assert list(runs.rglob("job.json")) == []
    began = time.monotonic()
    status, out, _ = finish(*command)
    assert (status, submitted(runs)) == (0, 2)
    assert "mopoe            uncond" in out
    assert time.monotonic() - began < SECONDS / 4


@pytest.mark.slow
def test_a_job_that_is_stopped_is_missing_and_goes_on_at_the_next_call(whole: Path, runs: Path) -> None:
    command = [*words("muni"), "--runs", runs, "--executor", "local"]
    with start(*command) as process:
        (holder,) = until(lambda: holders(runs))
        os.kill(int(holder), signal.SIGTERM)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    (line,) = (line for line in err.splitlines() if line.startswith("bench: muni seed 0: 4 numbers are missing: see "))
    assert STOPPED in Path(line.rpartition(" see ")[2]).read_text().splitlines()
    assert checkpoint_of(runs).with_name("train.jsonl").read_text().startswith('{"update": 50,')
    status, out, _ = finish(*command)
    assert status == 0
    assert rows(runs) == [row for row in rows(whole) if row[4] == "muni"]
    assert "muni             uncond" in out


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "case"), [(10, "timed-out"), (1000, "preempted")])
def test_a_job_that_is_signalled_as_by_slurm_goes_on_from_there_with_the_same_numbers(
    minutes: int, case: str, whole: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "MINUTES", minutes)  # of ten, submitit holds any to be over
    made = executors.Executor("local", runs)
    job = made.submit([sys.executable, "-m", "benchmark.cli.commands", *words("muni"), "--runs", str(runs)], "muni", 0)
    signal_as_slurm(runs)
    until(lambda: saved_update(runs) >= 0 or not job.going_on(runs))
    assert saved_update(runs) == 50
    until(lambda: not job.going_on(runs))
    assert rows(runs) == [row for row in rows(whole) if row[4] == "muni"]
    log = made.log(job).read_text()
    assert f"this job is {case}." in log
    assert log.splitlines().count(STOPPED) == 1


WORKER = """
import os, signal, sys, time
heard, (path, *signals) = [], sys.argv[1:]
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: heard.append(number))
for word in signals:
    number, _, both = word.partition("+")
    for process in [os.getppid()] + [os.getpid()] * bool(both):
        os.kill(process, int(number))
end = time.monotonic() + 15
while not heard and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)  # a second one would come
open(path, "w").write(repr(heard))
sys.exit(130)
"""
TERM, USR2 = int(signal.SIGTERM), int(signal.SIGUSR2)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals that a job hears are this process's again afterwards."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2, signal.SIGURG)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job_of(tmp_path: Path, handlers: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Carries out words as submitit does in a job, here: `minutes` are its time limit, of which ten are over at once;
    `again`: how often submitit queues it after one. Answers with what is queued."""
    from submitit.core import submission
    from submitit.helpers import DelayedSubmission

    for name, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "1", "FOLDER": str(tmp_path)}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)

    def job(words: list[str], minutes: int = 1000, again: int = 3, grace: float = 60) -> tuple[Any, BaseException]:
        delayed = DelayedSubmission(executors.Command(words, str(tmp_path), {}, grace))
        delayed.set_timeout(minutes, again)
        delayed.dump(tmp_path / "1_submitted.pkl")
        with pytest.raises(BaseException) as ended:
            submission.process_job(tmp_path)
        return DelayedSubmission.load(tmp_path / "1_submitted.pkl"), ended.value

    return job


@pytest.mark.parametrize(
    ("signals", "minutes", "again", "left", "ended"),
    [
        ([f"{USR2}+both"], 1000, 3, 3, SystemExit),
        ([f"{USR2}+both"], 10, 3, 2, SystemExit),
        ([f"{USR2}"], 10, 3, 2, SystemExit),
        ([f"{USR2}+both"], 10, 0, -1, submitit.core.utils.UncompletedJobError),
        ([f"{TERM}+both", f"{USR2}+both"], 1000, 3, 3, SystemExit),
        ([f"{TERM}+both"], 1000, 3, 3, subprocess.CalledProcessError),
    ],
)
def test_a_command_hears_one_signal_and_is_queued_again(
    signals: list[str], minutes: int, again: int, left: int, ended: type, tmp_path: Path, job_of: Callable[..., Any]
) -> None:
    words = [sys.executable, "-c", WORKER, str(tmp_path / "heard"), *signals]
    queued, error = job_of(words, minutes, again)
    assert (tmp_path / "heard").read_text() == f"[{TERM}]"
    assert isinstance(error, ended)
    if ended is SystemExit:
        assert error.code == 144  # submitit's: start it again
    assert (queued.function.words, queued._timeout_countdown) == (words, left)


def test_a_command_is_told_of_a_signal_that_reached_its_job_alone(
    tmp_path: Path, job_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "PATIENCE_SECONDS", 0.3)
    _, error = job_of([sys.executable, "-c", WORKER, str(tmp_path / "heard"), str(TERM)])
    assert (tmp_path / "heard").read_text() == f"[{TERM}]"
    assert error.returncode == 130


def test_a_command_has_the_jobs_output_its_folder_and_its_gpu(
    tmp_path: Path, handlers: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit has it in a local job that asks for none
    words = ["bash", "-c", "echo $PWD $CUDA_VISIBLE_DEVICES; echo said >&2"]
    executors.Command(words, str(tmp_path), {"CUDA_VISIBLE_DEVICES": "GPU-1f3a"}, 60)()
    assert capfd.readouterr() == (f"{tmp_path} GPU-1f3a\n", "said\n")


def test_a_job_imports_no_torch_beside_its_commands() -> None:
    code = "import sys, benchmark.engine.executors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_command_that_does_not_stop_is_killed_and_queued_again(job_of: Callable[..., Any]) -> None:
    began = time.monotonic()
    _, error = job_of(["bash", "-c", f"trap '' TERM; sleep 0.2; kill -{USR2} $PPID; exec sleep 30"], grace=0.5)
    assert error.code == 144
    assert 0.5 < time.monotonic() - began < 20


CLUSTER = {
    "sbatch": """n=100; while [ -e "$CLUSTER/$n" ]; do n=$((n + 1)); done
cp "$1" "$CLUSTER/$n.sh"
export SLURM_JOB_ID=$n
while rm -f "$CLUSTER/$n.again"; bash "$CLUSTER/$n.sh"; [ -e "$CLUSTER/$n.again" ]; do :; done > /dev/null 2>&1 &
echo $! > "$CLUSTER/$n"
echo "Submitted batch job $n" """,
    "srun": """while :; do case "$1" in
    --unbuffered | --ntasks=1) shift ;;
    --output) out=$2; shift 2 ;;
    --error) err=$2; shift 2 ;;
    *) break ;;
esac; done
name() { echo "$1" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/"; }
exec "$@" >> "$(name "$out")" 2>> "$(name "$err")" """,
    "scontrol": 'touch "$CLUSTER/$2.again"',
    "squeue": """for word; do case "$word" in --jobs=*) jobs=${word#--jobs=} ;; esac; done
for n in ${jobs//,/ }; do [ -e "$CLUSTER/$n" ] || continue
kill -0 "$(cat "$CLUSTER/$n")" 2> /dev/null && state=RUNNING || state=FAILED
echo "$n|$state|None|"; done""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of SLURM that are asked, on this machine; not a real cluster."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in CLUSTER.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_jobs_of_a_cluster_that_is_made_up(cluster: Path, whole: Path, runs: Path) -> None:
    command = [*words("muni"), "--runs", runs, "--executor", "slurm", "--slurm", "partition=gpu", "--slurm", "time=10"]
    with start(*command) as process:
        signal_as_slurm(runs)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert submitted(runs) == 1
    assert rows(runs) == [row for row in rows(whole) if row[4] == "muni"]
    assert STOPPED in (runs / ".jobs" / "100_0_log.err").read_text().splitlines()
    script = (cluster / "100.sh").read_text().splitlines()
    wanted = ["job-name=muni-seed0", "partition=gpu", "time=10", "signal=USR2@90", "open-mode=append"]
    assert {f"#SBATCH --{each}" for each in wanted} <= set(script)


def test_a_clusters_parameters_are_submitits(cluster: Path, runs: Path) -> None:
    made = executors.Executor("slurm", runs, ["gpus_per_node=1", "mem=16GB", "constraint=a100&ib", "account=us"])
    script = made._submitit._make_submission_file_text("command", "").splitlines()
    wanted = ["gpus-per-node=1", "mem=16GB", "constraint='a100&ib'", "account=us", "time=1440"]
    assert {f"#SBATCH --{each}" for each in wanted} <= set(script)
    assert script[-1].endswith("command")


def test_a_clusters_lists_and_flags_are_taken_as_written(cluster: Path, runs: Path) -> None:
    given = ["setup=module load cuda", "setup=export A=1", "teardown=date", "exclusive=true", "srun_args=--mem=0"]
    given += ["additional_parameters=reservation=us", "additional_parameters=--no-requeue", "stderr_to_stdout=true"]
    made = executors.Executor("slurm", runs, given)
    script = made._submitit._make_submission_file_text("command", "").splitlines()
    assert {"#SBATCH --exclusive", "#SBATCH --reservation=us", "#SBATCH --no-requeue"} <= set(script)
    assert script.index("module load cuda") + 1 == script.index("export A=1") < script.index("date")
    assert " --mem=0 --ntasks=1 command" in "\n".join(script)
    assert made.log(executors.Job("slurm", "7", "here")).name == "7_0_log.out"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["gpus=1"], "gpus: not a parameter.*; parameters are account, .* --slurm additional_parameters=gpus=1"),
        (["gpus"], "gpus: write key=value"),
        (["signal_delay_s=soon"], "signal_delay_s=soon: write whole seconds, fewer than the 86400 of time=1440"),
        (["time=2", "signal_delay_s=120"], "signal_delay_s=120: .* fewer than the 120 of time=2"),
        (["time=0"], "time=0: write minutes from 1 on"),
        (["time=1h"], "time=1h: write minutes from 1 on"),
        (["time=1", "time=2"], "time=2: time is given twice"),
        (["ntasks_per_node=2"], "ntasks_per_node=2: a job is one process"),
        (["nodes=1", "nodes=2"], "nodes=2: nodes is given twice"),
        (["nodes=2"], "nodes=2: a job is one process"),
        (["additional_parameters=ntasks=2"], "additional_parameters=ntasks=2: a job is one process"),
        (["additional_parameters=--array=0-3"], "additional_parameters=--array=0-3: a job is one process"),
        (["additional_parameters=mail-user=us"], "mail-user=us: say it directly: --slurm mail_user=us"),
    ],
)
def test_options_that_a_job_cannot_have_are_one_line(given: list[str], line: str, cluster: Path, runs: Path) -> None:
    with pytest.raises(UserError, match=f"^--slurm .*{line}"):
        executors.Executor("slurm", runs, given)


@pytest.mark.parametrize(
    ("time", "minutes", "delay"),
    [
        ("1", 1, 15),
        ("4", 4, 60),
        ("1:30", 2, 30),
        ("1:00:00", 60, 90),
        ("1-12", 36 * 60, 90),
        ("1-12:30", 36 * 60 + 30, 90),
        ("0-0:1:0", 1, 15),
    ],
)
def test_a_job_is_signalled_in_the_last_quarter_of_its_time(
    time: str, minutes: int, delay: int, cluster: Path, runs: Path
) -> None:
    made = executors.Executor("slurm", runs, [f"time={time}"])
    script = made._submitit._make_submission_file_text("command", "").splitlines()
    assert {f"#SBATCH --time={minutes}", f"#SBATCH --signal=USR2@{delay}"} <= set(script)
    assert 0 < made._grace < delay


def test_without_a_cluster_or_a_folder_one_line_says_so(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match='--executor slurm: Could not detect "srun"'):
        executors.Executor("slurm", runs)
    with pytest.raises(UserError, match="--slurm goes with --executor slurm"):
        executors.Executor("local", runs, ["time=3"])
    (runs / ".jobs").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        executors.Executor("local", runs)


def test_a_job_that_the_cluster_refuses_is_one_line(cluster: Path, runs: Path) -> None:
    (cluster / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"--executor slurm: not submitted: .*invalid partition"):
        executors.Executor("slurm", runs).submit(["true"], "name", 0)


@pytest.mark.parametrize(
    ("named", "seen", "gpus"),
    [
        ("2,5", 2, ["2", "5"]),
        ("GPU-1f3a,GPU-77b0", 2, ["GPU-1f3a", "GPU-77b0"]),
        ("MIG-c6d4", 1, ["MIG-c6d4"]),
        ("1,0,-1,2", 2, ["1", "0"]),
        (None, 2, ["0", "1"]),
    ],
)
def test_jobs_of_this_machine_share_out_its_gpus(
    named: str | None, seen: int, gpus: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    made = executors.Executor("local", runs)
    assert made.at_once() == len(gpus)
    given = []

    def submit(command: executors.Command) -> object:
        given.append(command.environment["CUDA_VISIBLE_DEVICES"])
        return type("Submitted", (), {"job_id": "1"})

    monkeypatch.setattr(made._submitit, "submit", submit)
    for slot in range(len(gpus) + 1):
        made.submit(["true"], "name", slot)
    assert given == [*gpus, gpus[0]]


@pytest.mark.parametrize("named", ["-1", "NoDevFiles", ""])
def test_gpus_that_are_hidden_are_not_given_to_jobs(named: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert executors._gpus() == []
    assert executors.Executor("local", runs).at_once() == os.cpu_count()


@pytest.mark.parametrize("asked", ["/proc", "ps"])
def test_a_number_of_another_process_or_machine_is_no_job_of_ours(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked == "ps":
        monkeypatch.setattr(executors, "PROCESSES", tmp_path)
    if not (shutil.which(asked) or Path(asked).exists()):
        pytest.skip(f"this machine has no {asked}")
    here = executors.socket.gethostname()
    assert not executors.Job("local", str(os.getpid()), here).going_on(tmp_path)
    assert not executors.Job("local", "1", "another machine").going_on(tmp_path)
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "submitit"], stdout=-1) as process:
        assert process.stdout
        process.stdout.readline()
        job = executors.Job("local", str(process.pid), here)
        assert job.going_on(tmp_path)
        process.kill()
        assert until(lambda: not job.going_on(tmp_path))  # though nobody has asked for its status


def test_where_nothing_tells_of_processes_one_line_says_so(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = executors.Job("local", "1", executors.socket.gethostname())
    monkeypatch.setattr(executors, "PROCESSES", runs)
    monkeypatch.setenv("PATH", "")
    for ask in (lambda: executors.Executor("local", runs), lambda: job.going_on(runs)):
        with pytest.raises(UserError, match=r"is asked of .* or of ps, and neither is here: install ps"):
            ask()
    assert list(runs.iterdir()) == []


def test_who_holds_a_run_directory(tmp_path: Path) -> None:
    assert execution.holder(tmp_path) == ""
    with execution._alone_in(tmp_path):
        assert execution.holder(tmp_path) == str(os.getpid())
    assert execution.holder(tmp_path) == ""


@pytest.mark.parametrize(
    ("more", "lacking", "line"),
    [
        (["--executor", "lokal"], "", "--executor: unknown executor 'lokal'"),
        (["--executor", "local"], "submitit", "--executor local: submitit is missing: "),
        (["--executor", "local", "--fresh"], "", "--fresh and --executor do not go together"),
        (["--slurm", "time=3"], "", "--slurm goes with --executor slurm"),
        (["--executor", "slurm"], "torchrun", "torchrun and --executor do not go together"),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_status_2(
    more: list[str], lacking: str, line: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    find = commands.find_spec
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == lacking else find(name))
    if lacking == "torchrun":
        for name, value in ONE_OF_TWO.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["bench", *words("muni"), "--runs", str(runs), *more])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"bench: {line}")
    assert list(runs.iterdir()) == []


class Queue:
    """Stands in for an executor: a job is over when it is asked about a second time, and its run has its numbers then
    unless it fails."""

    folder = Path("nowhere")

    def __init__(self, failing: str, held: str) -> None:
        self.failing, self.submitted, self.most = failing, [], 0
        self.asked, self.slots = {held: 0}, {held: 0}  # of those at work

    def submit(self, command: list[str], called: str, slot: int) -> executors.Job:
        (name,) = command
        assert slot not in self.slots.values()
        self.submitted.append(name)
        self.asked[name], self.slots[name] = 0, slot
        self.most = max(self.most, len(self.asked))
        return executors.Job("local", name, "here")

    def log(self, job: executors.Job) -> Path:
        return Path(f"{job.number}.err")

    def going_on(self, run: Any, folder: Path) -> bool:
        if run.name not in self.asked:
            return False
        self.asked[run.name] += 1
        if self.asked[run.name] < 2:
            return True
        del self.asked[run.name], self.slots[run.name]
        run.lacks = run.lacks if run.name == self.failing else []
        return False


def test_squeue_that_does_not_answer_ends_no_job(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = slurm.Scheduler(tmp_path)
    monkeypatch.setattr(scheduler, "_pause", lambda: 0)
    monkeypatch.setenv("SQUEUE_PARTITION", "another")
    (cluster / "squeue").write_text("#!/bin/bash\necho 'slurm_load_jobs error: Unable to contact' >&2; exit 1\n")
    assert [scheduler.said("7").over for _ in range(2)] == [False, False]
    line = "bench: squeue does not answer, which is asked again: slurm_load_jobs error: Unable to contact\n"
    assert capsys.readouterr() == ("", line)
    (cluster / "squeue").write_text("#!/bin/bash\necho '7|COMPLETED|None|'; [ -z $SQUEUE_PARTITION ]\n")
    assert scheduler.said("7") == slurm.Said("COMPLETED", "None")


def test_a_job_that_slurm_has_forgotten_is_over_with_the_state_that_accounting_kept(
    cluster: Path, tmp_path: Path
) -> None:
    (cluster / "squeue").write_text("#!/bin/bash\n")
    (cluster / "sacct").write_text("#!/bin/bash\necho 'CANCELLED by 0'\n")
    (cluster / "sacct").chmod(0o755)
    (cluster / "scontrol").write_text("#!/bin/bash\necho JobId=7 JobState=PENDING Reason=Priority\n")
    assert slurm.Scheduler(tmp_path).said("7") == slurm.Said("PENDING", "Priority")  # a squeue that is behind
    (cluster / "scontrol").write_text("#!/bin/bash\necho Invalid job id specified >&2; exit 1\n")
    said = slurm.Scheduler(tmp_path).said("7")
    assert (said.over, said.broken_off) == (True, "CANCELLED")


def test_why_numbers_are_missing_is_what_their_rows_say(runs: Path, tmp_path: Path) -> None:
    """Of this very run alone, each reason once."""
    method = tmp_path / "fails.py"
    method.write_text((ROOT / "baselines" / "mopoe.py").read_text() + "\nMETHOD.loss = lambda *given: 1 / 0\n")
    command = ["run", "--method", method, "--task", "uncond", *SMALL, "--runs", runs]
    assert bench(*command).status == 1
    overrides = [f"{field}={value}" for field, value in TINY.items()]
    job = commands._job(str(method), "gaussian_mixture", "smoke", 0, ["uncond"], False)
    (line,) = executors._faults(run_identity.prepare(job, runs, overrides), executors.Executor("local", runs))
    assert line.endswith("fails.py seed 0: 4 numbers are missing: error: ZeroDivisionError: division by zero")
    other = run_identity.prepare(job, runs, [*overrides, "updates=99"])
    (line,) = executors._faults(other, executors.Executor("local", runs))
    assert line.endswith("fails.py seed 0: 4 numbers are missing")


class FakeRun:
    def __init__(self, name: str, folder: Path, lacks: int = 2) -> None:
        self.name, self.directory, self.lacks = name, folder / name, [("cell", "metric")] * lacks
        self.job = type("Job", (), {"method": name, "seed": 0})
        self.directory.mkdir()


@pytest.mark.parametrize("most", [1, 2])
def test_each_run_is_submitted_once_unless_it_has_its_numbers_or_is_worked_on(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, *rest = (FakeRun(name, tmp_path, lacks=2 * (name != "done")) for name in ("done", "held", "a", "b", "c"))
    queue, seen = Queue(failing="b", held="held"), []
    monkeypatch.setattr(executors, "POLL_SECONDS", 0)
    monkeypatch.setattr(executors, "_going_on", queue.going_on)
    monkeypatch.setattr(run_identity, "missing", lambda run: run.lacks)
    monkeypatch.setattr(run_identity, "failures", lambda run: ["error: why"])
    runs = [done, *rest]
    executors._write_record(done, executors.Job("local", "1", "another machine"))  # type: ignore[arg-type]
    errors = executors.carry_out(
        runs,  # type: ignore[arg-type]
        [[run.name] for run in runs],
        queue,  # type: ignore[arg-type]
        most,
        lambda *report: seen.append(report[:3]),
    )
    assert queue.submitted == ["a", "b", "c"]
    assert queue.most == most
    assert errors == ["b seed 0: 2 numbers are missing: error: why"]
    assert [run.name for run in runs if run.lacks] == ["b"]
    assert seen[-1] == ("jobs", 5, 5)
    assert list(tmp_path.rglob("job.json")) == []

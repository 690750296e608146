"""A stage on a Ray cluster: trainers are workers of Ray Train, and rollout workers sample.

Each trainer runs the very function of the stage, as under torchrun. All files are on a disk that
the machines share; checkpoints are the stage's own. When a trainer dies all are started again and
go on from the newest checkpoint; rollout workers are the first trainer's care (`ray_rollouts`), and
live no longer than it does.
"""

import importlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tether import ranks
from tether.config import STAGES, TrainConfig
from tether.config_file import from_table, to_table
from tether.errors import ConfigError, ServerError, TetherError
from tether.functions import load_function
from tether.progress import console, results
from tether.rundir import STOP, StageFolder
from tether.scale.placement import Role, refusal, roles_of
from tether.scale.ray_rollouts import Places, use
from tether.scale.shared_disk import enter, leave_mark, wipe

PATIENCE = 7200.0  # seconds that one trainer may compute alone while the others wait
OWN = "ray.writing"  # Ray Train's own folder while a stage runs
# Ray Train would change the working directory, and watch for machines that are about to be taken
# away; a cluster on this machine has none such.
ELSEWHERE = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_COLOR_PREFIX": "0"}
HERE = {**ELSEWHERE, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


class Stopped(Exception):
    """A trainer has ended as it was asked to, after a checkpoint."""


def run(function: str, kind: str, config: TrainConfig) -> Path:
    """Run a stage on the cluster of its settings.

    Args:
        function: The stage's function, `module:name`.
        kind: The stage's kind, such as "ppo".
        config: Its settings.

    Returns:
        The stage's folder.

    Raises:
        ConfigError: The cluster cannot be reached, or cannot hold the workers, or its machines do
            not see the folder.
        ServerError: Workers died more often than `cluster.max_failures`.
        KeyboardInterrupt: Ctrl-C or SIGTERM; trainers have written a checkpoint.
        TetherError: What a trainer has refused.
    """
    folder = StageFolder(config, kind, [])
    if folder.finished:
        return load_function(function)(config)
    if ranks.count() > 1:
        raise ConfigError(
            "compute.backend='ray' starts processes itself, and this is one of several; "
            "leave out torchrun and set compute.cluster.trainers"
        )
    connect(config)
    roles = roles_of(config)
    check(roles)
    mark = leave_mark(folder.path)
    try:
        with reserved(roles, config.compute.cluster.timeout) as groups:
            cluster = config.compute.cluster
            places = Places(groups, cluster.worker_cpus, cluster.rollout_gpus, mark)
            job = {"function": function, "kind": kind, "table": to_table(config), "places": places}
            _train(job, config, folder)
    finally:
        shutil.rmtree(folder.path / OWN, ignore_errors=True)
        wipe(mark)
    return folder.path


# --- the cluster ----------------------------------------------------------------------------------


def connect(config: TrainConfig) -> None:
    """Connect to the cluster, or start one on this machine; once a process.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers there.
    """
    address = config.compute.cluster.address
    for name, value in (ELSEWHERE if address else HERE).items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.train")
    except ImportError:
        raise ConfigError(
            "compute.backend='ray' needs Ray with Ray Train; pip install 'tether[ray]'"
        ) from None
    if ray.is_initialized():
        return
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address or "local", logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"compute.cluster.address={address!r}: no Ray cluster answers: {reason}; start one "
            'with `ray start --head`, or leave the address "" for one on this machine'
        ) from None


def check(roles: list[Role]) -> None:
    """Refuse what this cluster could never hold.

    Raises:
        ConfigError: With what is asked and what there is.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if words := refusal(machines, roles):
        raise ConfigError(
            f"the cluster cannot hold this run: {words}; lower compute.cluster.trainers, rollouts "
            "or worker_cpus (trainer_gpus, rollout_gpus), or add machines"
        )


@contextmanager
def reserved(roles: list[Role], patience: float) -> Iterator[list[Any]]:
    """Context in which each rollout worker has a place, and the trainers had one a moment ago.

    Yields:
        A placement group for each rollout worker.

    Raises:
        ConfigError: The cluster is too busy: not all places were free within `patience` seconds.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    trainers, *others = roles
    tried = placement_group([trainers.bundle] * trainers.num, strategy="PACK")
    groups = [placement_group([role.bundle]) for role in others for _ in range(role.num)]
    until = time.monotonic() + patience
    try:
        for group in (tried, *groups):
            if not group.wait(max(until - time.monotonic(), 0.0)):
                free = ray.available_resources()
                raise ConfigError(
                    f"no place within compute.cluster.timeout={patience:g} s for "
                    f"{' + '.join(map(str, roles))}: others use the cluster, of which "
                    f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
                )
        remove_placement_group(tried)  # Ray Train makes its own
        yield groups
    finally:
        for group in (tried, *groups):
            remove_placement_group(group)


# --- trainers -------------------------------------------------------------------------------------


def train_here(job: dict[str, Any]) -> None:
    """Run the stage in this process, one of the trainers.

    Raises:
        Stopped: As it was asked to.
        TetherError: As the stage does.
    """
    places: Places = job["places"]
    console.quiet = results.quiet = not ranks.leads()  # which was not known when it was made
    enter(places.mark)
    use(places)
    try:
        load_function(job["function"])(from_table(STAGES[job["kind"]], job["table"]))
    except KeyboardInterrupt:
        raise Stopped from None


def _train(job: dict[str, Any], config: TrainConfig, folder: StageFolder) -> None:
    """Train, and again after a failure, as often as allowed."""
    limit, failures, before = config.compute.cluster.max_failures, 0, ""
    while (error := _fit(_trainer(job, config), folder.path)) is not None:
        failures += 1
        died, cause, reason = _why(error)
        # Broken connections and failing GPUs are told as RuntimeError; they may be well again.
        what = "" if died or isinstance(cause, RuntimeError) else repr(cause)
        if not died and (failures > limit or (what and what == before)):
            raise error  # a mistake in code, with its traceback
        if failures > limit:
            raise ServerError(
                f"training broke off {failures} times, at last: {reason}; look into the machine "
                "and into /tmp/ray/session_latest/logs on it, and run again: it goes on from the "
                "last checkpoint"
            )
        before = what
        console.print(
            f"training broke off: {reason}\n"
            f"it starts again from its last checkpoint ({failures} of {limit})",
            markup=False,
        )


def _trainer(job: dict[str, Any], config: TrainConfig) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without a detached actor that outlives this run to clean up what ends with it anyway."""

        def _create_default_callbacks(self) -> list[Any]:
            every = super()._create_default_callbacks()
            return [each for each in every if "PlacementGroupCleaner" not in type(each).__name__]

    cluster = config.compute.cluster
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{cluster.timeout:g}"
    trainers = roles_of(config)[0]
    backend = "cpu:gloo,cuda:nccl" if trainers.gpus else "gloo"
    return Trainer(
        train_here,
        train_loop_config=job,
        torch_config=TorchConfig(backend=backend, timeout_s=int(PATIENCE)),
        scaling_config=ScalingConfig(
            num_workers=trainers.num,
            use_gpu=trainers.gpus > 0,
            resources_per_worker=trainers.bundle,
        ),
        # Which failures are worth another start is decided here, since not all are: a setting that
        # is wrong stays wrong. What Ray Train keeps for itself is next to nothing.
        run_config=RunConfig(
            name=OWN,
            storage_path=str(Path(config.out).absolute()),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit(trainer: Any, folder: Path) -> Exception | None:
    """Train to the end; returns what it broke off with.

    Raises:
        KeyboardInterrupt: It was asked to stop, by a signal, and has.
        TetherError: A trainer refused something.
    """
    box: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    with _signals() as asked:
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            if asked():  # again and again, since a training that begins takes the file away
                (folder / STOP).touch()
    if asked():
        (folder / STOP).unlink(missing_ok=True)
    causes = [cause for error in box for cause in _causes(error)]
    for cause in causes:
        if isinstance(cause, TetherError):
            raise cause
    if asked() or any(isinstance(cause, Stopped) for cause in causes):
        raise KeyboardInterrupt
    return box[0] if box else None


@contextmanager
def _signals() -> Iterator[Any]:
    """Context in which Ctrl-C and SIGTERM only ask, a first time; yields whether they have."""
    heard: list[float] = []

    def hear(_number: int, _frame: FrameType | None) -> None:
        if heard and time.monotonic() - heard[0] > 1.0:
            raise KeyboardInterrupt
        if not heard:
            console.print("stopping after this step, with a checkpoint; once more: at once")
            heard.append(time.monotonic())

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _causes(error: Exception) -> list[Exception]:
    """What the trainers raised, without Ray Train's wrapping."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return [getattr(failure, "_base_exc", failure) for failure in failures.values()]


def _why(error: Exception) -> tuple[bool, Exception, str]:
    """Whether a trainer died, what it failed of, and that in one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    died = {rank: each for rank, each in failures.items() if not hasattr(each, "_base_exc")}
    for rank, failure in (died or failures).items():
        cause = getattr(failure, "_base_exc", failure)
        return bool(died), cause, f"trainer {rank}: {type(cause).__name__}: {_first_line(cause)}"
    return True, error, _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]

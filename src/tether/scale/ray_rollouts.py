"""Rollout workers on a Ray cluster: each a whole policy that samples its part of the rows.

Workers know nothing but their weights, and a completion is a function of (weights, prompt, seed,
step, row). So one that dies is made again, gets the newest weights, and is asked for the same rows;
where it cannot be placed again the others take its rows. The numbers stay those of one process.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from tether.config import OnlineConfig
from tether.engine.decode import Sampled
from tether.engine.samplers import Drawn, Request, draw
from tether.errors import ConfigError, ServerError
from tether.models.language_model import LanguageModel, load
from tether.models.weights import trained
from tether.ranks import leads
from tether.scale.shared_disk import Mark, enter
from tether.sections import ComputeConfig, LoraConfig

TRIES = 3  # of one worker's rows with that worker, before the others get them
BUCKET = 1 << 28  # bytes of weights in one object of Ray's store


class Died(Exception):
    """A worker or its machine is gone, or cannot be reached."""


@runtime_checkable
class Worker(Protocol):
    """A rollout worker, as the trainer sees it; every call may raise `Died`."""

    def load(self, weights: Any, version: int) -> None:
        """Take over weights that were shipped."""
        ...

    def sample(self, request: Request) -> Drawn:
        """Complete these rows, and say by which weights."""
        ...

    def end(self) -> None:
        """End it, whatever state it is in."""
        ...


class RaySampler:
    """Samples with several workers, and outlives them; see `engine.samplers.Sampler`."""

    plain = False

    def __init__(
        self,
        make: Callable[[int, float], Worker | None],
        ship: Callable[[Iterator[tuple[str, Tensor]]], Any],
        count: int,
        patience: float,
    ) -> None:
        """Make the workers, which load their models meanwhile.

        Args:
            make: (which one, seconds to wait for its place) makes a worker; None = there is none.
            ship: Puts weights to where workers can fetch them.
            count: How many workers.
            patience: Seconds to wait for the place of one that is made again.
        """
        self.places = count
        self._make, self._ship, self._patience = make, ship, patience
        self._pool = ThreadPoolExecutor(count)
        self._weights: Any = None
        self._version = -1
        self._resent = False
        self._given_up: set[int] = set()
        self._reason = ""
        self._workers: list[Worker | None] = [make(i, patience) for i in range(count)]
        self._has: list[int] = [-1] * count  # version of the weights of each

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Ship weights to every worker; one that was given up gets another chance.

        Raises:
            ServerError: No worker is left.
        """
        self._weights = None  # the store need not hold two of them
        self._weights, self._version = self._ship(weights), version
        for i, alive in enumerate(self._pool.map(self._ready, range(self.places))):
            (self._given_up.discard if alive else self._given_up.add)(i)
        self._left()
        self._resent = False

    def sample(self, request: Request) -> Drawn:
        """Completions in the order of the request.

        Raises:
            ServerError: No worker is left, after all tries.
        """
        found: dict[int, Sampled] = {}
        while missing := [i for i in range(len(request.prompts)) if i not in found]:
            left = self._left()
            parts = split(missing, len(left))
            asked = [(i, _rows(request, part)) for i, part in zip(left, parts, strict=True)]
            answers = self._pool.map(self._ask, asked)
            for i, part, answer in zip(left, parts, answers, strict=True):
                if answer is None:
                    self._given_up.add(i)
                else:
                    found |= dict(zip(part, answer, strict=True))
        rows = range(len(request.prompts))
        return Drawn([found[i] for i in rows], self._version, resent=self._told_resent())

    def close(self) -> None:
        """End all workers."""
        self._pool.shutdown(cancel_futures=True)
        for i in range(self.places):
            self._end(i)

    def _left(self) -> list[int]:
        left = [i for i in range(self.places) if i not in self._given_up]
        if not left:
            raise ServerError(
                f"no rollout worker of {self.places} is left ({self._reason}); mend the cluster "
                "and run again: training goes on from its last checkpoint"
            )
        return left

    def _ask(self, asked: tuple[int, Request]) -> list[Sampled] | None:
        """The rows of one worker; None where it has none to give after all tries."""
        i, request = asked
        if not request.prompts:
            return []
        for _ in range(TRIES):
            worker = self._ready(i)
            if worker is None:
                return None
            try:
                drawn = worker.sample(request)
                if drawn.version == self._version:
                    return drawn.sampled
                self._reason = f"one answered with weights {drawn.version} for {self._version}"
            except Died as death:
                self._reason = str(death)
            self._end(i)
        return None

    def _ready(self, i: int) -> Worker | None:
        """A worker with the newest weights, made again if need be; None where that fails."""
        for _ in range(TRIES):
            patience = 0.0 if i in self._given_up else self._patience
            worker = self._workers[i] = self._workers[i] or self._make(i, patience)
            if worker is None:
                self._reason = f"there is no place for one within {self._patience:g} s"
                return None
            if self._has[i] == self._version:
                return worker
            try:
                worker.load(self._weights, self._version)
            except Died as death:
                self._reason = str(death)
                self._end(i)
                continue
            self._has[i], self._resent = self._version, True
            return worker
        return None

    def _told_resent(self) -> bool:
        """Whether weights were sent once more since somebody asked."""
        resent, self._resent = self._resent, False
        return resent

    def _end(self, i: int) -> None:
        if worker := self._workers[i]:
            worker.end()
        self._workers[i], self._has[i] = None, -1


def split(rows: list[int], count: int) -> list[list[int]]:
    """Rows dealt out to `count` workers, in one piece each and as evenly as can be."""
    base, more = divmod(len(rows), count)
    ends = [base * i + min(i, more) for i in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


def _rows(request: Request, chosen: list[int]) -> Request:
    return request._replace(
        prompts=[request.prompts[i] for i in chosen], rows=[request.rows[i] for i in chosen]
    )


# --- on the cluster -------------------------------------------------------------------------------


class Places(NamedTuple):
    """What the driver reserved for rollout workers: a placement group and resources of each."""

    groups: list[Any]
    cpus: float
    gpus: float
    mark: Mark


class Policy(NamedTuple):
    """Which policy a rollout worker loads; its trained weights come later."""

    model: str
    compute: ComputeConfig
    lora: LoraConfig
    seed: int


_places: Places | None = None


def use(places: Places) -> None:
    """Tell this process, a trainer, what its driver has reserved."""
    global _places
    _places = places


def ray_sampler(config: OnlineConfig) -> RaySampler:
    """A sampler on the places that the driver has reserved; a mute one in all other trainers.

    Raises:
        ConfigError: No driver has.
    """
    if _places is None:
        raise ConfigError(
            "compute.backend='ray' works for what is started by `tether` or `pipeline.run_stage`; "
            'use one of them, or set compute.backend = "local"'
        )
    what = Policy(config.model, config.compute, config.lora, config.seed)
    make = partial(_make, _places, what) if leads() else lambda _i, _patience: None
    count = len(_places.groups)
    return RaySampler(make, _ship, count, config.compute.cluster.timeout)


def _make(places: Places, policy: Policy, i: int, patience: float) -> Worker | None:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = places.groups[i]
    if not group.wait(patience):
        return None
    options: Any = {"num_cpus": places.cpus, "num_gpus": places.gpus, "max_restarts": 0}
    options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
    return _Remote(ray.remote(_Sampling).options(**options).remote(policy, places.mark))


def _ship(weights: Iterator[tuple[str, Tensor]]) -> list[Any]:
    """Put weights into Ray's store."""
    import ray

    return [ray.put(bucket) for bucket in packed(weights)]


def packed(weights: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """Weights as bytes, some at a time: {name: (dtype, shape, array)}.

    Bytes, since numpy has no bfloat16. Workers on one machine read one copy of an array.
    """
    bucket: dict[str, Any] = {}
    size = 0
    for name, tensor in weights:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if bucket and size + data.nbytes > BUCKET:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = (tensor.dtype, tuple(tensor.shape), data)
        size += data.nbytes
    if bucket:
        yield bucket


def unpacked(bucket: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The weights again, in memory of their own."""
    for name, (dtype, shape, data) in bucket.items():
        yield name, torch.from_numpy(data.copy()).view(dtype).reshape(shape)


class _Remote:
    """A rollout worker on the cluster; `Died` stands for Ray's errors, not for the worker's own."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        actor.begin.remote()

    def load(self, weights: Any, version: int) -> None:
        self._call("load", weights, version)

    def sample(self, request: Request) -> Drawn:
        return self._call("sample", request)

    def end(self) -> None:
        import ray

        ray.kill(self._actor, no_restart=True)

    def _call(self, name: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(getattr(self._actor, name).remote(*arguments))
        except RayTaskError as error:
            cause: Any = error.cause
            if isinstance(cause, RayError):
                raise Died(_told(cause)) from None
            raise cause from None
        except RayError as error:
            raise Died(_told(error)) from None


def _told(error: Exception) -> str:
    """An error of Ray's in one line: its first, and the last, where the cause stands if any."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys((lines[0], lines[-1])))}"


class _Sampling:
    """What runs on the cluster: one policy, whose weights come from the trainer."""

    def __init__(self, policy: Policy, mark: Mark) -> None:
        self._policy, self._mark = policy, mark
        self._model: LanguageModel | None = None
        self._version = -1

    def begin(self) -> None:
        """Load the model; what is wrong with it is told by the call that needs it."""
        try:
            self._loaded()
        except Exception:
            return

    def load(self, buckets: list[Any], version: int) -> None:
        """Take over weights: all that are trained."""
        import ray

        targets = dict(trained(self._loaded()))
        self._version = -1
        with torch.no_grad():
            for bucket in buckets:
                for name, tensor in unpacked(ray.get(bucket)):
                    targets.pop(name).copy_(tensor)
        if targets:
            raise ServerError(f"no weights came for {min(targets)!r} of {self._policy.model!r}")
        self._version = version

    def sample(self, request: Request) -> Drawn:
        """Completions by the weights that are here."""
        return Drawn(draw(self._loaded(), request), self._version)

    def _loaded(self) -> LanguageModel:
        if self._model is None:
            enter(self._mark)
            model, compute, lora, seed = self._policy
            self._model = load(model, compute, trainable=True, lora=lora, seed=seed)
            self._model.model.train()  # as the trainer's; there is no dropout
        return self._model

"""The models of the runs as what can be asked: found on disk, loaded when needed, one at a time.

Everything that computes happens in one thread, where torch is imported with the first question;
requests read from it what it tells.
"""

import json
import logging
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from tether.errors import TetherError
from tether.functions import load_function

LOADER = "tether.chat.voice:load_voice"
PATTERNS = ("*/model", "*/models/*", "*/*/model", "*/*/models/*")
MOST_LOADED = 3  # voices in memory
MOST_WAITING = 8  # questions that were not answered yet
MOST_KEPT = 200  # answered ones that can still be judged
PATIENCE = 0.5  # seconds until a silent stream is looked at

Event = dict[str, Any]

log = logging.getLogger(__name__)


class Job:
    """One question under way: what it tells, and whether it is to stop.

    `told` holds what was answered, for the judgment that may follow.
    """

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(12)
        self.stop, self.over = threading.Event(), threading.Event()
        self.told: dict[str, Any] = {}
        self._events: queue.Queue[Event | None] = queue.Queue()

    def tell(self, **event: Any) -> None:
        """Pass something on to whoever asked."""
        self._events.put(event)

    def finish(self) -> None:
        """Nothing more will be told."""
        self.over.set()
        self._events.put(None)

    def events(self, stopping: Callable[[], bool]) -> Iterator[Event | None]:
        """What is told, until it is over; None where nothing was for a moment.

        A reader who leaves stops the job.
        """
        try:
            while not stopping():
                try:
                    event = self._events.get(timeout=PATIENCE)
                except queue.Empty:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self.stop.set()

    def lines(self, stopping: Callable[[], bool]) -> Iterator[str]:
        """The events as lines of JSON; an empty one shows that nobody has left."""
        for event in self.events(stopping):
            yield "\n" if event is None else json.dumps(event) + "\n"


class Voices:
    """The models below a folder of runs, and those that were named beside them.

    `load(name, path, reference)` makes one that answers.
    """

    def __init__(
        self,
        runs: Path,
        load: Callable[[str, str, str], Any] | None = None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        self._runs, self._load, self._named = runs, load, dict(named or {})
        self._loaded: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="voices")

    def found(self) -> dict[str, str]:
        """The language models there are: names like "demo/ppo" and their directories."""
        names = dict(self._named)
        for pattern in PATTERNS:
            for folder in sorted(self._runs.glob(pattern)):
                if folder.resolve().is_relative_to(self._runs) and _is_language_model(folder):
                    parts = folder.relative_to(self._runs).parts
                    name = "/".join(part for part in parts if part not in ("model", "models"))
                    names[name] = str(folder)
        return dict(sorted(names.items()))

    def require(self, name: str) -> str:
        """The name, if there is such a model.

        Raises:
            HTTPException: 404 where there is none.
        """
        if name not in self.found():
            raise HTTPException(404, f"There is no model {name!r} among the runs.")
        return name

    def voice(self, name: str, reference: str = "") -> Any:
        """A model that answers, loaded if it is not; for work within `ask` alone.

        Raises:
            TetherError: It cannot be loaded.
        """
        key = (name, reference)
        if key not in self._loaded:
            paths = self.found()
            while len(self._loaded) >= MOST_LOADED:
                self._loaded.popitem(last=False)
            load = self._load or load_function(LOADER)
            self._loaded[key] = load(name, paths[name], paths[reference] if reference else "")
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def ask(self, work: Callable[[Job], None]) -> Job:
        """Do something with models once those who asked before have been answered.

        Raises:
            HTTPException: 429 where too many wait.
        """
        job = Job()
        with self._lock:
            if sum(not one.over.is_set() for one in self._jobs.values()) >= MOST_WAITING:
                raise HTTPException(429, "The models are busy; try again in a moment.")
            self._jobs[job.id] = job
            while len(self._jobs) > MOST_KEPT:
                self._jobs.popitem(last=False)

        def run() -> None:
            try:
                if not job.stop.is_set():
                    work(job)
            except TetherError as error:
                job.tell(error=str(error))
            except Exception:
                log.exception("a question to a model broke")
                job.tell(error="Something broke; the terminal of the server says what.")
            finally:
                job.finish()

        self._worker.submit(run)
        return job

    def job(self, number: Any) -> Job:
        """A question that was asked before.

        Raises:
            HTTPException: 404 where it is unknown or was forgotten.
        """
        with self._lock:
            job = self._jobs.get(number) if isinstance(number, str) else None
        if job is None:
            raise HTTPException(404, "This answer is no longer known; ask again.")
        return job

    def close(self) -> None:
        """Let what is under way come to its end soon, and start nothing more."""
        for job in list(self._jobs.values()):
            job.stop.set()
        self._worker.shutdown(wait=False, cancel_futures=True)


def _is_language_model(folder: Path) -> bool:
    """Whether a model directory holds a causal language model, or an adapter of one."""
    try:
        if (folder / "adapter_config.json").is_file():
            facts = json.loads((folder / "adapter_config.json").read_bytes())
            return facts.get("task_type") == "CAUSAL_LM"
        facts = json.loads((folder / "config.json").read_bytes())
        kinds = facts.get("architectures") or []
        return any("CausalLM" in kind or "LMHead" in kind for kind in kinds)
    except (OSError, ValueError, AttributeError, TypeError):
        return False

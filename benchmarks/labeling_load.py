"""Many labelers at once: latency of "submit and get the next item", and that nothing is lost.

    python benchmarks/labeling_load.py                       200 labelers, 20,000 judgments
    python benchmarks/labeling_load.py --kills 20            kill -9 of the server meanwhile

The server is `tether label` in a process of its own. Every labeler joins by invitation, holds one
item in advance as the page does, thinks for an exponential time, submits and gets the next item in
one request. Afterwards the database is compared with what was acknowledged.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from tether.feedback.judgments import Item, item_key
from tether.feedback.people import invite
from tether.feedback.store import Project, Store

SERVE = "import sys; from tether.cli import main; sys.argv = ['tether', *sys.argv[1:]]; main()"


@dataclass
class Seen:
    """What the labelers saw: seconds of each submission, and what was acknowledged."""

    seconds: list[float] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)  # submission → judgment
    retries: int = 0


class Server:
    """`tether label` as a process that can be killed and started again on the same port."""

    def __init__(self, project: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.project = f"http://127.0.0.1:{self.port}", project
        self.log = project.with_suffix(".log")

    def start(self) -> None:
        command = [
            sys.executable,
            "-c",
            SERVE,
            "label",
            str(self.project),
            "--port",
            str(self.port),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"the server ended: {self.log.read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        sys.exit("the server did not start within 30 s")

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()


def build(path: Path, num_items: int, num_labelers: int) -> list[str]:
    """A project of `num_items` items for three labelers each; the tokens of its people."""
    project = Project(name="load", num_labelers=3, repeat_share=0.0, gold_share=0.0)
    store = Store.create(path, project, "Which answer helps most?")
    texts = [f"Answer {letter}. " + "It has a few sentences. " * 12 for letter in "ABCD"]
    prompts = [f"Question number {i}?" for i in range(num_items)]
    store.add_items(
        Item(key=item_key(prompt, texts), prompt=prompt, completions=list(texts), sources=[""] * 4)
        for prompt in prompts
    )
    return [invite(store, f"labeler {number}") for number in range(num_labelers)]


class Labeler:
    """One person's browser: a session, the item on the page and one in advance."""

    def __init__(self, url: str, token: str, number: int, seen: Seen) -> None:
        limits = httpx.Limits(max_connections=1)
        self.client = httpx.AsyncClient(base_url=url, limits=limits, timeout=10, trust_env=False)
        self.token, self.seen, self.random = token, seen, random.Random(number)
        self.number, self.count, self.held = number, 0, []

    async def join(self) -> None:
        page = await self.retried(
            lambda: self.client.get(f"/join/{self.token}", follow_redirects=True)
        )
        self.csrf = re.search(r'name="csrf" (?:content|value)="([^"]+)"', page.text)[1]

    async def work(self, judgments: asyncio.Semaphore, think: float) -> None:
        """Judge until all judgments are made or nothing is left."""
        await self.join()
        await self.prefetch()
        while self.held and not judgments.locked():
            await judgments.acquire()
            await asyncio.sleep(self.random.expovariate(1 / think))
            await self.submit(self.held.pop(0))
            if len(self.held) < 2:
                await self.prefetch()

    async def prefetch(self) -> None:
        for _ in range(2 - len(self.held)):
            held = ",".join(str(item["id"]) for item in self.held)
            reply = await self.retried(
                lambda held=held: self.client.get("/api/next", params={"held": held})
            )
            if (item := reply.json()["next"]) is not None:
                self.held.append(item)

    async def submit(self, item: dict) -> None:
        self.count += 1
        ranks = [self.random.randint(1, 4) for _ in item["completions"]]
        answer = {
            "assignment": item["id"],
            "submission": f"labeler-{self.number}-{self.count:06}",
            "verdict": "ranked",
            "ranks": ranks,
            "held": [other["id"] for other in self.held],
        }
        headers = {"X-CSRF-Token": self.csrf}
        begun = time.perf_counter()
        reply = await self.retried(
            lambda: self.client.post("/api/judgments", json=answer, headers=headers)
        )
        self.seen.seconds.append(time.perf_counter() - begun)
        self.seen.saved[answer["submission"]] = reply.json()["saved"]
        if (following := reply.json()["next"]) is not None:
            self.held.append(following)

    async def retried(self, call):
        """As the page does: again until the server answers."""
        for attempt in range(200):
            try:
                reply = await call()
            except httpx.TransportError:
                self.seen.retries += 1
                await asyncio.sleep(0.05 + 0.05 * self.random.random() * min(attempt, 10))
                continue
            if reply.status_code in (429, 503):
                self.seen.retries += 1
                await asyncio.sleep(0.2)
                continue
            if reply.is_error:
                raise RuntimeError(f"{reply.status_code}: {reply.text[:200]}")
            return reply
        raise RuntimeError("the server did not come back")


async def label(server: Server, tokens: list[str], total: int, think: float, kills: int) -> Seen:
    """Let everybody work; kill and start the server `kills` times while they do."""
    seen = Seen()
    judgments = asyncio.Semaphore(total)
    people = [Labeler(server.url, token, n, seen) for n, token in enumerate(tokens)]
    work = [asyncio.create_task(one.work(judgments, think)) for one in people]
    chance = random.Random(0)
    for kill in range(kills):
        while len(seen.saved) < (kill + chance.random()) * total / (kills + 1):
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.random() * 0.05)
        server.stop(signal.SIGKILL)
        await asyncio.to_thread(server.start)
    await asyncio.gather(*work)
    for one in people:
        await one.client.aclose()
    return seen


def check(path: Path, seen: Seen) -> dict[str, int | str]:
    """Compare the database with what was acknowledged; everything but `judgments` must be 0."""
    store = Store(path)
    db = store.read()
    rows = dict(db.execute("SELECT submission, id FROM judgments").fetchall())
    doubled = db.execute(
        "SELECT count(*) FROM (SELECT assignment FROM judgments GROUP BY 1 HAVING count(*) > 1)"
    ).fetchone()[0]
    over = db.execute(
        "SELECT count(*) FROM (SELECT a.item FROM judgments AS j JOIN assignments AS a "
        "ON a.id = j.assignment GROUP BY a.item HAVING count(DISTINCT j.labeler) > 3)"
    ).fetchone()[0]
    twice = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM judgments AS j JOIN assignments AS a "
        "ON a.id = j.assignment GROUP BY a.item, j.labeler HAVING count(*) > 1)"
    ).fetchone()[0]
    return {
        "judgments": len(rows),
        "acknowledged": len(seen.saved),
        "acknowledged but lost": sum(rows.get(name) != id for name, id in seen.saved.items()),
        "stored twice": doubled,
        "items over-assigned": over,
        "items twice to one labeler": twice,
        "integrity": db.execute("PRAGMA integrity_check").fetchone()[0],
    }


def run(folder: Path, labelers: int, total: int, think: float, kills: int) -> dict:
    """One measurement; its figures."""
    path = folder / "load.db"
    tokens = build(path, num_items=total // 3 + 2 * labelers, num_labelers=labelers)
    server = Server(path)
    server.start()
    begun = time.perf_counter()
    try:
        seen = asyncio.run(label(server, tokens, total, think, kills))
    finally:
        server.stop()
    milliseconds = 1000 * np.array(seen.seconds)
    figures = {
        "seconds": time.perf_counter() - begun,
        "kills": kills,
        "retries": seen.retries,
        **{f"p{q} ms": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)},
        "max ms": float(milliseconds.max()),
        **check(path, seen),
    }
    leaked = [token for token in tokens if token in server.log.read_text()]
    return {**figures, "tokens in the log": len(leaked)}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelers", type=int, default=200)
    parser.add_argument("--judgments", type=int, default=20_000)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds between judgments")
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of the server meanwhile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = options.labelers, options.judgments, options.think, options.kills
        print(json.dumps(run(Path(folder), *numbers), indent=2))


if __name__ == "__main__":
    main()

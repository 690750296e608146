"""Nothing is lost or paid for twice after kill -9 in the middle of 1,000 judgments."""

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import pytest
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from tests.rewards.toy_server import ToyServer, completion

from tether.rewards.spending import request_key

JUDGMENTS, KILLS, CONCURRENCY = 1000, 4, 8

JUDGING = """
import json, sys
from pathlib import Path
from tether.rewards.endpoint import load_endpoint_judge
from tether.rewards.judge import Comparison
from tether.servers import EndpointConfig

url, folder, count, concurrency = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
ask = lambda c: [{"role": "user", "content": f"{c.prompt}: {c.first} or {c.second}? {c.question}"}]
config = EndpointConfig(base_url=url, model="toy", concurrency=concurrency)
judge = load_endpoint_judge(config, folder, ask, show=False)
wins = judge.first_wins([Comparison(f"{i}", "cat", "dog", "who") for i in range(count)])
(folder / "wins.json").write_text(json.dumps(wins))
"""


def log_probs(number):
    """Made up, and another one for each comparison."""
    return {"A": -0.1 - number % 7, "B": -0.3 - number % 11}


class Killing(ToyServer):
    """Kills its client at drawn requests, before or after it has sent the answer to one."""

    def __init__(self):
        super().__init__(self.reply)
        self.client = None
        self.answered = Counter()
        drawn = random.Random(5)
        self.kills = set(drawn.sample(range(20, 950, 31), KILLS))
        self.served = 0

    def reply(self, body):
        key = request_key(self.url + "/chat/completions", body)
        self.answered[key] += 1
        self.served += 1
        number = int(body["messages"][0]["content"].split(":")[0])
        answer = JSONResponse(completion(listed=log_probs(number)))
        if self.served in self.kills:
            self.kills.remove(self.served)
            if self.served % 2:
                self.kill()
            else:
                answer.background = BackgroundTask(self.kill)
        return answer

    def kill(self):
        os.kill(self.client.pid, signal.SIGKILL)


def kept(folder):
    """The requests whose answers are on the disk."""
    with closing(sqlite3.connect(folder / "judge.db")) as db:
        return {key for (key,) in db.execute("SELECT key FROM calls WHERE answer IS NOT NULL")}


def test_nothing_is_lost_or_paid_for_twice_after_kill_9(tmp_path):
    starts = 0
    acknowledged = {}  # request → how often it had been answered when its answer was on the disk
    with Killing().running() as server:
        while not (tmp_path / "wins.json").exists():
            command = [sys.executable, "-c", JUDGING, server.url, str(tmp_path)]
            server.client = subprocess.Popen([*command, str(JUDGMENTS), str(CONCURRENCY)])
            code = server.client.wait(timeout=120)
            starts += 1
            assert code in (0, -signal.SIGKILL)
            for key in kept(tmp_path):
                acknowledged.setdefault(key, server.answered[key])
    assert starts == KILLS + 1

    # Every judgment is there: p(A)/(p(A) + p(B)) = 1/(1 + exp(b − a)).
    wins = json.loads((tmp_path / "wins.json").read_text())
    expected = [1 / (1 + math.exp(x["B"] - x["A"])) for x in map(log_probs, range(JUDGMENTS))]
    assert wins == pytest.approx(expected)

    # What was on the disk was never asked again; what was under way when the process was killed,
    # at most CONCURRENCY requests each time, may have been answered once more.
    assert len(acknowledged) == JUDGMENTS
    assert acknowledged == server.answered
    assert JUDGMENTS <= server.served <= JUDGMENTS + KILLS * CONCURRENCY
    # Every answer that reached the file is in it once, with its cost.
    with closing(sqlite3.connect(tmp_path / "judge.db")) as db:
        assert db.execute("SELECT count(*), sum(input_tokens) FROM calls").fetchone() == (
            JUDGMENTS,
            100 * JUDGMENTS,
        )
        assert db.execute("SELECT tokens FROM total").fetchone() == (101 * JUDGMENTS,)

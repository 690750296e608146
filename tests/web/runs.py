"""A folder of runs as training leaves it, and a server for it."""

import json
import subprocess
import sys
from contextlib import contextmanager

from starlette.testclient import TestClient

from tests.train import toys
from tests.web.pages import SECRET, Listening
from tether.config_file import toml_text
from tether.web.main import build, workshop
from tether.web.server import LOOPBACK

URL = "http://127.0.0.1"


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")


def make_stage(folder, kind="ppo", rows=(), **settings):
    """A stage under way, with these rows of metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"kind": kind, "out": str(folder), "seed": 0, **settings}
    (folder / "config.toml").write_text(toml_text(table), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", rows)
    return folder


def finish(folder, **facts):
    kind = "ppo"
    result = {"kind": kind, "name": folder.name, "seconds": 12.5, "inputs": {}, **facts}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def ppo_row(step, **changes):
    row = {"step": step, "score": 0.01 * step, "kl": 0.1 * step, "beta": 0.05, "length": 20.0}
    row |= {"policy_loss": -0.02, "value_loss": 0.3, "clip_fraction": 0.1, "entropy": 2.0}
    row |= {"seconds_generate": 0.5, "seconds_score": 0.1, "seconds_train": 1.0}
    return row | changes


def client(folder, projects=(), token="", hosts=LOOPBACK):
    site = workshop(folder, [str(one) for one in projects], token)
    app = build(site, secret=SECRET, hosts=hosts)
    return TestClient(app, base_url=URL, follow_redirects=False)


@contextmanager
def serving_runs(folder, projects=()):
    site = workshop(folder, [str(one) for one in projects])
    server = Listening(build(site, secret=SECRET, hosts=LOOPBACK))
    site.stopping = lambda: server.server.should_exit
    try:
        yield server
    finally:
        if server.thread.is_alive():
            server.stop()


PPO = """\
--steps {steps} --batch-size 8 --minibatches 2 --epochs 2 --checkpoint-every 0 --kl.beta 0.1
--sampling.max-new-tokens 6 --optimizer.learning-rate 1e-3 --compute.threads 1
"""


def tiny_ppo(folder, out, steps=5000):
    """The command of a PPO run on a model of random weights, and its environment."""
    model = toys.save(folder)
    prompts = toys.write_rows(folder / "prompts.jsonl", toys.PROMPTS)
    reward = f"{toys.write_rewards(folder)}:kind"
    words = ["--model", model, "--prompts", prompts, "--reward", reward, "--out", str(out)]
    return [sys.executable, "-m", "tether.cli", "ppo", *words, *PPO.format(steps=steps).split()]


@contextmanager
def training(command):
    """A command in a process of its own, ended with the test at the latest."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()

"""A folder of runs as training leaves it, and a server for it."""

import json
from contextlib import contextmanager

from starlette.testclient import TestClient

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


def make_app(folder, projects=(), token="", hosts=LOOPBACK):
    site = workshop(folder, [str(one) for one in projects], token)
    return build(site, secret=SECRET, hosts=hosts)


def client(folder, **settings):
    return TestClient(make_app(folder, **settings), base_url=URL, follow_redirects=False)


@contextmanager
def serving_runs(folder, **settings):
    server = Listening(make_app(folder, **settings))
    try:
        yield server
    finally:
        if server.thread.is_alive():
            server.stop()

"""A folder of runs with tiny models, a server for it, and models that say what a test wants."""

import json
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

from tests.chat.voices import save_chat
from tests.tiny import byte_bpe_tokenizer, save_encoder, save_tiny
from tests.web.pages import SECRET, Listening
from tether.web.main import build, workshop
from tether.web.server import LOOPBACK


def make_runs(folder):
    """demo/sft and demo/ppo, which continue texts; talk/sft, which chats; and no reward model."""
    plain = {"tokenizer": byte_bpe_tokenizer(), "max_position_embeddings": 512}
    save_tiny(folder / "demo" / "sft" / "model", **plain)
    save_tiny(folder / "demo" / "ppo" / "model", seed=1, **plain)
    save_chat(folder / "talk" / "sft" / "model")
    save_encoder(folder / "demo" / "reward" / "model", labels=2)
    rows = [{"prompt": f"the cat sees {n}", "completion": "yes"} for n in ("a dog", "a bird")]
    (folder / "demo" / "ppo" / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


class Said(NamedTuple):
    """A piece as the pages read it."""

    text: str


class Actor:
    """Says what it is told to, word by word; `waits` holds it back before each word."""

    def __init__(self, name, texts, *, chats=True, pause=0.0):
        self.name, self.texts, self.chats, self.pause = name, texts, chats, pause
        self.takes_system, self.compares, self.asked = chats, False, []
        self.began, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def answer(self, prompt, **settings):
        self.asked.append((prompt, settings))
        text = self.texts[(len(self.asked) - 1) % len(self.texts)]
        self.began.set()
        for number, word in enumerate(text.split(" ")):
            if number:
                self.may_go_on.wait(5)
                time.sleep(self.pause)
            yield Said(f" {word}" if number else word)


class Coloured(Actor):
    """Differs from its reference by some nats, word after word."""

    differences = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5)

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.compares = True

    def shaded(self, prompt, pieces):
        found = [self.differences[place % len(self.differences)] for place in range(len(pieces))]
        return [(d, (d > 0) * min(3, round(2 * d)) + (d < 0) * max(-3, round(d))) for d in found]


@contextmanager
def talking(folder, actors=None, token=""):
    """The server; with `actors`, {name: Actor}, in place of the models of those names."""
    site = workshop(folder, [], token)
    if actors:
        site.voices._load = lambda name, path, reference: actors[name]
    server = Listening(build(site, secret=SECRET, hosts=LOOPBACK))
    server.site = site
    try:
        yield server
    finally:
        site.voices.close()
        server.stop()

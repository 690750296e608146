"""A project with plausible texts, and a server for it that can be stopped and started."""

import sqlite3
import threading
from contextlib import contextmanager

import uvicorn

from tether.feedback.judgments import Item, item_key
from tether.feedback.store import Project, Store
from tether.web.app import build
from tether.web.server import listen, server_settings

SECRET = "a secret that is long enough"

INSTRUCTIONS = """\
Read the prompt, then every answer. Rank by **how much it helps the person who asked**.

- Correct beats complete; complete beats brief.
- An answer that could hurt somebody is a **fail**, however well it is written.
- Equal answers get the same rank.
"""

TEXTS = [
    (
        "My sourdough starter smells like nail polish remover. Is it dead?",
        [
            "No, it is hungry. The smell is acetone, which yeast and bacteria make when their food "
            "runs out. Throw away all but a spoonful, feed it equal weights of flour and water, "
            "and do that twice a day. After two or three days it should smell of yoghurt again.",
            "Probably not. Feed it more often and keep it somewhere warm.",
            "Yes. A chemical smell means that it has been contaminated. You need to throw it away, "
            "scrub the jar and begin again with fresh flour.",
            "The smell is acetone and it is harmless. Feed the starter twice a day, use a little "
            "more flour than water, and keep it below 26 °C, since warmth makes it starve sooner.",
        ],
    ),
    (
        "How can I tell whether an avocado is ripe without cutting it open?",
        [
            "Press it gently near the stem. If it gives a little, it is ripe; if it feels soft, it "
            "is past its best.",
            "Flick off the small cap at the stem. Green underneath means ripe, brown means too "
            "late, and if the cap does not come off it needs a few more days.",
            "Ripe avocados are always black.",
            "Squeeze it in your palm rather than with your fingertips, so as not to bruise it. It "
            "should yield slightly. Colour helps with Hass alone, which darkens as it ripens.",
        ],
    ),
    (
        [
            {"role": "user", "content": "I want to make risotto for six."},
            {"role": "assistant", "content": "Lovely. Which rice do you have?"},
            {"role": "user", "content": "Only basmati. Will that work?"},
        ],
        [
            "It will cook, but it will not turn creamy: basmati has too little starch on its "
            "surface. Make a pilaf with it, or ask a neighbour for arborio.",
            "Yes, use it just as you would use arborio.",
            "Not well. Stir in a spoonful of mascarpone at the end and nobody will mind.",
            "No.",
        ],
    ),
    (
        "Why do my cookies spread flat in the oven?",
        [
            "Usually the butter was too warm. Chill the dough for an hour and bake on a cold tray.",
            "Warm butter, too much sugar, or too little flour. Weigh the flour, chill the dough "
            "and check that the oven is as hot as it says.",
            "Because of gravity.",
            "Add another egg.",
        ],
    ),
    (
        "Can I freeze cooked rice?",
        [
            "Yes. Cool it within an hour, freeze it flat in bags and use it within a month.",
            "Yes, for up to a month. Cool it quickly, since bacteria grow in warm rice, and heat "
            "it until it steams.",
            "No, rice can never be frozen.",
            "You can, although it gets a little dry; add a spoonful of water when you heat it.",
        ],
    ),
]
SIZES = {"rank": 4, "pair": 2, "thumbs": 1}


def make_items(mode="rank", texts=TEXTS):
    items = []
    for prompt, completions in texts:
        kept = completions[: SIZES[mode]]
        sources = [f"secret-model-{place}" for place in range(len(kept))]
        key = item_key(prompt, kept)
        items.append(Item(key=key, prompt=prompt, completions=kept, sources=sources))
    return items


def make_store(path, mode="rank", texts=TEXTS, instructions=INSTRUCTIONS, **settings):
    """A project without repeats and control items, so that tests know how many items there are."""
    settings = {"num_labelers": 2, "repeat_share": 0.0, "gold_share": 0.0, **settings}
    project = Project(name="Kitchen answers", mode=mode, **settings)
    store = Store.create(path, project, instructions)
    store.add_items(make_items(mode, texts))
    return store


@contextmanager
def locked(store):
    """The project as long as another process is writing to it."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


class Listening:
    """An application on a free port, in a thread."""

    def __init__(self, app):
        self.app, self.port = app, 0
        self.start()

    def start(self):
        """Start, after a stop on the same port."""
        self.socket = listen("127.0.0.1", self.port)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(server_settings(self.app))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


class Server(Listening):
    """The labeling server of a project."""

    def __init__(self, store, **settings):
        self.store = store
        super().__init__(build(store, secret=SECRET, **{"name": "Ann", **settings}))


@contextmanager
def serving(store, **settings):
    server = Server(store, **settings)
    try:
        yield server
    finally:
        if server.thread.is_alive():
            server.stop()
        store.close()

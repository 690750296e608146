"""Asked to stop: by Ctrl-C, SIGTERM, or the notice of a scheduler that takes the machine away.

Training ends after the phase it is in (collecting, scoring, a step), with a checkpoint. Everything
else is interrupted at once and loses what it was making: files appear whole or not at all.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Kubernetes and Slurm send SIGTERM before they kill. Slurm's --signal sends what it is told to, by
# custom USR1 or USR2, which unheeded end a process without a word.
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 1.0  # seconds after which a second signal is a second wish; torchrun repeats the first

_asked_at: float | None = None


def notices_interrupt() -> None:
    """From now on a notice does what Ctrl-C does: it raises KeyboardInterrupt, or ends a server."""
    if threading.current_thread() is threading.main_thread():
        for number in NOTICES:
            signal.signal(number, _interrupt)


@contextmanager
def after_phases() -> Iterator[None]:
    """Context in which Ctrl-C and notices only ask; the loop inside looks at `asked`.

    A second one, a second later, interrupts at once. Signals that are ignored stay so, and nothing
    changes outside of the main thread, where no signal arrives.
    """
    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, *NOTICES)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {n: signal.getsignal(n) for n in numbers}
    heard = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, _ask)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal has asked to stop and `stop` has not been called yet."""
    return _asked_at is not None


def stop() -> NoReturn:
    """Stop as asked.

    Raises:
        KeyboardInterrupt: As Ctrl-C does.
    """
    global _asked_at
    _asked_at = None
    raise KeyboardInterrupt


def _ask(_number: int, _frame: FrameType | None) -> None:
    global _asked_at
    now = time.monotonic()
    if _asked_at is not None and now - _asked_at > AGAIN:
        stop()
    _asked_at = _asked_at or now


def _interrupt(_number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # a server's own ends what it is answering
    if not callable(handler):  # ignored, as of what a script puts into the background
        stop()
    handler(signal.SIGINT, frame)

"""The monitor: looks at held-out prompts while a policy is trained, alarms, and what they do.

Its memory is what it wrote into the stage's folder: `monitor.jsonl` (a row a look), `audits.jsonl`
(a row a sample, with what the audits said), `events.jsonl` (a row an alarm) and the models of the
best looks. A run that goes on from a checkpoint cuts the files to its step and reads them back, so
there is nothing that could be remembered wrongly.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text as Line

from tether import parallel
from tether.config import OnlineConfig
from tether.data.formats import read_prompts
from tether.engine.decode import encode_prompts
from tether.progress import console
from tether.rewards.load import check_rules, load_reward
from tether.rundir import StageFolder, write_folder
from tether.train import alarms
from tether.train.look import Look, Watched, look
from tether.train.roles import Roles

FILES = ("monitor.jsonl", "events.jsonl", "audits.jsonl")
EXAMPLES = 5
SHOWN = ("proxy", "audit", "kl", "length", "distinct_2", "template", "entropy", "disagreement")


class Ruling(NamedTuple):
    """What follows from a look: β is doubled so many times, and why the run ends ("" = not)."""

    raises: int
    stopped: str


def load_monitor(config: OnlineConfig, folder: StageFolder, roles: Roles) -> "Monitor | None":
    """The monitor of a run; None where the settings name no prompts for it.

    Raises:
        ConfigError: An audit cannot be used, or a prompt leaves no room for a completion.
        DataError: The prompts cannot be read, or lack what a rule needs of them.
    """
    settings = config.monitor
    if not settings.prompts:
        return None
    records = read_prompts(settings.prompts)[: settings.num_prompts or None]
    prompts = [record.prompt for record in records]
    ids = encode_prompts(roles.policy, prompts, config.sampling.max_new_tokens)
    audits = [load_reward(each, config.compute) for each in settings.audit]
    plots = {each.name: load_reward(each, config.compute) for each in settings.plot}
    check_rules([*roles.rewards, *audits, *plots.values()], prompts)
    who = (roles.source, roles.policy, roles.reference, roles.rewards, audits, plots)
    return Monitor(config, folder, Watched(config, *who, prompts, ids))


def inputs(config: OnlineConfig) -> list[str]:
    """What a monitor reads besides the models of the run."""
    settings = config.monitor
    if not settings.prompts:
        return []
    return [
        settings.prompts,
        *(path for r in (*settings.audit, *settings.plot) for path in r.paths),
    ]


class Monitor:
    """Looks, remembers, raises alarms, keeps the models of the best looks."""

    def __init__(self, config: OnlineConfig, folder: StageFolder, watched: Watched) -> None:
        """Nothing is looked at before `begin`."""
        self.config, self.settings, self.folder = config, config.monitor, folder
        self.watched = watched
        self.looks: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.proxy: list[list[float]] = []  # of each look, a score a sample
        self.audit: list[list[float]] = []
        self.rolling_back = False
        self.num_looks = 1 + math.ceil(config.steps / self.settings.every)

    def begin(self, start: int, save: Callable[[Path], None]) -> None:
        """Read back what there is up to step `start`, or take the look before the first step.

        A run without a checkpoint starts anew, maybe with other settings: so does its memory.
        """
        if start == 0:
            forget_models(self.folder)
            for name in FILES if parallel.leads() else ():
                (self.folder.path / name).unlink(missing_ok=True)
        parallel.wait()
        self.looks, self.events = map(self._rows, FILES[:2])
        samples = self._rows(FILES[2])
        for each in self.looks:
            rows = [row for row in samples if row["step"] == each["step"]]
            self.proxy.append([row["proxy"] for row in rows])
            self.audit.append([row["audit"] for row in rows] if self.settings.audit else [])
        for path in self._kept():
            if _step(path) > start and parallel.leads():
                shutil.rmtree(path)
        if not self.looks:
            self.look(start, save)

    def due(self, step: int) -> bool:
        """Whether to look after this step."""
        return step % self.settings.every == 0 or step == self.config.steps

    def look(self, step: int, save: Callable[[Path], None]) -> Ruling:
        """Look at the policy as it is after `step`; `save` writes it into a folder."""
        begun = time.perf_counter()
        found = look(self.watched, step)
        self.proxy.append([row["proxy"] for row in found.samples])
        self.audit.append([row["audit"] for row in found.samples] if self.settings.audit else [])
        self.looks.append(found.figures)
        turn = self._judge_held_out()
        if self.settings.audit:
            found.figures["best_step"] = self.best_step
            self._keep(step, save)
        for row in found.samples:
            self.folder.log(row, "audits.jsonl")
        raised = self._alarms(found, turn)
        for event in raised:
            self.folder.log(event, "events.jsonl")
            shout(event)
        found.figures["seconds"] = round(time.perf_counter() - begun, 3)
        self.folder.log(found.figures, "monitor.jsonl")
        _say(found.figures)
        return self._ruling(raised)

    # --- the held-out score -----------------------------------------------------------------------

    @property
    def _audit_means(self) -> list[float]:
        return [float(np.mean(scores)) for scores in self.audit]

    @property
    def best_step(self) -> int:
        """Step of the look with the best smoothed held-out score."""
        kept = alarms.kept_looks(self._audit_means, self.settings.keep)
        return self.looks[kept[0]]["step"]

    @property
    def _alarmed(self) -> int:
        """Number of the look that had the last held-out alarm; 0 where there was none."""
        steps = [event["step"] for event in self.events if event["alarm"] == "held_out"]
        numbers = {each["step"]: number for number, each in enumerate(self.looks)}
        return numbers[steps[-1]] if steps else 0

    def _judge_held_out(self) -> alarms.HeldOut | None:
        """Test for a turn at the newest look, and write what was found into its figures."""
        figures = self.looks[-1]
        if not self.settings.audit:
            return None
        figures["audit_smoothed"] = float(alarms.smoothed(self._audit_means)[-1])
        if len(self.looks) - self._alarmed < 2:
            return None
        shape = (len(self.looks), len(self.watched.prompts), self.settings.num_samples)
        found = alarms.held_out(
            np.reshape(self.proxy, shape),
            np.reshape(self.audit, shape),
            share=self.settings.share,
            window=self.settings.window,
            num_looks=self.num_looks,
            since=self._alarmed,
        )
        figures["held_out_p"] = found.p
        return found

    # --- alarms -----------------------------------------------------------------------------------

    def _alarms(self, found: Look, turn: alarms.HeldOut | None) -> list[dict[str, Any]]:
        """The alarms of the newest look; they are remembered."""
        raised: list[dict[str, Any]] = []
        for name, alarm in self.settings.alarms.items():
            if alarm.action == "off":
                continue
            if name == "held_out":
                pending = alarm.action == "rollback" and self._has_alarmed
                if turn is None or pending or turn.p > alarm.limit:
                    continue
                steps = [each["step"] for each in self.looks]
                text, values = alarms.told_held_out(turn, steps)
            else:
                if not self._newly_over(name, again=alarm.action == "raise"):
                    continue
                text, values = alarms.told(name, self.settings, self.looks[-1], self.looks[0])
            event = {"step": found.figures["step"], "alarm": name, "action": alarm.action}
            event |= {"text": text, "values": values, "examples": examples(name, found.samples)}
            raised.append(event)
        self.events += raised
        return raised

    @property
    def _has_alarmed(self) -> bool:
        return any(event["alarm"] == "held_out" for event in self.events)

    def _newly_over(self, name: str, *, again: bool) -> bool:
        """Whether a level has crossed its limit at this look; with `again`, or is still over it."""
        start, *_ = self.looks
        before = self.looks[-2] if len(self.looks) > 1 else {}
        now_over = alarms.over(name, self.settings, self.looks[-1], start)
        return now_over and (again or not alarms.over(name, self.settings, before, start))

    def _ruling(self, raised: list[dict[str, Any]]) -> Ruling:
        """What the alarms of a look and the patience of the settings lead to."""
        raises = sum(event["action"] == "raise" for event in raised)
        for event in raised:
            if event["action"] == "stop":
                return Ruling(raises, f"alarm {event['alarm']}: {event['text']}")
            if event["action"] == "rollback" and event["alarm"] != "held_out":
                return self._roll_back(f"alarm {event['alarm']}: {event['text']}")
        if not self.settings.audit:
            return Ruling(raises, "")
        numbers = [each["step"] for each in self.looks]
        past = len(numbers) - 1 - numbers.index(self.best_step)
        told = f"{past} looks without a better held-out score than at step {self.best_step}"
        since = len(numbers) - 1 - self._alarmed
        if self._pending and min(past, since) >= self.settings.wait:
            return self._roll_back(f"held-out alarm, and {told}")
        if 0 < self.config.stop.patience <= past:
            return self._roll_back(told)
        return Ruling(raises, "")

    @property
    def _pending(self) -> bool:
        """Whether a held-out alarm asked for a roll-back."""
        return self._has_alarmed and self.settings.alarms["held_out"].action == "rollback"

    def _roll_back(self, reason: str) -> Ruling:
        self.rolling_back = True
        return Ruling(0, reason)

    # --- models -----------------------------------------------------------------------------------

    @property
    def _models(self) -> Path:
        return self.folder.path / "looks"

    def _kept(self) -> list[Path]:
        return sorted(self._models.glob("step-*"))

    def _keep(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep this look's model while it is among the best, and let go of one that is not."""
        if not (self.settings.rolls_back or self.config.stop.patience):
            return
        kept = alarms.kept_looks(self._audit_means, self.settings.keep)
        steps = {self.looks[number]["step"] for number in kept}
        if step in steps:
            write_folder(self._models / f"step-{step:06d}", save)
        for path in self._kept():
            if _step(path) not in steps and parallel.leads():
                shutil.rmtree(path)

    def result(self, last: int) -> int | None:
        """Step of the look whose model becomes the stage's result; None = the model as it is.

        That is the best where an alarm or patience ended the run, or where the last step came
        before a held-out alarm's roll-back or with patience in force.
        """
        if not (self.rolling_back or self._pending or self.config.stop.patience):
            return None
        there = {_step(path) for path in self._kept()}
        kept = alarms.kept_looks(self._audit_means, self.settings.keep)
        steps = [self.looks[number]["step"] for number in kept]
        best = next((step for step in steps if step in there or step == last), last)
        best = parallel.told(best)
        return None if best == last else best

    def copy_model(self, step: int, folder: Path) -> None:
        """Copy the model of a look into `folder`."""
        if not parallel.leads():
            return
        shutil.copytree(self._models / f"step-{step:06d}", folder, dirs_exist_ok=True)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        file = self.folder.path / name
        return (
            [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
        )


def forget_models(folder: StageFolder) -> None:
    """Remove the models that were kept for a roll-back, once the stage has its result."""
    if not parallel.leads():
        return
    shutil.rmtree(folder.path / "looks", ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


# --- in print -------------------------------------------------------------------------------------


def examples(name: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples that show an alarm best, with the number that chose them."""
    if name == "held_out":
        proxy, audit = (np.array([row[who] for row in samples]) for who in ("proxy", "audit"))
        shown = _standardized(proxy) - _standardized(audit)
    else:
        column = {"variety": "template", "disagreement": "proxy"}.get(name, name)
        shown = np.array([row[column] for row in samples])
        shown = -shown if name == "entropy" else shown
    order = np.argsort(-shown, kind="stable")[:EXAMPLES]
    score = "proxy" if name in ("held_out", "disagreement") else None
    return [
        {
            "prompt": samples[i]["prompt"],
            "completion": samples[i]["completion"],
            "score": samples[i][score] if score else abs(float(shown[i])),
            **({"audit": samples[i]["audit"]} if name == "held_out" else {}),
        }
        for i in order
    ]


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def _say(figures: dict[str, Any]) -> None:
    known = [f"{name.replace('_', ' ')} {figures[name]:.3g}" for name in SHOWN if name in figures]
    console.print(Line(f"look at step {figures['step']}: {', '.join(known)}"), soft_wrap=True)


def shout(event: dict[str, Any]) -> None:
    """Tell an alarm on the terminal, with an example and what to do."""
    done = {
        "warn": "the run goes on",
        "raise": "β is doubled",
        "stop": "the run ends here",
        "rollback": "the result will be the best model by the held-out score",
    }
    name, action = event["alarm"].replace("_", "-"), event["action"]
    console.print(
        Line(f"ALARM {name}, step {event['step']}: {event['text']}", style="bold red"),
        soft_wrap=True,
    )
    shown = event["examples"][0]
    console.print(Line(f"  such as: {str(shown['completion']).strip()[:200]!r}"), soft_wrap=True)
    console.print(
        Line(f"  {done[action]}; what to do: {alarms.NEXT[event['alarm']]}"), soft_wrap=True
    )

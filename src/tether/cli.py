"""The command line: one command per verb; parse, call, print.

Nothing heavy is imported before a command is known, so `tether --help` answers at once.
"""

import os
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import field, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tether import __version__, ranks, stopping
from tether.errors import ConfigError, TetherError

USAGE = (files("tether") / "usage.txt").read_text(encoding="utf-8")

ONLINE = ("ppo", "grpo", "rloo", "reinforce", "online-dpo", "best-of-n")
GROUPS = ("feedback", "data", "simulate")  # whose commands have two words
SHORT = {"--backend": "--compute.backend", "--address": "--compute.cluster.address"}
OFFLINE = ("dpo", "ipo", "simpo", "orpo", "kto")

INTERRUPTED, REFUSED = 130, 2
EVALUATE = "tether evaluate --model before=DIR --model after={out}/model --prompts FILE …"
NEXT_STEP = {
    "sft": "tether generate --model {out}/model --prompts FILE --num 4 --out DIR",
    "generate": "tether score --data {out}/completions.jsonl --reward DIR|FILE.py:F --out DIR",
    "revise": "tether sft --model DIR --data {out}/demonstrations.jsonl --out DIR",
    "judge": "tether reward --model DIR --data {out}/pairs.jsonl --out DIR",
    "simulate": "tether reward --model DIR --data {out}/rankings.jsonl --out DIR",
    "reward": "tether ppo --model DIR --prompts FILE --reward {out}/model --out DIR",
    **dict.fromkeys((*ONLINE, *OFFLINE), EVALUATE),
    "pool": "tether evaluate --pool {out}/pool.jsonl --reference DIR --model NAME=DIR … …",
    "merge": "tether generate --model {out}/model --prompts FILE --out DIR",
    "evaluate": "tether report {out}",
}


def main() -> None:
    """Run one command. Exit code 2 after a mistake of the user's, 130 after an interruption."""
    arguments = sys.argv[1:]
    # Threads that wait spinning make two of them ten times slower than one where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    stopping.notices_interrupt()
    try:
        code = dispatch(arguments)
        if ranks.count() > 1:
            from tether import parallel

            parallel.leave()
        sys.exit(code)
    except TetherError as error:
        if ranks.leads():
            print(f"tether: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except BrokenPipeError:  # whoever was reading, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        again = " ".join(["tether", *arguments])
        print(f"\ntether: interrupted; `{again}` goes on from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)


def dispatch(arguments: list[str]) -> int:
    """Call the command that `arguments` name."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"tether {__version__}")
        return 0
    name, rest = arguments[0], [_whole(word) for word in arguments[1:]]
    if name in GROUPS and rest and not rest[0].startswith("-"):
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in GROUPS:
        print(USAGE)
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"{name!r} is not a command; `tether --help` lists them")
    COMMANDS[name](rest)
    return 0


def demo(arguments: list[str]) -> None:
    """The packaged sandbox recipe, from pretraining to report."""
    from tether.sandbox import RECIPE

    seed = _option(arguments, "--seed", "0")
    out = _option(arguments, "--out", "runs/demo" if seed == "0" else f"runs/demo-seed{seed}")
    _run(RECIPE, out, ["--seed", seed, *arguments], "tether demo")


def run(arguments: list[str]) -> None:
    """A recipe of the user's."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("run needs a recipe: tether run RECIPE.toml [--stage.setting value …]")
    recipe, rest = Path(arguments[0]), arguments[1:]
    out = _option(rest, "--out", str(Path("runs") / recipe.stem))
    _run(recipe, out, rest, f"tether run {recipe}")


def plan(arguments: list[str]) -> None:
    """What a recipe of the user's would hold in memory; or a size on paper, where none is named."""
    if arguments and arguments[0].startswith("-"):
        from tether.footprint.sizing import command

        return command(arguments)
    if not arguments or _asks_help(arguments):
        raise ConfigError(
            "plan needs a recipe: tether plan RECIPE.toml [--stage.setting value …]; or a size: "
            "tether plan --size 8B --gpus 8 (--help explains)"
        )
    from tether.plan import plan

    rest = arguments[1:]
    processes = _option(rest, "--processes", "1")
    if not processes.isdecimal() or int(processes) < 1:
        raise ConfigError(f"--processes={processes!r} must be a number of at least 1")
    plan(arguments[0], _option(rest, "--out", ""), tuple(rest), int(processes))
    return None


def _run(recipe: Path, out: str, overrides: list[str], command: str) -> None:
    if _asks_help(overrides):
        from tether.config_file import read_toml

        read_toml(recipe)  # refuses what is none
        print(f"{command} [--out DIR] [--seed N] [--STAGE.SETTING VALUE …]\n\nThe recipe:\n")
        print(recipe.read_text(encoding="utf-8"))
        return
    from tether import pipeline
    from tether.progress import results

    folder = pipeline.run(recipe, out, tuple(overrides))
    report = folder / "report.html"
    results.print(f"\n[bold]report[/bold]  {report if report.exists() else folder}")
    results.print(f"[bold]models[/bold]  {folder}/*/model  (plain Hugging Face directories)")
    results.print("[bold]next[/bold]    change a setting (--ppo.kl.beta 0 --out DIR) and compare")


def stage(kind: str) -> Callable[[list[str]], None]:
    """The command of a single stage."""

    def command(arguments: list[str]) -> None:
        from tether import pipeline

        config = _parse(kind, _push_option(arguments))
        stage = pipeline.Stage(Path(config.out).name, kind, config)
        pipeline.check_pushes([stage])
        path = pipeline.run_stage(stage)
        pipeline.push_models([stage])
        if kind in NEXT_STEP and ranks.leads():
            print(f"next  {NEXT_STEP[kind].format(out=path)}")

    return command


def _push_option(arguments: list[str]) -> list[str]:
    """The same with --push-to under its full name: it stands with who is told, in `compute`."""
    return [re.sub(r"^--((?:no-)?push-)", r"--compute.\1", word) for word in arguments]


def _parse(kind: str, arguments: list[str]) -> Any:
    """Settings of one stage from the command line; what is repeated (--reward) is taken first."""
    import tyro

    from tether.config import STAGES, PolicyConfig, reward_named, scorer_named

    arguments, example = list(arguments), ["DIR"] if _asks_help(arguments) else []
    taken: dict[str, Any] = {}
    if kind in (*ONLINE, "score"):
        rewards = [reward_named(word) for word in _take(arguments, "--reward") or example]
        if kind == "score" and len(rewards) != 1:
            raise ConfigError(f"score takes one --reward, not {len(rewards)}")
        taken = {"reward": rewards[0]} if kind == "score" else {"rewards": tuple(rewards)}
    if kind == "generate" and (adapters := _take(arguments, "--adapter")):
        taken["adapters"] = tuple(adapters)
    if kind == "evaluate":
        models = [_named(word) for word in _take(arguments, "--model") or example]
        taken["policies"] = tuple(PolicyConfig(name=name, model=path) for name, path in models)
    if kind in ("evaluate", "evaluate-reward", "pool"):
        scorers = [_named(word) for word in _take(arguments, "--reward") or example]
        taken["scorers"] = tuple(scorer_named(name, word) for name, word in scorers)
    cls = STAGES[kind]
    return tyro.cli(
        _with_defaults(cls, taken) if taken else cls,
        args=arguments,
        prog=f"tether {kind}",
        description=cls.__doc__,
    )


def _with_defaults(cls: type[Any], defaults: dict[str, Any]) -> type[Any]:
    """The same settings, with what was taken from the command line already as defaults."""
    hints = typing.get_type_hints(cls)
    fields = [(name, hints[name], field(default=value)) for name, value in defaults.items()]
    return make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)


def report(arguments: list[str]) -> None:
    """Write the report of a run directory anew, or one page that compares several."""
    out = _option(arguments, "--out", "")
    if not arguments or _asks_help(arguments) or any(word.startswith("-") for word in arguments):
        raise ConfigError("report takes run directories: tether report RUN… [--out FILE.html]")
    from tether.evaluation.report import write_comparison, write_report

    runs = [Path(word) for word in arguments]
    if len(runs) > 1:
        print(write_comparison(runs, Path(out or "comparison.html")))
    else:
        print(write_report(runs[0], Path(out) if out else None))


def check_data(arguments: list[str]) -> None:
    """Say what a data file can be used for, or show what a model sees of it."""
    if not arguments:
        raise ConfigError("data check takes one file: tether data check FILE [--model DIR …]")
    if len(arguments) > 1 or _asks_help(arguments):
        return function("data check", "tether.evaluation.data_check:check")(arguments)
    from tether.data.uses import print_uses

    return print_uses(arguments[0])


def _whole(word: str) -> str:
    """A short form of where to train, written out: --backend ray, --address HOST:PORT."""
    flag, equals, value = word.partition("=")
    return SHORT.get(flag, flag) + equals + value


def _asks_help(arguments: list[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _take(arguments: list[str], flag: str) -> list[str]:
    """Remove every `flag VALUE` and `flag=VALUE`; return the values."""
    values: list[str] = []
    while flag in arguments:
        at = arguments.index(flag)
        if at + 1 == len(arguments):
            raise ConfigError(f"{flag} needs a value")
        values.append(arguments.pop(at + 1))
        arguments.pop(at)
    for word in [word for word in arguments if word.startswith(f"{flag}=")]:
        arguments.remove(word)
        values.append(word.split("=", 1)[1])
    return values


def _option(arguments: list[str], flag: str, default: str) -> str:
    """Remove one option; return its value."""
    return (_take(arguments, flag) or [default])[-1]


def _named(word: str) -> tuple[str, str]:
    """NAME=PATH, or a path that lends its own name."""
    name, equals, path = word.partition("=")
    if equals and not set(name) & set("/{"):
        return name, path
    if ":" in word:  # file.py:function, rule:NAME {settings}
        return word.partition("{")[0].rpartition(":")[2].strip(), word
    parts = [part for part in Path(word).parts if part != "model"]
    return (parts or [word])[-1], word


def function(name: str, path: str) -> Callable[[list[str]], None]:
    """The command of a function `module:name`, whose signature is its command line."""

    def command(arguments: list[str]) -> None:
        import tyro

        from tether.functions import load_function

        flags = (tyro.conf.FlagCreatePairsOff,)
        tyro.cli(load_function(path), args=arguments, prog=f"tether {name}", config=flags)

    return command


def generate(arguments: list[str]) -> None:
    """Sample completions; with `--out -` they go to standard output, for a pipe."""
    if _take(list(arguments), "--out") != ["-"]:
        return stage("generate")(arguments)
    import shutil
    import tempfile

    from tether import pipeline

    _take(arguments, "--out")
    with tempfile.TemporaryDirectory() as folder:
        config = _parse("generate", [*arguments, "--out", f"{folder}/completions"])
        path = pipeline.run_stage(pipeline.Stage("completions", "generate", config))
        with open(path / "completions.jsonl", encoding="utf-8") as rows:
            shutil.copyfileobj(rows, sys.stdout)
    return None


FUNCTIONS = {
    "chat": "tether.chat.terminal:chat",
    "label": "tether.web.command:label",
    "push": "tether.hub:push",
    "web": "tether.web.main:web",
    "simulate prepare": "tether.evaluation.simulator:prepare",
    "simulate pack": "tether.web.simulator:pack",
    "data convert": "tether.data.convert:convert_data",
    "feedback import": "tether.feedback.commands:import_items",
    "feedback export": "tether.feedback.commands:export_labels",
    "feedback invite": "tether.feedback.commands:invite_person",
    "feedback revoke": "tether.feedback.commands:revoke_person",
    "feedback agreement": "tether.feedback.commands:print_agreement",
    "feedback winrate": "tether.feedback.commands:print_win_rate",
    "feedback ratings": "tether.feedback.commands:print_ratings",
    "feedback scores": "tether.feedback.commands:import_scores",
}
"""Commands that are functions of another module; imported only when they are called."""

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "run": run,
    "plan": plan,
    **{kind: stage(kind) for kind in ("sft", "reward", *ONLINE, *OFFLINE)},
    **{
        kind: stage(kind)
        for kind in ("score", "pool", "evaluate", "evaluate-reward", "merge", "revise", "judge")
    },
    "generate": generate,
    "feedback simulate": stage("simulate"),
    **{name: function(name, path) for name, path in FUNCTIONS.items()},
    "report": report,
    "data check": check_data,
}
"""Every command."""


if __name__ == "__main__":
    main()

"""A recipe run from start to end: stages in order, skipping what is done, resuming what is not."""

import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether import ranks, stopping
from tether.config import (
    STAGES,
    DPOConfig,
    MergeConfig,
    PolicyGradientConfig,
    ScoreConfig,
    SimulateConfig,
    StageConfig,
    TrainConfig,
)
from tether.config_file import from_table, read_toml, set_dotted, toml_text
from tether.errors import ConfigError, ServerError, TetherError
from tether.functions import is_function, load_function
from tether.hub import check_push, push_once
from tether.progress import console, results
from tether.rewards.rulebook import bind_rule, load_rule
from tether.rundir import write_json, write_text
from tether.trackers import require_packages

RUNNERS = {
    "sandbox": "tether.sandbox.stage:make_sandbox",
    "prepare": "tether.data.prepare:prepare",
    "sft": "tether.train.sft:train_sft",
    "generate": "tether.engine.generate:generate",
    "revise": "tether.constitution.revise:revise",
    "judge": "tether.constitution.compare:judge",
    "simulate": "tether.feedback.label:label",
    "collect": "tether.feedback.collect:collect",
    "reward": "tether.train.reward:train_reward",
    "ppo": "tether.train.online:train_ppo",
    "grpo": "tether.train.online:train_grpo",
    "rloo": "tether.train.online:train_rloo",
    "reinforce": "tether.train.online:train_reinforce",
    "online-dpo": "tether.train.online:train_online_dpo",
    "best-of-n": "tether.train.online:train_best_of_n",
    "dpo": "tether.train.preference:train_dpo",
    "ipo": "tether.train.preference:train_ipo",
    "simpo": "tether.train.preference:train_simpo",
    "orpo": "tether.train.preference:train_orpo",
    "kto": "tether.train.kto:train_kto",
    "merge": "tether.models.merge:merge",
    "score": "tether.rewards.score:score",
    "pool": "tether.evaluation.pool:make_pool",
    "evaluate": "tether.evaluation.compare:evaluate",
    "evaluate-reward": "tether.evaluation.reward_model:evaluate_reward",
}
"""The function of each stage kind; imported only when it runs."""

DATA_OF = {
    "generate": "completions.jsonl",
    "revise": "demonstrations.jsonl",
    "judge": "pairs.jsonl",
    "simulate": "rankings.jsonl",
    "collect": "pairs.jsonl",
    "score": "scores.jsonl",
    "pool": "pool.jsonl",
}
"""What "stage:NAME" means where a record file is wanted; else it is the stage's model."""


TOGETHER = ("sft", "reward", "dpo", "ipo", "simpo", "orpo", "kto")
TOGETHER += ("ppo", "grpo", "rloo", "reinforce", "online-dpo", "best-of-n")
"""Stage kinds that several processes run together; any other is the first one's alone."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe, with everything resolved."""

    name: str
    kind: str
    config: StageConfig

    @property
    def result(self) -> Path:
        """The file that is there once the stage has finished."""
        return Path(self.config.out) / "result.json"


def run(recipe: str | Path, out: str | Path = "", overrides: tuple[str, ...] = ()) -> Path:
    """Run a recipe.

    Args:
        recipe: TOML file with `seed`, `compute`, `track` and `[[stage]]` tables.
        out: The run directory; "" = runs/ and the recipe's name.
        overrides: "--stage.setting", "value", … or "--stage.setting=value", by stage name;
            "--seed" and "--compute.setting" are the recipe's own, for all its stages.

    Returns:
        The run directory; with an evaluation it holds `report.html`.

    Raises:
        ConfigError: A setting of any stage is wrong; nothing has run then.
    """
    path = Path(recipe)
    table = read_toml(path)
    folder = Path(out or Path("runs") / path.stem)
    override(table, overrides)
    stages = plan(table, folder)
    check_functions(stages)
    check_pushes(stages)
    require_packages(name for stage in stages for name in stage.config.compute.track)
    manifest = {
        "recipe": path.name,
        "stages": [stage.name for stage in stages],
        "seeds": {stage.name: stage.config.seed for stage in stages},
        "versions": versions(),
        "overrides": list(overrides),
    }
    for stage in stages:
        if ranks.leads() and not (folder / "recipe.toml").exists():
            write_text(folder / "recipe.toml", toml_text(table))
        if stopping.asked():  # in the last step of the stage before, which has ended as usual
            stopping.stop()
        kept = stage.result.exists()
        run_stage(stage)
        if not ranks.leads():
            continue
        if stage is stages[-1]:  # all were accepted, so this is the recipe; it may have grown
            write_text(folder / "recipe.toml", toml_text(table))
        if not kept or stage is stages[-1]:
            write_manifest(folder, manifest, stages)
    push_models(stages)
    return folder


def check_functions(stages: list[Stage]) -> None:
    """Load every function and rule that a stage names, so that what is wrong is told at once.

    Raises:
        ConfigError: A file, module, function or rule does not exist, or a rule's setting is wrong.
        DataError: A file that a rule reads, and no stage makes, cannot be used.
    """
    outs = tuple(stage.config.out for stage in stages)
    for stage in stages:
        config = stage.config
        functions = [getattr(config, name, "") for name in ("scorer", "function")]
        if isinstance(config, PolicyGradientConfig):
            functions.append(config.policy_loss.advantage)
        elif isinstance(config, DPOConfig):
            functions.append(config.loss)
        elif isinstance(config, SimulateConfig):
            functions += [labeler.scorer for labeler in config.labelers]
        rewards = [*getattr(config, "rewards", ())]
        rewards += [config.reward] if isinstance(config, ScoreConfig) else []
        rewards += getattr(config, "scorers", ())
        functions += [reward.path for reward in rewards if is_function(reward.path)]
        for path in filter(None, functions):
            load_function(path)
        for rule in [reward for reward in rewards if reward.is_rule]:
            made = any(path.startswith(outs) for path in rule.paths)
            bind_rule(rule) if made else load_rule(rule)


def check_pushes(stages: list[Stage]) -> None:
    """Make sure that every `compute.push_to` names where a model can go, and who may write there.

    Raises:
        ConfigError: A stage makes no model, two stages would push to one place, or no token is set.
    """
    taken: dict[str, str] = {}
    for stage in stages:
        to = stage.config.compute.push_to
        if not to:
            continue
        name = f"{stage.name}.compute.push_to"
        if not isinstance(stage.config, TrainConfig | MergeConfig):
            raise ConfigError(f"{name}={to!r} but {stage.kind} makes no model; set it where one is")
        if to in taken:
            raise ConfigError(
                f"{name}={to!r} is also where {taken[to]} is pushed to; name a place in each "
                "stage's own compute"
            )
        taken[to] = stage.name
        check_push(to)


def push_models(stages: list[Stage]) -> None:
    """Push the models of finished stages to where their `compute.push_to` says.

    Raises:
        ServerError: Some could not be pushed; all others have been.
    """
    failed: list[str] = []
    for stage in stages:
        compute = stage.config.compute
        if compute.push_to and ranks.leads():
            try:
                push_once(Path(stage.config.out), compute.push_to, private=compute.push_private)
            except ServerError as error:
                failed.append(str(error))
    if failed:
        raise ServerError("; ".join(failed))


def run_stage(stage: Stage) -> Path:
    """Run one stage, unless it is finished.

    Of several processes all return once it is done.
    """
    done = stage.result.exists()
    begun = time.perf_counter()
    console.print(f"[bold]{stage.name}[/bold] ({stage.kind}){': finished, kept' if done else ''}")
    path = _run_together(stage)
    if done and stage.kind == "evaluate":
        table = importlib.import_module("tether.evaluation.table")
        table.print_table(table.read_summary(path), results)
        importlib.import_module("tether.evaluation.plane").print_efficiency(path, results)
    if not done:
        console.print(f"  {time.perf_counter() - begun:.0f} s  → {path}")
    return path


def _run_together(stage: Stage) -> Path:
    """Let the processes that there are run a stage, or the first one alone, or a cluster."""
    if stage.kind in TOGETHER and stage.config.compute.backend == "ray":
        ray_backend = importlib.import_module("tether.scale.ray_backend")
        return ray_backend.run(RUNNERS[stage.kind], stage.kind, stage.config)
    if ranks.count() == 1:
        return runner(stage.kind)(stage.config)
    parallel = importlib.import_module("tether.parallel")
    path = Path(stage.config.out)
    if stage.kind in TOGETHER:
        runner(stage.kind)(stage.config)
        parallel.wait()
        return path
    failed: TetherError | None = None
    if ranks.leads():
        try:
            with ranks.alone():
                runner(stage.kind)(stage.config)
        except TetherError as error:
            failed = error
    if (failed := parallel.told(failed)) is not None:
        raise failed
    return path


def runner(kind: str) -> Callable[[Any], Path]:
    """The function that runs a stage of this kind."""
    module, _, name = RUNNERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def plan(table: dict[str, Any], folder: Path) -> list[Stage]:
    """The stages of a recipe, checked before anything runs.

    Raises:
        ConfigError: An unknown kind, setting or stage, or a value out of range.
    """
    stages: list[Stage] = []
    for number, settings in enumerate(_check_shape(table)):
        settings = dict(settings)
        kind = settings.pop("kind", None)
        name = settings.pop("name", kind)
        if kind not in STAGES:
            raise ConfigError(
                f"stage[{number}].kind={kind!r} is not a stage; known: {', '.join(STAGES)}"
            )
        if not isinstance(name, str) or not name or set(name) & set("/."):
            rule = 'must name a folder; without "/" and "."'
            raise ConfigError(f"stage[{number}].name={name!r} {rule}")
        if name in {stage.name for stage in stages}:
            raise ConfigError(f"stage[{number}].name={name!r} is taken; give each its own name")
        settings.setdefault("seed", table.get("seed", 0))
        track = settings.pop("track", table.get("track", []))
        compute = {**table.get("compute", {}), **settings.get("compute", {})}
        settings["compute"] = {"track": track, **compute} if track else compute
        settings["out"] = str(folder / name)
        resolved = resolve(settings, stages, folder)
        stages.append(Stage(name, kind, from_table(STAGES[kind], resolved, f"{name}.")))
    if not stages:
        raise ConfigError("the recipe has no [[stage]]")
    return stages


def _check_shape(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The stage tables of a recipe that has only what a recipe may have."""
    for key in table:
        if key not in ("seed", "compute", "track", "stage"):
            raise ConfigError(
                f"{key}={table[key]!r} is not a recipe's; it has seed, compute, track and [[stage]]"
            )
    stages, compute = table.get("stage", []), table.get("compute", {})
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"stage={stages!r} must be tables; write [[stage]] above each")
    for holder in ({"compute": compute}, *stages):
        if not isinstance(holder.get("compute", {}), dict):
            raise ConfigError(f'compute={holder["compute"]!r} must be a table; {{device = "cpu"}}')
    return stages


def resolve(value: Any, stages: list[Stage], folder: Path) -> Any:
    """Replace "stage:NAME" by that stage's model or records, "stage:NAME/file" by its file.

    Raises:
        ConfigError: No earlier stage has that name.
    """
    if isinstance(value, dict):
        return {key: resolve(inner, stages, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [resolve(inner, stages, folder) for inner in value]
    if not (isinstance(value, str) and value.startswith("stage:")):
        return value
    name, _, file = value.removeprefix("stage:").partition("/")
    kinds = {stage.name: stage.kind for stage in stages}
    if name not in kinds:
        raise ConfigError(f"{value!r}: no earlier stage {name!r}; earlier are {list(kinds)}")
    return str(folder / name / (file or DATA_OF.get(kinds[name], "model")))


def override(table: dict[str, Any], arguments: tuple[str, ...]) -> None:
    """Apply command-line settings to a recipe, by stage name.

    Raises:
        ConfigError: Not of the form --stage.setting value, or no stage has that name.
    """
    names = {stage.get("name", stage.get("kind")): stage for stage in _check_shape(table)}
    words = [part for word in arguments for part in _split(word)]
    if len(words) % 2:
        raise ConfigError(f"{words[-1]!r} has no value; write --stage.setting value")
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name, _, setting = flag.removeprefix("--").partition(".")
        if flag == "--seed" or name == "compute":
            set_dotted(table, flag.removeprefix("--"), value)
        elif flag.startswith("--") and name in names and setting:
            set_dotted(names[name], setting, value)
        else:
            raise ConfigError(
                f"{flag!r} is not a setting of this recipe; write --stage.setting value "
                f"with one of its stages {list(names)}"
            )


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def versions() -> dict[str, str]:
    """Versions of what computes."""
    names = ("tether", "torch", "transformers", "tokenizers", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def write_manifest(folder: Path, manifest: dict[str, Any], stages: list[Stage]) -> None:
    """Write manifest.json, with the fingerprints of the inputs of what has finished, and report."""
    done = [stage for stage in stages if stage.result.exists()]
    inputs = {stage.name: json.loads(stage.result.read_text())["inputs"] for stage in done}
    write_json(folder / "manifest.json", {**manifest, "inputs": inputs})
    if any(stage.kind == "evaluate" for stage in done):
        importlib.import_module("tether.evaluation.report").write_report(folder)

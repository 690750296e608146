"""Model cards: the README.md of every model that a run trained, from the facts of its report.

Hugging Face's form: a YAML header, then Markdown. A README.md that tether did not write is never
touched; ours carries a mark, and whoever deletes the mark owns the card.
"""

import dataclasses
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tether.config import STAGES, TrainConfig
from tether.config_file import to_table
from tether.evaluation.monitored import Alarm
from tether.evaluation.report_blocks import Line, by_measure
from tether.evaluation.report_stages import Evaluation, Run, Stage, flat, read_object, read_text
from tether.evaluation.summary import ALL
from tether.evaluation.table import Cell
from tether.hub import MARK
from tether.rundir import write_text

METHODS = {
    "sft": "supervised fine-tuning on demonstrations",
    "reward": "a reward model: it scores how good an answer is, and is no policy",
    "ppo": "PPO against a reward, held near its reference by a KL penalty",
    "grpo": "GRPO against a reward: advantages within groups of answers to one prompt",
    "rloo": "RLOO against a reward: each answer's baseline is the mean of the others",
    "reinforce": "REINFORCE++ against a reward",
    "online-dpo": "online DPO: pairs of its own answers, ordered by a reward",
    "best-of-n": "fine-tuning on the best of several of its own answers by a reward",
    "dpo": "DPO on preference pairs",
    "ipo": "IPO on preference pairs",
    "simpo": "SimPO on preference pairs",
    "orpo": "ORPO on preference pairs",
    "kto": "KTO on answers that were liked or not",
}
_SECTIONS_LEFT_OUT = ("out", "kind", "inputs", "compute", "model", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one evaluation found of the model of a card."""

    policy: str
    num_prompts: int
    figures: list[tuple[str, Cell]]
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Everything that a card says below its header."""

    title: str
    kind: str
    what: str
    loading: str
    base: str
    """Of an adapter; "" for whole models"""
    made: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    inputs: list[tuple[str, str]]
    evaluations: list[Measured]
    accuracy: str
    blocks: list[tuple[str, list[tuple[str, Line]]]]
    alarms: str
    raised: list[Alarm]
    limits: list[str]


def write_cards(run: Run) -> list[Path]:
    """Write the card of every model that a stage of an evaluated run trained.

    Returns:
        The cards that were written; a README.md of somebody else's is left as it is.
    """
    if not run.evaluations:
        return []
    trained = [stage for stage in run.stages if _trains(stage)]
    folders = [(stage, stage.folder / "model") for stage in trained]
    cards = [(stage, path / "README.md") for stage, path in folders if path.is_dir()]
    ours = [(stage, path) for stage, path in cards if not path.exists() or MARK in read_text(path)]
    for stage, path in ours:
        write_text(path, render(run, stage))
    return [path for _, path in ours]


def _trains(stage: Stage) -> bool:
    return issubclass(STAGES.get(stage.kind, object), TrainConfig)


def render(run: Run, stage: Stage) -> str:
    """The text of one card."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown; every text goes through `md`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escaped
    text = environment.get_template("card.md").render(
        header=_header(run, stage), mark=MARK, card=_card(run, stage)
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def escaped(text: object) -> str:
    """A text as one line of Markdown that shows it and interprets nothing of it."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_|~\[\]])", r"\\\1", line)


def _header(run: Run, stage: Stage) -> str:
    """The YAML header; every value is written as JSON, which YAML reads."""
    adapter = _adapter_base(stage)
    scores = stage.kind == "reward"
    origin = _origin(run, stage)
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "base_model": origin if _is_hub_id(origin) else None,
        "base_model_relation": ("adapter" if adapter else "finetune")
        if _is_hub_id(origin)
        else None,
        "tags": [
            *("tether", "rlhf", stage.kind),
            *(["reward-model"] if scores else []),
            *(["lora"] if adapter else []),
        ],
    }
    known = {name: value for name, value in values.items() if value is not None}
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in known.items())


def _adapter_base(stage: Stage) -> str:
    """What an adapter says of its base; "" for a whole model."""
    config = read_object(stage.folder / "model" / "adapter_config.json")
    return _short(str(config.get("base_model_name_or_path", "")), stage)


def _origin(run: Run, stage: Stage) -> str:
    """Where the first stage that led to a model began: a hub id, or a path; "" = scratch."""
    by_name = {each.name: each for each in run.stages}
    seen: set[str] = set()
    while True:
        start = str(stage.settings.get("model", ""))
        before = by_name.get(Path(start).parent.name) if Path(start).name == "model" else None
        if before is None or before.name in seen or not before.settings.get("model"):
            return start if before is None else ""
        seen.add(stage.name)
        stage = before


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", name)) and not Path(name).exists()


def _short(text: str, stage: Stage) -> str:
    """A text without the run directory in which its paths lay."""
    root = str(Path(str(stage.settings.get("out", ""))).parent)
    return text if root == "." else text.replace(f"{root}/", "")


# --- the facts of a card --------------------------------------------------------------------------


def _card(run: Run, stage: Stage) -> Card:
    base = _adapter_base(stage)
    measured = [
        (evaluation, policy)
        for evaluation in run.evaluations
        for policy, model in evaluation.models.items()
        if model == stage.name
    ]
    return Card(
        title=f"{stage.name}, of the run {run.title}",
        kind=stage.kind,
        what=f"Made by `tether {stage.kind}`: {METHODS.get(stage.kind, stage.kind)}.",
        loading=_loading(stage, base),
        base=base,
        made=_made(run, stage),
        settings=_settings(stage),
        inputs=[(_short(path, stage), digest) for path, digest in _inputs(stage)],
        evaluations=[_measured(evaluation, policy) for evaluation, policy in measured],
        accuracy=stage.accuracy,
        blocks=_blocks(run, stage, {policy for _, policy in measured}),
        alarms=_alarms(stage),
        raised=stage.alarms,
        limits=_limits(run, stage),
    )


def _loading(stage: Stage, base: str) -> str:
    kind = "SequenceClassification" if stage.kind == "reward" else "CausalLM"
    lines = [
        f"from transformers import AutoModelFor{kind}, AutoTokenizer",
        "",
        'folder = "path/to/this/folder"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = AutoModelFor{kind}.from_pretrained(folder)"
        + ("  # needs peft, and the base" if base else ""),
    ]
    centering = stage.result.get("centering")
    if stage.kind == "reward" and isinstance(centering, dict):
        shift, scale = centering.get("shift"), centering.get("scale")
        if isinstance(shift, float) and isinstance(scale, float):
            lines.append(f"# score of a text = (logit - {shift:.4g}) / {scale:.4g}")
    return "\n".join(lines)


def _made(run: Run, stage: Stage) -> list[tuple[str, str]]:
    versions = run.manifest.get("versions")
    named = versions if isinstance(versions, dict) else {}
    steps = stage.result.get("steps")
    rows = [
        ("started from", _short(str(stage.settings.get("model", "")), stage)),
        ("recipe", str(run.manifest.get("recipe", ""))),
        ("steps", "" if steps is None else f"{steps:,}"),
        ("seed", str(stage.settings.get("seed", ""))),
        ("wall time", f"{stage.seconds:.0f} s" if stage.seconds else ""),
        ("versions", ", ".join(f"{name} {value}" for name, value in named.items())),
    ]
    return [(name, value) for name, value in rows if value]


def _settings(stage: Stage) -> list[tuple[str, str]]:
    """What differs from the stage's defaults."""
    usual: dict[str, Any] = {}
    for field in dataclasses.fields(STAGES[stage.kind]):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is not dataclasses.MISSING:
            usual[field.name] = to_table(value) if dataclasses.is_dataclass(value) else value
    chosen = {k: v for k, v in stage.settings.items() if k not in _SECTIONS_LEFT_OUT}
    known = dict(flat(usual))
    return [(k, _short(v, stage)) for k, v in flat(chosen) if known.get(k) != v and v != ""]


def _inputs(stage: Stage) -> list[tuple[str, str]]:
    inputs = stage.result.get("inputs")
    pairs = inputs.items() if isinstance(inputs, dict) else ()
    return [(str(path), str(digest)) for path, digest in pairs]


def _measured(evaluation: Evaluation, policy: str) -> Measured:
    row = next(row for row in evaluation.summary.rows_of(ALL) if row.policy == policy)
    found = evaluation.verdict
    told = f"{found.text} {found.warning}" if found and found.policy == policy else ""
    cells = [(column.title, column.cell(row)) for column in evaluation.columns]
    return Measured(
        policy=policy,
        num_prompts=row.num_prompts,
        figures=[(title, cell) for title, cell in cells if cell.value],
        verdict=told.strip(),
    )


def _blocks(run: Run, stage: Stage, policies: set[str]) -> list[tuple[str, list[tuple[str, Line]]]]:
    """The lines of every block that are about this model, by its names or its stage's."""
    found: list[tuple[str, list[tuple[str, Line]]]] = []
    for block in (block for each in run.stages for block in each.blocks):
        lines = [(name, line) for name, of in by_measure(block) for line in of]
        about = [(name, line) for name, line in lines if line.policy in {*policies, stage.name}]
        if about:
            found.append((block.title, about))
    return found


def _alarms(stage: Stage) -> str:
    if stage.training is None:
        return "No monitor watched the training of this model."
    if not stage.alarms:
        return "A monitor watched the training; it raised no alarm."
    back = stage.training.rolled_back_to
    rolled = "" if back is None else f" The model is the one of step {back}, to which it went back."
    count = len(stage.alarms)
    return f"A monitor watched the training and raised {count} alarm{'s' * (count > 1)}.{rolled}"


def _limits(run: Run, stage: Stage) -> list[str]:
    prompts = [e.summary.rows_of(ALL)[0].num_prompts for e in run.evaluations]
    limits = [
        f"The figures hold for the {max(prompts):,} prompts of the evaluation, and for answers "
        "sampled as it sampled them; intervals cover the choice of prompts, not that of the seed "
        "of training.",
        "Scores stand in for what people want; a policy tuned to one can please it without being "
        "better.",
        "What no table above measures was not tested.",
        "Licence and languages are those of the base model and of the data.",
    ]
    if stage.kind == "reward":
        limits.insert(
            1,
            "It was trained on answers of the models named above; on texts unlike those its scores "
            "mean little.",
        )
    return limits

"""`tether simulate prepare`: the pool of a finished run for the simulator's page.

What the run was evaluated with says all that is needed: the reference, the prompts, the scorers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tether.config import PoolConfig, ScorerConfig, scorer_named
from tether.config_file import from_table, read_toml
from tether.errors import ConfigError
from tether.evaluation.pool import make_pool
from tether.pools import FLATTERY
from tether.progress import results

GOLD = "tether.sandbox.gold:gold"
SANDBOX_FLATTERY = "tether.sandbox.gold:flattery"


def prepare(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    *,
    num: int = 256,
    num_prompts: int = 16,
    seed: int = 0,
    out: str = "",
    flattery: str = "",
) -> None:
    """Sample and score many answers of a run's reference, for the simulator of `tether web`.

    Model, prompts and scorers are those of the run's evaluation.

    Args:
        run: A finished run with an evaluation, such as runs/demo; or the evaluation's own folder.
        num: Answers a prompt; the simulator cannot see farther than log(num) nats.
        num_prompts: Prompts, the first of the evaluation's.
        seed: Of the samples.
        out: Folder of the pool; "" = simulator/ in the run.
        flattery: file.py:function that counts flattering phrases; "" = the sandbox's, in its runs.
    """
    evaluation = find_evaluation(Path(run))
    made = make_pool(
        pool_config(
            evaluation,
            num=num,
            num_prompts=num_prompts,
            seed=seed,
            out=out or str(evaluation.parent / "simulator"),
            flattery=flattery,
        )
    )
    results.print(f"next  tether web --runs {made.parent.parent}", markup=False)


def find_evaluation(run: Path) -> Path:
    """The folder of a run's last evaluation.

    Raises:
        ConfigError: It has none that is finished.
    """
    places = [run, *sorted(run.glob("*"), key=lambda each: each.name)] if run.is_dir() else []
    found = [each for each in places if (each / "summary.json").is_file()]
    if not found:
        raise ConfigError(
            f"run={str(run)!r} holds no finished evaluation, which names the reference, the "
            "prompts and the scorers; name such a run, or make a pool yourself: tether pool"
        )
    return max(found, key=lambda each: (each / "summary.json").stat().st_mtime)


def pool_config(
    evaluation: Path, *, num: int, num_prompts: int, seed: int, out: str, flattery: str = ""
) -> PoolConfig:
    """Settings of the pool that fits an evaluation.

    Raises:
        ConfigError: The evaluation had no reference.
    """
    asked = read_toml(evaluation / "config.toml")
    if not asked.get("reference"):
        raise ConfigError(
            f"{evaluation}: reference='' measured no KL; evaluate with a reference, or make a pool "
            "yourself: tether pool"
        )
    kept = {name: asked[name] for name in ("prompts", "scorers", "sampling") if name in asked}
    own = {"num": num, "num_prompts": num_prompts, "seed": seed, "out": out}
    compute = {"precision": "float32"}
    config = from_table(
        PoolConfig, {**kept, **own, "model": asked["reference"], "compute": compute}
    )
    return replace(config, scorers=(*config.scorers, *_flattery(config.scorers, flattery)))


def _flattery(scorers: tuple[ScorerConfig, ...], function: str) -> list[ScorerConfig]:
    """The scorer that counts flattery; none where nobody named one and it is no sandbox run."""
    if any(scorer.name == FLATTERY for scorer in scorers):
        return []
    if not function and any(scorer.path == GOLD for scorer in scorers):
        function = SANDBOX_FLATTERY
    return [scorer_named(FLATTERY, function)] if function else []

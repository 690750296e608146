"""The simulator: what policies near the reference would answer, from a pool of its samples.

The server hands out a pool once; the mathematics is the page's (static/tilt.js), the same as that
of `core.tilt`. Without a run there is a small pool of the sandbox, which comes with the package.
"""

import gzip
import json
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from tyro.conf import Positional, arg

from tether.errors import DataError
from tether.pools import FLATTERY, Pooled, rows_of
from tether.progress import results
from tether.web.history import number
from tether.web.states import find_runs
from tether.web.visit import Visit, Workshop, entrance

SHIPPED = "sandbox_pool.json.gz"
MOST_PROMPTS = 32  # of a pool that go to the page
MOST_COMPLETIONS = 4096  # of a prompt
MOST_BYTES = 32 << 20  # of an evaluation's file


# --- pages ----------------------------------------------------------------------------------------


def simulator(visit: Visit) -> Response:
    """The page, for one of the pools."""
    chosen = visit.asked("pool")
    if chosen:
        _pool_file(visit.site, chosen)
    pools = find_pools(visit.site)
    pools += [chosen] if chosen and chosen not in pools else []
    return visit.page("simulator.html", pools=pools, chosen=chosen, here="/simulator")


def api_pool(visit: Visit) -> Response:
    """Everything that the page computes with."""
    if not (chosen := visit.asked("pool")):
        return Response(shipped(), media_type="application/json")
    return JSONResponse(contents(visit.site, _pool_file(visit.site, chosen)))


def find_pools(site: Workshop) -> list[str]:
    """Names of the stages that hold a pool."""
    stages = [stage for run in find_runs(site) for stage in run.stages]
    return [stage.name for stage in stages if site.file(stage.folder, "pool.jsonl")]


def _pool_file(site: Workshop, name: str) -> Path:
    path = site.file(site.folder(name), "pool.jsonl")
    if path is None:
        raise HTTPException(404, "There is no pool in that folder; make one: tether simulate")
    return path


@cache
def shipped() -> bytes:
    """The sandbox's pool, as the page takes it."""
    return gzip.decompress((files("tether.web") / SHIPPED).read_bytes())


# --- what the page gets ---------------------------------------------------------------------------


def contents(site: Workshop, path: Path) -> dict[str, Any]:
    """A pool and the measured models of its run.

    Raises:
        DataError: The pool cannot be read, or a score is not a finite number.
    """
    rows = list(islice(rows_of(str(path)), MOST_PROMPTS + 1))
    if not rows:
        raise DataError(f"{path}: holds no prompt")
    known = [name for name in rows[0].scores if name != FLATTERY]
    if not known:
        raise DataError(f"{path}: holds no scores")
    gold = "gold" if "gold" in known else known[0]
    proxy = "proxy" if "proxy" in known else known[-1]
    return {
        "name": path.parent.name,
        "prompts": [_prompt(row, proxy, gold) for row in rows[:MOST_PROMPTS]],
        "more": len(rows) > MOST_PROMPTS,
        "proxy": proxy,
        "gold": gold,
        "points": measured(site, path.parent, proxy, gold),
    }


def _prompt(row: Pooled, proxy: str, gold: str) -> dict[str, Any]:
    some = slice(MOST_COMPLETIONS)
    flattery = row.scores.get(FLATTERY)
    for scores in row.scores.values():
        if not all(number(score) is not None for score in scores):
            raise DataError("a score of the pool is not a finite number; run `tether pool` again")
    if proxy not in row.scores or gold not in row.scores:
        raise DataError(f"a prompt of the pool lacks the scores {proxy!r} and {gold!r}")
    return {
        "prompt": row.prompt,
        "category": row.category,
        "completions": [str(each) for each in row.completions[some]],
        "tokens": [len(each) for each in row.token_ids[some]],
        "proxy": row.scores[proxy][some],
        "gold": row.scores[gold][some],
        "flattery": None if flattery is None else flattery[some],
    }


def measured(site: Workshop, folder: Path, proxy: str, gold: str) -> list[dict[str, Any]]:
    """The models of a run that an evaluation measured: KL and gains, means over its prompts."""
    run = folder.parent if folder.parent != site.runs else folder
    for name, read in (("frontier.json", _of_frontier), ("summary.json", _of_summary)):
        for path in sorted(run.glob(f"*/{name}")):
            table = _table(site.file(path.parent, name))
            try:
                found = [_point(*each) for each in read(table, proxy, gold)]
            except (KeyError, TypeError, AttributeError, StopIteration):
                continue  # of another version, or of other scorers
            if points := [each for each in found if each]:
                return points
    return []


def _of_frontier(table: dict[str, Any], proxy: str, gold: str) -> list[tuple[Any, ...]]:
    return [
        (r["policy"], r["step"], r["kl"], r["gains"][proxy], r["gains"][gold], 0.0, 0.0)
        for r in table["measured"]
    ]


def _of_summary(table: dict[str, Any], proxy: str, gold: str) -> list[tuple[Any, ...]]:
    rows = [row for row in table["rows"] if row["category"] == "all" and row["kl"]]
    start = next(row for row in rows if abs(row["kl"]["mean"]) < 1e-6)["scores"]
    zero = (start[proxy]["mean"], start[gold]["mean"])
    every = [*rows, *({**row, "step": row["step"]} for row in table.get("kept") or ())]
    return [
        (r["policy"], r.get("step"), r["kl"], r["scores"][proxy], r["scores"][gold], *zero)
        for r in every
    ]


def _point(
    policy: Any, step: Any, kl: Any, proxy: Any, gold: Any, proxy_start: float, gold_start: float
) -> dict[str, Any] | None:
    """A point of the plane; None where something is not a number."""
    values = [number(each["mean"]) for each in (kl, proxy, gold)]
    nats, high, good = values
    if nats is None or high is None or good is None:
        return None
    gains = {"proxy": high - proxy_start, "gold": good - gold_start}
    return {"policy": str(policy), "step": number(step), "kl": nats, **gains}


def _table(path: Path | None) -> dict[str, Any]:
    try:
        if path is None or path.stat().st_size > MOST_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the pool that comes along --------------------------------------------------------------------


def pack(
    pool: Annotated[Positional[str], arg(metavar="POOL_DIR")],
    *,
    out: str,
    num_prompts: int = 16,
    policies: tuple[str, ...] = (),
) -> None:
    """Pack a pool of the simulator into one small file, scores rounded to 0.001.

    So the pool that comes with the package was made, from the sandbox's.

    Args:
        pool: Folder that `tether simulate prepare` wrote.
        out: The file, NAME.json.gz.
        num_prompts: Prompts, the first of the pool.
        policies: Policies whose measured points are kept; none named = all.
    """
    path = (Path(pool) / "pool.jsonl").resolve()
    found = contents(Workshop(runs=path.parents[2], projects=(), token=""), path)
    rows = found["prompts"][:num_prompts]
    points = [each for each in found["points"] if not policies or each["policy"] in policies]
    text = json.dumps(_rounded({**found, "prompts": rows, "points": points}), separators=(",", ":"))
    Path(out).write_bytes(gzip.compress(text.encode(), mtime=0))
    results.print(f"{len(rows)} prompts, {Path(out).stat().st_size >> 10} KiB", markup=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


ROUTES = [entrance("/simulator", simulator), entrance("/api/pool", api_pool)]

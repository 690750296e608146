"""The commands of a feedback project: parse, call, print.

Each is a function whose signature is its command line; `tether feedback NAME --help` shows it.
"""

import os
import stat
import sys
from dataclasses import replace
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from tether.errors import ConfigError
from tether.feedback import ratings, report, scores, winrate
from tether.feedback.arguments import Name, ProjectFile
from tether.feedback.export import ExportConfig, export_feedback
from tether.feedback.people import invite, revoke
from tether.feedback.prepare import ImportConfig, import_feedback
from tether.feedback.store import Store
from tether.progress import results


def import_items(config: Annotated[OmitArgPrefixes[ImportConfig], arg(name="")]) -> None:
    """Make a feedback project from completions, or add to one.

    Without --data the completions come from standard input:
    tether generate … --num 4 --out - | tether feedback import helpful.db
    """
    if not config.data and (_piped() or not (config.gold or config.instructions)):
        if sys.stdin.isatty():
            raise ConfigError("data=() must name a file, or pipe completions in: tether generate …")
        config = replace(config, data=("-",))
    import_feedback(config)
    results.print(f"next  tether label {config.path}", markup=False)


def _piped() -> bool:
    return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)


def export_labels(config: Annotated[OmitArgPrefixes[ExportConfig], arg(name="")]) -> None:
    """Write what the labelers of a project say as records, for training here or elsewhere."""
    path = export_feedback(config)[0]
    command = "kto" if config.to == "thumbs" else "reward"
    results.print(f"next  tether {command} --model DIR --data {path} --out DIR", markup=False)


def import_scores(project: ProjectFile, *, data: tuple[str, ...]) -> None:
    """Take reward scores, by which a project with --next-item active asks where it is unsure.

    Args:
        project: The project's file, NAME.db.
        data: What `tether score` wrote, a file for each reward model.
    """
    known, unknown = scores.import_scores(Store(project), data)
    results.print(f"{known} items scored, {unknown} without a score")


def print_agreement(path: Annotated[Positional[str], arg(metavar="PROJECT.db|FILE")]) -> None:
    """Consensus, agreement, and what is known of each labeler.

    Args:
        path: A project, or a JSONL file of rankings, pairs or thumbs with a labeler each.
    """
    report.print_agreement(path)


def print_win_rate(project: ProjectFile) -> None:
    """How often people preferred one model's completions to another's, with intervals.

    Models are named by the `model` of the imported rows, or by the policy of an evaluation's
    samples.jsonl.

    Args:
        project: The project's file, NAME.db, in pair or rank mode.
    """
    winrate.print_win_rates(winrate.project_win_rates(Store(project)), results)


def print_ratings(project: ProjectFile) -> None:
    """How strong each model is, by the choices between completions of two models.

    Args:
        project: The project's file, NAME.db, of pairs or rankings that name their models.
    """
    ratings.print_ratings(project)


def invite_person(
    project: ProjectFile,
    name: Name,
    *,
    group: str = "",
    administrator: bool = False,
    url: str = "http://127.0.0.1:8765",
) -> None:
    """Invite somebody to label, or to see everything, by a personal link.

    The link works until it is revoked or made anew. It is shown once: the project keeps a hash.

    Args:
        project: The project's file, NAME.db.
        name: Who; it is written into their judgments.
        group: Group of the labeler, by which judgments can be filtered.
        administrator: Let them see progress, agreement and everybody's judgments.
        url: Where people reach the labeling server.
    """
    role = "administrator" if administrator else "labeler"
    token = invite(Store(project), name, group=group, role=role)
    path = "admin/join" if administrator else "join"
    results.print(f"link for {name}, shown once:", markup=False)
    results.print(f"  {url.rstrip('/')}/{path}/{token}", markup=False, soft_wrap=True)


def revoke_person(project: ProjectFile, name: Name) -> None:
    """End somebody's access at once; their judgments stay.

    Args:
        project: The project's file, NAME.db.
        name: Who.
    """
    revoke(Store(project), name)
    results.print(f"{name} has no access any more; their judgments stay", markup=False)

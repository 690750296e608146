"""The commands of a feedback project: parse, call, print.

Each is a function whose signature is its command line; `tether feedback NAME --help` shows it.
"""

from typing import Annotated

from tyro.conf import Positional, arg

from tether.feedback.people import invite, revoke
from tether.feedback.store import Store
from tether.progress import results

ProjectFile = Annotated[Positional[str], arg(metavar="PROJECT.db")]
Name = Annotated[Positional[str], arg(metavar="NAME")]


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

"""Arguments that the commands of a feedback project share."""

from typing import Annotated

from tyro.conf import Positional, arg

ProjectFile = Annotated[Positional[str], arg(metavar="PROJECT.db")]
Name = Annotated[Positional[str], arg(metavar="NAME")]

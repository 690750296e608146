"""Finished models to the Hugging Face hub, or to whatever speaks its API at HF_ENDPOINT.

The token comes from the environment, is sent in a header and is written nowhere. A push that fails
takes nothing away: the model stays where it is and can be pushed again.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from tether.errors import ConfigError, ModelError, ServerError
from tether.progress import console
from tether.rundir import fingerprint, write_json, write_text

MARK = (
    "<!-- Written by tether from the files of the run. Delete this line to keep your changes. -->"
)
"""Opens a model card that is ours to write anew"""

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
LEFT_OUT = ["checkpoints/*", ".*", "*/.*", "*.writing"]
STATE = "pushed.json"  # in the stage's folder: what was pushed, and where


def push(folder: Annotated[Path, tyro.conf.Positional], *, to: str, private: bool = True) -> None:
    """Upload a model to the Hugging Face hub, into a repository that is made if it is missing.

    The token is read from the environment variable HF_TOKEN; HF_ENDPOINT names another server.

    Args:
        folder: A model directory, or the folder of a stage that made one.
        to: The repository, OWNER/NAME.
        private: False lets everybody see a repository that is made.
    """
    check_push(to)
    model = _model_in(Path(folder))
    console.print(f"pushed {model} to {upload(model, to, private=private)}")


def check_push(to: str) -> None:
    """Refuse what could not be pushed, before a model is trained for it.

    Raises:
        ConfigError: `to` is not OWNER/NAME, or there is no token.
    """
    if not NAME.fullmatch(to):
        raise ConfigError(f"push_to={to!r} must be OWNER/NAME, a repository on the hub")
    if not os.environ.get("HF_TOKEN"):
        raise ConfigError(
            f"push_to={to!r} needs a token that may write there; put it into the environment "
            "variable HF_TOKEN"
        )


def push_once(stage: Path, to: str, *, private: bool) -> None:
    """Push the model of a finished stage, unless the same one is there already.

    Raises:
        ServerError: It failed; the message says how to push later.
    """
    model, state = stage / "model", {"to": to, "model": fingerprint(str(stage / "model"))}
    file = stage / STATE
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        if held.items() >= state.items():
            return
    url = upload(model, to, private=private)
    write_json(file, {**state, "url": url})
    console.print(f"pushed {model} to {url}")


def upload(model: Path, to: str, *, private: bool = True) -> str:
    """Upload a model directory, with a card if it has none; returns its address.

    Raises:
        ServerError: The server cannot be reached or refuses; the message says how to push later.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of whichever HTTP client it uses
    from huggingface_hub.utils import disable_progress_bars

    _write_card(model)
    if not console.is_terminal:
        disable_progress_bars()
    token = os.environ["HF_TOKEN"]
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        url = api.create_repo(to, private=private, exist_ok=True)
        if private and not api.model_info(to).private:
            raise ServerError(f"{to!r} is public: push with push_private = false if it may be seen")
        api.upload_folder(
            repo_id=to,
            folder_path=model,
            commit_message="Model trained with tether",
            ignore_patterns=LEFT_OUT,
        )
    except (ServerError, HTTPError, OSError, ValueError, RuntimeError) as error:
        again = f"tether push {model} --to {to}{'' if private else ' --no-private'}"
        raise ServerError(
            f"{model} was not pushed to {to!r}: {_reason(error).replace(token, '…')}; it is kept, "
            f"and `{again}` pushes it later"
        ) from None
    return str(url)


def _reason(error: BaseException) -> str:
    """The first line of an error, or of what caused it."""
    if isinstance(error, RuntimeError) and error.__cause__:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _model_in(folder: Path) -> Path:
    for each in (folder, folder / "model"):
        if any((each / name).is_file() for name in ("config.json", "adapter_config.json")):
            return each
    raise ModelError(
        f"{str(folder)!r} holds no model (config.json or adapter_config.json); give a model "
        "directory, or the folder of the stage that made one"
    )


def _write_card(model: Path) -> None:
    """A short README.md where there is none; the report of an evaluated run writes a long one."""
    card = model / "README.md"
    if card.exists():
        return
    facts: dict[str, Any] = {}
    if (model / "tether.json").is_file():
        facts = json.loads((model / "tether.json").read_text(encoding="utf-8"))
    made_by, base = facts.get("made_by", "tether"), str(facts.get("model", ""))
    header = ["library_name: transformers", "tags:", "- tether"]
    if NAME.fullmatch(base) and not Path(base).exists():
        header.append(f"base_model: {base}")
    start = f" from `{base}`" if base else ""
    name = model.resolve().parent.name if model.name == "model" else model.resolve().name
    lines = ["---", *header, "---", "", MARK, "", f"# {name}", ""]
    write_text(card, "\n".join([*lines, f"Trained by `{made_by}`{start}.", ""]))

"""The `revise` stage: answers, critiques by drawn principles, and revisions of them.

For each prompt the model answers; then, round after round, a principle is drawn, the model says
what is wrong with its newest answer by that principle, and writes a better one, which is the
newest answer of the next round. The revisions become demonstrations for `tether sft`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from tether.config import ReviseConfig
from tether.constitution.blocks import JsonRow, in_blocks
from tether.constitution.principles import (
    Constitution,
    Format,
    Principle,
    file_of,
    read_constitution,
)
from tether.constitution.transcripts import critique_prompt, revision_prompt
from tether.data.formats import read_demonstrations, read_prompts
from tether.engine.decode import Sampled, completion_text, generate_tokens
from tether.engine.sampling import REVISION
from tether.errors import DataError
from tether.models.chat import encode_prompt
from tether.models.language_model import LanguageModel, load
from tether.progress import Steps, console
from tether.records import Demonstration, Prompt, Text, to_dict, write_jsonl
from tether.rundir import StageFolder, fingerprint
from tether.sections import SamplingConfig


def revise(config: ReviseConfig) -> Path:
    """Answer, criticize and revise, and write demonstrations into `config.out`.

    Writes `steps.jsonl`, every text with the prompt, round and principle that it came from and the
    hashes of the model and the constitution, and `demonstrations.jsonl`: revisions, mixed with the
    helpful demonstrations.

    Raises:
        ConfigError: The constitution has no principle that asks for a revision.
        DataError: No revision came out.
    """
    inputs = [config.model, config.prompts, file_of(config.constitution), config.helpful]
    folder = StageFolder(config, "revise", inputs)
    if folder.finished:
        return folder.path
    constitution = read_constitution(config.constitution)
    constitution.require("revision")
    prompts = read_prompts(config.prompts, config.columns)
    helpful = read_demonstrations(config.helpful) if config.helpful else []
    reviser = Reviser(config, constitution, load(config.model, config.compute))
    folder.begin()
    with Steps(folder.path.name, len(prompts)) as progress:
        steps = in_blocks(folder, prompts, config.block, reviser.work, progress.advance)
    hashes = {"model": fingerprint(config.model), "constitution": constitution.hash}
    revisions = demonstrations_of(steps, prompts, config.keep)
    if not revisions:
        raise DataError(
            f"{config.prompts}: no revision of {len(prompts)} prompts came out whole; lower "
            "sampling.max_new_tokens or examples, or take a model with more positions"
        )
    mixed = mix(revisions, helpful, config.helpful_ratio, config.seed)
    asked = ({"prompt": prompts[row["prompt_index"]].prompt, **row, **hashes} for row in steps)
    write_jsonl(folder.path / "steps.jsonl", asked)
    write_jsonl(folder.path / "demonstrations.jsonl", map(to_dict, mixed))
    facts = counts(steps, prompts, config, constitution.format)
    tell(facts)
    mixture = {"revisions": len(revisions), "helpful": len(mixed) - len(revisions)}
    return folder.finish(**facts, **mixture, **hashes)


# --- answers, critiques, revisions ----------------------------------------------------------------


@dataclass
class Thread:
    """One prompt, its newest answer, and what is asked of it in this round.

    `over` says that nothing more is asked: there is no answer, or no room.
    """

    prompt: Text
    number: int
    answer: str = ""
    principle: Principle | None = None
    critique: str = ""
    over: bool = False


class Reviser:
    """Makes the steps of a block of prompts, all of one kind in one go."""

    def __init__(
        self, config: ReviseConfig, constitution: Constitution, language_model: LanguageModel
    ) -> None:
        self.config, self.constitution, self.model = config, constitution, language_model
        self.examples = constitution.examples[: config.examples]
        self.sampling = with_stops(config.sampling, constitution.format, language_model)

    def work(self, number: int, prompts: Sequence[Prompt]) -> list[JsonRow]:
        """The steps of one block, of which every text is a function of (seed, block, step, row)."""
        first = number * self.config.block
        threads = [Thread(record.prompt, first + i) for i, record in enumerate(prompts)]
        draw = REVISION + number * (1 + 2 * self.config.rounds)
        rows = self._write("answer", 0, threads, lambda thread: thread.prompt, draw)
        for round in range(1, self.config.rounds + 1):
            rows += self._round(round, [t for t in threads if not t.over], draw + 2 * round - 1)
        return sorted(rows, key=lambda row: row["prompt_index"])

    def _round(self, round: int, threads: list[Thread], draw: int) -> list[JsonRow]:
        """Principles, critiques where they are wanted, and revisions: the newest answers."""
        criticized: list[Thread] = []
        for thread in threads:
            principle = self.constitution.draw("revision", self.config.seed, thread.prompt, round)
            thread.principle, thread.critique = principle, ""
            if self.config.critique and principle.critique:
                criticized.append(thread)
        rows = self._write("critique", round, criticized, self._critique_prompt, draw)
        threads = [thread for thread in threads if not thread.over]
        return rows + self._write("revision", round, threads, self._revision_prompt, draw + 1)

    def _critique_prompt(self, thread: Thread) -> Text:
        assert thread.principle is not None
        return critique_prompt(
            self.constitution, thread.prompt, thread.answer, thread.principle, self.examples
        )

    def _revision_prompt(self, thread: Thread) -> Text:
        assert thread.principle is not None
        return revision_prompt(
            self.constitution,
            thread.prompt,
            thread.answer,
            thread.principle,
            thread.critique,
            self.examples,
        )

    def _write(
        self,
        kind: str,
        round: int,
        threads: Sequence[Thread],
        asked: Callable[[Thread], Text],
        draw: int,
    ) -> list[JsonRow]:
        """Sample one text a thread; a transcript that has no room for it ends there."""
        prompts = [encode_prompt(self.model.tokenizer, asked(thread)) for thread in threads]
        room = self.model.max_positions - self.sampling.max_new_tokens
        fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= room]
        sampled = generate_tokens(
            self.model, [prompts[i] for i in fits], self.sampling, seed=self.config.seed, step=draw
        )
        found = dict(zip(fits, sampled, strict=True))
        rows: list[JsonRow] = []
        for i, thread in enumerate(threads):
            row: JsonRow = {"prompt_index": thread.number, "round": round, "kind": kind}
            if thread.principle is not None:
                row["principle"] = thread.principle.id
            if i in found:
                text, whole = self._text(prompts[i], found[i])
                tokens = {"prompt_tokens": len(prompts[i]), "tokens": len(found[i].token_ids)}
                problem = keep(thread, kind, text, whole=whole)
                row |= {"text": text, "finished": whole, **tokens}
            else:
                thread.over, problem = True, "too long"
            rows.append({**row, "problem": problem} if problem else row)
        return rows

    def _text(self, prompt: list[int], sample: Sampled) -> tuple[str, bool]:
        """What was written before the first stop, and whether it ended by itself."""
        text = completion_text(self.model, prompt, sample.token_ids, finished=sample.finished)
        ends = [at for stop in self.constitution.format.stops if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))], sample.finished or bool(ends)


def keep(thread: Thread, kind: str, text: str, *, whole: bool) -> str:
    """Take a text as the thread's newest answer or critique, if it is one; what is wrong with it.

    An empty text and a revision that was cut are not taken, a copy of the answer changes nothing.
    """
    if not text.strip():
        thread.over = thread.over or kind == "answer"
        return "empty"
    if kind == "critique":
        thread.critique = text
        return ""
    if kind == "revision" and not whole:
        return "cut"
    copied = text.strip() == thread.answer.strip()
    thread.answer = text
    return "copied" if copied else ""


def with_stops(
    sampling: SamplingConfig, words: Format, language_model: LanguageModel
) -> SamplingConfig:
    """The same, ending also at stops that are one token, so that nothing is sampled in vain."""
    tokenizer = language_model.tokenizer
    ids = [tokenizer(stop, add_special_tokens=False)["input_ids"] for stop in words.stops]
    single = {each[0] for each in ids if len(each) == 1 and each[0] != tokenizer.unk_token_id}
    stops = tuple(sorted({*sampling.stop_token_ids, *single}))
    return replace(sampling, stop_token_ids=stops)


# --- what comes out -------------------------------------------------------------------------------


def demonstrations_of(
    steps: Iterable[JsonRow], prompts: Sequence[Prompt], rounds: Literal["all", "last"]
) -> list[Demonstration]:
    """The whole revisions as demonstrations: of all rounds, or each prompt's last."""
    usable = [
        row for row in steps if row["kind"] == "revision" and row.get("problem") in (None, "copied")
    ]
    if rounds == "last":
        usable = list({row["prompt_index"]: row for row in usable}.values())
    return [
        Demonstration(prompt=prompts[row["prompt_index"]].prompt, completion=row["text"])
        for row in usable
    ]


def mix(
    revisions: Sequence[Demonstration],
    helpful: Sequence[Demonstration],
    ratio: float,
    seed: int,
) -> list[Demonstration]:
    """Revisions and `ratio` helpful demonstrations for each, drawn and ordered by the seed."""
    random = Random(f"{seed} mixture")
    wanted = min(len(helpful), math.ceil(ratio * len(revisions)))
    mixed = [*revisions, *random.sample(list(helpful), wanted)]
    random.shuffle(mixed)
    return mixed


def counts(
    steps: Sequence[JsonRow],
    prompts: Sequence[Prompt],
    config: ReviseConfig,
    words: Format,
) -> dict[str, Any]:
    """What was written and what went wrong, and the share of refusals round by round."""
    problems = Counter(f"{row['kind']}: {row['problem']}" for row in steps if "problem" in row)
    written = Counter(row["kind"] for row in steps if "text" in row)
    refused: dict[str, list[float | None]] = {}
    for name, wanted in (("harmless", True), ("other", False)):
        shares = [
            _share(
                words.refuses(row["text"])
                for row in steps
                if row["round"] == round
                and row["kind"] != "critique"
                and "text" in row
                and (prompts[row["prompt_index"]].category in config.harmless) == wanted
            )
            for round in range(config.rounds + 1)
        ]
        refused[name] = shares
    return {
        "prompts": len(prompts),
        "written": dict(written),
        "tokens": sum(row.get("tokens", 0) for row in steps),
        "problems": dict(sorted(problems.items())),
        "refusals": refused,
    }


def _share(flags: Iterable[bool]) -> float | None:
    found = list(flags)
    return sum(found) / len(found) if found else None


def tell(facts: dict[str, Any]) -> None:
    """Print what was written, what went wrong, and how refusals went from round to round."""
    written = ", ".join(f"{count} {kind}s" for kind, count in facts["written"].items())
    console.print(f"{facts['prompts']} prompts: {written}")
    for problem, count in facts["problems"].items():
        console.print(f"  {problem}: {count}")
    for name, shares in facts["refusals"].items():
        if shares[0] is not None:
            told = " → ".join("-" if share is None else f"{share:.0%}" for share in shares)
            console.print(f"  refusals of {name} prompts, answer and revisions: {told}")

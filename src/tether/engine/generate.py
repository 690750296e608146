"""The `generate` stage: completions of prompts, written as records."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tether.config import GenerateConfig
from tether.data.formats import read_prompts
from tether.engine.decode import Sampled, completion_text, encode_prompts, generate_tokens
from tether.engine.sampling import GENERATION
from tether.errors import ConfigError
from tether.models import adapters
from tether.models.language_model import LanguageModel, load, load_tokenizer
from tether.progress import Steps
from tether.records import Completions, Prompt, Text, to_dict, write_jsonl
from tether.rundir import StageFolder
from tether.sections import SamplingConfig

USUAL = SamplingConfig()


def generate(config: GenerateConfig) -> Path:
    """Sample `num` completions of each prompt into `OUT/completions.jsonl`, one row a prompt.

    Completion k of prompt i is a function of (model, prompt, seed, i · num + k). With adapters
    there is one row an adapter and prompt, and its `model` is the adapter; one base serves all.

    Raises:
        ConfigError: An adapter is of another base.
    """
    folder = StageFolder(config, "generate", [config.model, config.prompts, *config.adapters])
    if folder.finished:
        return folder.path
    prompts = read_prompts(config.prompts, config.columns)
    base = load(config.model, config.compute)
    models = dict(with_adapters(base, config.adapters)) or {config.model: base}
    texts = [record.prompt for record in prompts]
    ids = encode_prompts(base, texts, config.sampling.max_new_tokens)
    rows = [each for each in ids for _ in range(config.num)]
    records: list[Completions] = []
    tokens = 0
    with Steps(folder.path.name, len(models) * len(rows)) as progress:
        for name, language_model in models.items():
            sampled = generate_tokens(
                language_model,
                rows,
                config.sampling,
                seed=config.seed,
                step=GENERATION,
                on_rows=progress.advance,
            )
            tokens += sum(len(sample.token_ids) for sample in sampled)
            records += completions(language_model, prompts, rows, sampled, name)
    folder.begin()
    write_jsonl(folder.path / "completions.jsonl", map(to_dict, records))
    count = len(models) * len(rows)
    return folder.finish(prompts=len(prompts), completions=count, tokens=tokens)


def complete(
    language_model: LanguageModel,
    prompts: Sequence[Text],
    *,
    num: int = 1,
    sampling: SamplingConfig = USUAL,
    seed: int = 0,
) -> list[Completions]:
    """Sample `num` completions of each prompt, the same as `generate` writes into its file.

    Args:
        language_model: What `load` returned.
        prompts: Texts, or lists of chat messages.
        num: Completions a prompt.
        sampling: Temperature, and where a completion ends.
        seed: Completion k of prompt i is a function of (model, prompt, seed, i · num + k).

    Raises:
        ConfigError: A prompt leaves no room for a completion.
    """
    ids = encode_prompts(language_model, prompts, sampling.max_new_tokens)
    rows = [each for each in ids for _ in range(num)]
    sampled = generate_tokens(language_model, rows, sampling, seed=seed, step=GENERATION)
    records = [Prompt(prompt=prompt) for prompt in prompts]
    name = language_model.model.name_or_path or ""
    return completions(language_model, records, rows, sampled, name)


def with_adapters(
    base: LanguageModel, paths: tuple[str, ...]
) -> Iterator[tuple[str, LanguageModel]]:
    """The base with each adapter, all on the one backbone, by path.

    Raises:
        ConfigError: An adapter is of another base or vocabulary.
    """
    for path in paths:
        if base.adapter or not (adapters.is_adapter(path) and adapters.on(base.model, path)):
            raise ConfigError(
                f"adapters={path!r} is no adapter of model={base.model.name_or_path!r}; "
                "name the base that its adapter_config.json names"
            )
        if load_tokenizer(path).get_vocab() != base.tokenizer.get_vocab():
            raise ConfigError(f"adapters={path!r} has another vocabulary than its base; retrain it")
        name = adapters.free_name(base.model, "policy")
        adapters.attach_from(base.model, name, path, trainable=False)
        yield path, replace(base, adapter=name)


def completions(
    language_model: LanguageModel,
    prompts: Sequence[Prompt],
    rows: list[list[int]],
    sampled: list[Sampled],
    name: str,
) -> list[Completions]:
    """One record a prompt, of samples that lie prompt after prompt."""
    num = len(rows) // max(len(prompts), 1)
    texts = [
        completion_text(language_model, prompt, sample.token_ids, finished=sample.finished)
        for prompt, sample in zip(rows, sampled, strict=True)
    ]
    return [
        Completions(
            prompt=record.prompt,
            completions=texts[i * num : (i + 1) * num],
            finished=[sample.finished for sample in sampled[i * num : (i + 1) * num]],
            category=record.category,
            model=name,
        )
        for i, record in enumerate(prompts)
    ]

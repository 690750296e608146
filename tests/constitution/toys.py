"""A constitution in few words, and a tiny model that knows them."""

from pathlib import Path

from tests.tiny import WORDS, save_tiny, word_tokenizer

CONSTITUTION = """
[[principle]]
id = "kindness"
critique = "rude"
revision = "kind"
preference = "who helps"

[[principle]]
id = "size"
revision = "small"
preference = "what likes"

[[example]]
prompt = "the dog"
completion = "no"
principle = "kindness"
critique = "yes rude"
revision = "please"

[[judgment]]
prompt = "the dog"
first = "please"
second = "no"
principle = "kindness"
answer = "A"
reasoning = "it helps"

[format]
prompt = "{prompt} :"
critique = " ask {request} critique"
revision = " ask {request} revision"
between = " \\n "
stops = [" ask"]
refusals = ["sorry no"]

[wording]
comparison = "{prompt} A: {first} B: {second} {question}"
statement = "{prompt} A: {completion} {question}"
reasoning = " tell"
answer = " Answer:"
yes_no = ["yes", "no"]
"""

KNOWN = [*WORDS, ":", "ask", "critique", "revision", "A", "B", "A:", "B:", ">", "Answer:"]


def save(folder: Path, **settings) -> str:
    """A tiny model beside `constitution.toml`; returns the model's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "constitution.toml").write_text(CONSTITUTION)
    tokenizer = settings.pop("tokenizer", None) or word_tokenizer(KNOWN)
    settings = {"max_position_embeddings": 128, **settings}
    return str(save_tiny(folder / "model", tokenizer=tokenizer, **settings))

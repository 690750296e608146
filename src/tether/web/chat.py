"""The chat page: talk to a model of the runs, judge its answers, see where it learned to differ."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from tether.feedback.live import Written, judge
from tether.records import Message, Text
from tether.web.judging import project, sampling, text
from tether.web.visit import Visit, entrance
from tether.web.voices import Job

MOST_MESSAGES = 200


def page(visit: Visit) -> Response:
    """The page; the conversation itself lives in the browser."""
    names = list(visit.site.voices.found())
    return visit.page(
        "chat.html",
        here="/chat",
        models=names,
        model=_chosen(visit.asked("model"), names),
        reference=visit.asked("reference"),
    )


def _chosen(asked: str, names: list[str]) -> str:
    return asked if asked in names else (names[-1] if names else "")


def answer(visit: Visit) -> Response:
    """Stream an answer as lines of JSON.

    `start` says what the model is; `text` are pieces; `differences` are one (nats, shade) a piece;
    `end` is the last. `error` takes the place of what is missing.
    """
    fields, voices = visit.fields, visit.site.voices
    model = voices.require(text(fields, "model"))
    reference = text(fields, "reference")
    if reference:
        voices.require(reference)
    messages, system, settings = _messages(fields), text(fields, "system"), sampling(fields)

    def work(job: Job) -> None:
        voice = voices.voice(model, reference)
        job.tell(start=job.id, chats=voice.chats, takes_system=voice.takes_system)
        prompt = _prompt(voice, messages, system)
        pieces: list[Any] = []
        for piece in voice.answer(prompt, **settings):
            if job.stop.is_set():
                break
            pieces.append(piece)
            job.tell(text=piece.text)
        said = "".join(piece.text for piece in pieces)
        job.told = {"prompt": prompt, "text": said, "model": model}
        if voice.compares:
            job.tell(differences=voice.shaded(prompt, pieces))
        job.tell(end=True)

    job = voices.ask(work)
    lines = job.lines(visit.site.stopping)
    return StreamingResponse(lines, media_type="application/x-ndjson")


def _messages(fields: Mapping[str, Any]) -> list[Message]:
    """What was said, the person's turn last.

    Raises:
        HTTPException: 400 where it is no conversation.
    """
    given: Any = fields.get("messages")
    roles = ("user", "assistant")
    fits = isinstance(given, list) and len(given) % 2 == 1 and len(given) < MOST_MESSAGES
    if not fits or not all(
        isinstance(one, dict)
        and one.get("role") == roles[i % 2]
        and isinstance(one.get("content"), str)
        for i, one in enumerate(given)
    ):
        raise HTTPException(400, "messages must be a conversation that ends with the user's turn.")
    return [{"role": one["role"], "content": one["content"]} for one in given]


def _prompt(voice: Any, messages: list[Message], system: str) -> Text:
    """The whole conversation, or without a chat template the last text alone."""
    if not voice.chats:
        return messages[-1]["content"]
    first: list[Message] = [{"role": "system", "content": system}]
    return [*(first if system and voice.takes_system else []), *messages]


def stop(visit: Visit) -> Response:
    """Stop an answer; what was said of it stays."""
    visit.site.voices.job(visit.fields.get("job")).stop.set()
    return JSONResponse({"stopped": True})


def thumb(visit: Visit) -> Response:
    """Store a thumb on an answer that this server gave."""
    job, up = visit.site.voices.job(visit.fields.get("job")), visit.fields.get("up")
    if not isinstance(up, bool) or not job.told.get("text", "").strip():
        raise HTTPException(400, "Only an answer that says something can be judged, up or down.")
    told = job.told
    with project(visit, "thumbs") as (store, labeler):
        written, ranks = [Written(told["text"], told["model"])], [1.0 if up else None]
        judge(store, labeler, told["prompt"], written, ranks, submission=_submission(visit))
    return JSONResponse({"saved": up})


def _submission(visit: Visit) -> str:
    return text(visit.fields, "submission")


ROUTES = [
    entrance("/chat", page),
    entrance("/api/chat", answer, post=True),
    entrance("/api/stop", stop, post=True),
    entrance("/api/chat/thumb", thumb, post=True),
]

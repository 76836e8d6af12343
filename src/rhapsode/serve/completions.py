"""The answer to /v1/completions and /v1/chat/completions: whole, or in a stream, and what happens if nobody waits."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rhapsode.decode import Failed
from rhapsode.progress import say
from rhapsode.serve.answers import Telling, TextPart, chat_choice, completion_choice, usage
from rhapsode.serve.driver import Driver, Job
from rhapsode.serve.failures import Refusal, failure_body
from rhapsode.serve.models import LoadedModel
from rhapsode.serve.wanted import Wanted


@dataclass(frozen=True)
class Patience:
    """max_wait: seconds that a request may wait until a prompt of it is read. ping: seconds between signs of life."""

    max_wait: float
    ping: float


class TextsResponse(Response):
    """The answer to a request for texts. All of it happens here, so that what is begun here ends here: the job is
    handed over when the answer begins, and its places are given back when it ends, whether the client reads it to the
    end, leaves half-way, or has left before."""

    def __init__(
        self, wanted: Wanted, name: str, model: LoadedModel, driver: Driver, patience: Patience, log_prompts: bool
    ) -> None:
        super().__init__()
        self.wanted, self.model, self.driver = wanted, model, driver
        self.patience, self.log_prompts = patience, log_prompts
        prefix, kind = ("chatcmpl", "chat.completion") if wanted.chat else ("cmpl", "text_completion")
        self.about = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind + (".chunk" if wanted.chat and wanted.stream else ""),
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": f"fp_{model.model.fingerprint[:12]}",
        }
        self.own_headers = ignored_header(wanted.ignored)
        tokenizer = model.model.tokenizer
        ends = wanted.config.max_tokens == 0
        self.tellings = [
            Telling(tokenizer, prompt, wanted.echo, wanted.top, ends)
            for prompt in wanted.prompts
            for _ in range(wanted.best_of)
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            requests = self.wanted.requests(self.model.model.tokenizer.eos_id)
            job = self.driver.submit(self.model, requests, self.wanted.stream)
        except ValueError as error:
            await refusal_response(Refusal(400, str(error)))(scope, receive, send)
            return
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send)
            return
        leaving = asyncio.create_task(_until_left(receive))
        leaving.add_done_callback(lambda _: job.leave())
        try:
            answer = self._stream if self.wanted.stream else self._whole
            await answer(job, scope, receive, send)
            if job.left and job.unended:
                self.driver.meters.left.inc()
        finally:
            leaving.cancel()
            self.driver.cancel(job)

    async def _events(self, job: Job) -> AsyncIterator[list[tuple[int, Any]]]:
        """What comes of the job, as it comes; nothing, each time that the client needs a sign of life.

        Ends where all texts have, or the client has left. Raises Refusal where the job waits for too long or was ended
        before its time, or a text failed.
        """
        asked = time.perf_counter()
        while not job.left and (job.unended or job.events or job.refusal):
            if job.refusal:
                raise job.refusal
            waited = time.perf_counter() - asked
            if not job.begun and waited >= self.patience.max_wait:
                raise Refusal(
                    503,
                    f"no room within {self.patience.max_wait:g} s; try again later",
                    retry_after=self.driver.retry_after,
                )
            pause = self.patience.ping
            if not job.begun:
                pause = min(pause, self.patience.max_wait - waited)
            try:
                async with asyncio.timeout(pause):
                    await job.wake.wait()
            except TimeoutError:
                yield []
                continue
            events = job.take()
            for _, event in events:
                if isinstance(event, Failed):
                    raise Refusal(500, f"the model failed: {event.error}", code="model_failed")
            yield events

    def _parts(self, events: Sequence[tuple[int, Any]]) -> dict[int, TextPart]:
        """What the events add to which text."""
        by_text: dict[int, list[Any]] = {}
        for number, event in events:
            by_text.setdefault(number, []).append(event)
        return {number: self.tellings[number].part(its) for number, its in by_text.items()}

    async def _whole(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        wholes = [TextPart() for _ in self.tellings]
        try:
            async for events in self._events(job):
                for number, part in self._parts(events).items():
                    wholes[number].extend(part)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send)
            return
        if job.left:
            return
        self._log(wholes)
        parts = [json_text(self.about)[:-1].encode(), b',"choices":[']
        for index, number in enumerate(self._best()):
            parts += [b"," if index else b"", json_text(self._choice(index, number, wholes[number])).encode()]
            wholes[number] = TextPart()  # of all texts at once it would take several times what the answer does
        body = b"".join([*parts, b'],"usage":', json_text(self._usage()).encode(), b"}"])
        del parts
        job.sending = len(body)
        await self._send_whole(body, job, send)

    async def _send_whole(self, body: bytes, job: Job, send: Send) -> None:
        """Piece by piece, each when the client has read what was before it: till then the answer keeps its place."""
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.own_headers}
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers(headers)})
        for begin in range(0, len(body), PIECE_BYTES):
            piece = body[begin : begin + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": begin + PIECE_BYTES < len(body)})

    def _best(self) -> list[int]:
        """The numbers of the texts that are the answer, those of each prompt in order."""
        n, best_of = self.wanted.n, self.wanted.best_of
        numbers = range(best_of)
        found = []
        for begin in range(0, len(self.tellings), best_of):
            its = self.tellings[begin : begin + best_of]
            ranked = sorted(numbers, key=lambda i: -its[i].mean_log_probability) if best_of > n else numbers
            found += [begin + i for i in ranked[:n]]
        return found

    def _choice(
        self, index: int, number: int, part: TextPart, delta: bool = False, first: bool = True
    ) -> dict[str, Any]:
        """A part of text `number`, which is choice `index` of the answer."""
        told = self.wanted.top is not None
        if self.wanted.chat:
            telling = self.tellings[number] if told else None
            return chat_choice(index, part, telling, self.wanted.with_ids, delta, first)
        return completion_choice(index, part, told, self.wanted.with_ids)

    def _usage(self) -> dict[str, Any]:
        prompts = sum(len(prompt.ids) for prompt in self.wanted.prompts)
        cached = sum(telling.cached for telling in self.tellings[:: self.wanted.best_of])
        return usage(prompts, sum(telling.written for telling in self.tellings), cached)

    async def _stream(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """A line for each part; nothing is sent, and the status is open, until there is something to say."""
        begun = False
        usage_of_none = ',"usage":null' if self.wanted.include_usage else ""
        head = json.dumps(self.about, separators=(",", ":"))[:-1] + usage_of_none + ',"choices":['
        wholes = [TextPart() for _ in self.tellings] if self.log_prompts else []
        told: set[int] = set()

        async def tell(lines: str) -> None:
            nonlocal begun
            if not begun:
                headers = {**STREAM_HEADERS, **self.own_headers}
                await send({"type": "http.response.start", "status": 200, "headers": raw_headers(headers)})
                begun = True
            await send({"type": "http.response.body", "body": lines.encode(), "more_body": True})

        try:
            async for events in self._events(job):
                lines = []
                for number, part in self._parts(events).items():
                    if wholes:
                        wholes[number].extend(part)
                    if part.text or part.ids or part.finish_reason or self.wanted.chat:
                        choice = self._choice(number, number, part, delta=True, first=number not in told)
                        told.add(number)
                        lines.append(f"data: {head}{json_text(choice)}]}}\n\n")
                if lines or not events:
                    await tell("".join(lines) or ": ping\n\n")
        except Refusal as refusal:
            if not begun:
                await refusal_response(refusal)(scope, receive, send)
                return
            await tell(f"data: {json_text(body_of(refusal))}\n\n")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if job.left:
            return
        if self.wanted.include_usage:
            last = {**self.about, "choices": [], "usage": self._usage()}
            await tell(f"data: {json_text(last)}\n\n")
        self._log(wholes)
        await tell("data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _log(self, wholes: Sequence[TextPart]) -> None:
        if self.log_prompts:
            tokenizer = self.model.model.tokenizer
            for telling, whole in zip(self.tellings, wholes, strict=True):
                prompt = telling.prompt
                before = tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text
                say(f"{self.about['id']} {self.about['model']}: {before!r} -> {whole.text!r}")


STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


PIECE_BYTES = 65_536  # of an answer that are handed to the connection at once


def raw_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as the server takes them."""
    return [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that names fields of a request that had no effect."""
    shown = ", ".join(ascii(name[:40])[1:-1] for name in names[:20])
    return {"X-Rhapsode-Ignored": shown} if names else {}


def json_text(value: Any) -> str:
    """Compact JSON on one line, whatever a client takes for a line's end: to some U+0085 and U+2028 are ends."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def body_of(refusal: Refusal) -> dict[str, Any]:
    """The body of a refusal."""
    return failure_body(refusal.status_code, str(refusal.detail), refusal.param, refusal.code)


def refusal_response(refusal: Refusal) -> JSONResponse:
    """The answer that a refusal is."""
    return JSONResponse(body_of(refusal), refusal.status_code, refusal.headers)


async def _until_left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

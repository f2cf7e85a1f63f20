"""What can be asked over HTTP: each route reads, asks the teacher and hands the answer on in the form asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from stillhouse.encodings import ValueType
from stillhouse.errors import EncodingNotOfferedError, FingerprintMismatchError, InvalidRequestError, TeacherError
from stillhouse.http_forms import FINGERPRINT_HEADER, MESSAGE_TYPE, PAYLOAD_TYPE
from stillhouse.messages import description_to_proto
from stillhouse.request import TeacherDescription
from stillhouse.token_texts import TokenTexts
from teacher_service.auth import Access
from teacher_service.http_door.arrow_answers import ARROW_TYPE, arrow_parts
from teacher_service.http_door.gate import HELD
from teacher_service.http_door.head_file import HEAD_TYPE, HeadFile
from teacher_service.http_door.json_answers import check_size, json_parts
from teacher_service.http_door.negotiation import choose, names, require_json
from teacher_service.http_door.requests import KINDS, LogitsIn
from teacher_service.http_door.streaming import HeadResponse, PiecewiseResponse
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics

JSON_TYPE = "application/json"

# One body of this size or more is read at a time: what JSON becomes takes several times its bytes.
_LARGE_BODY_BYTES = 2**16


class Routes:
    """The routes of one service; for one event loop."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, access: Access) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._access = access
        self._reading = asyncio.Lock()
        self._tokens: TokenTexts | None = None

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(redirect_slashes=False)
        router.get("/livez", summary="Is the process alive?")(self.livez)
        router.get("/readyz", summary="Are requests accepted?")(self.readyz)
        router.get("/metrics", summary="Prometheus metrics.", response_class=Response)(self.metrics)
        router.get("/v1/teacher", summary="What is served, and within which limits.")(self.teacher)
        router.get("/v1/output-head", summary="What rebuilds logits from hidden states.", response_class=Response)(
            self.output_head
        )
        router.post("/v1/logits", summary="Ask about sequences.", response_class=Response)(self.logits)
        return router

    async def livez(self) -> JSONResponse:
        """Open to all."""
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> JSONResponse:
        """Open to all; whoever has a token, also the scraper's, sees more than the status."""
        phase = self._lifecycle.phase
        content: dict[str, str] = {"status": phase}
        if self._may_see_detail(request):
            if phase == "ready":
                teacher = self._lifecycle.teacher
                content |= {"model": teacher.description.model, "cache": teacher.cache_state}
            elif phase == "loading":
                content["progress"] = str(self._lifecycle.progress)
        if phase == "ready":
            return JSONResponse(content)
        return JSONResponse(content, 503, {"retry-after": "1"})

    async def metrics(self) -> Response:
        """For Prometheus; the scrape token opens it too."""
        await self._metrics.refresh()
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def teacher(self, request: Request, include_tokens: bool = False) -> Response:
        """With `include_tokens`, all tokens of its tokenizer, by id. As a message where `accept` names that."""
        description = self._lifecycle.teacher.description
        if names(request.headers.get("accept"), MESSAGE_TYPE):
            message = description_to_proto(description, include_tokens=include_tokens)
            return Response(message.SerializeToString(), media_type=MESSAGE_TYPE, headers={"vary": "accept"})
        content = _description(description, include_tokens=include_tokens)
        return JSONResponse(content, headers={"vary": "accept"})

    async def output_head(
        self,
        request: Request,
        value_type: Annotated[
            Literal["float32", "bfloat16"] | None, Query(description="By default as the teacher computes.")
        ] = None,
        expected_fingerprint: Annotated[str, Query(description="Refuse where the teacher's is another.")] = "",
    ) -> Response:
        """Give a safetensors file: `weight`, `bias` if the model has one; `scale` and `soft_cap` in its metadata.

        As one payload, with its checksum, where `accept` names that.
        """
        teacher = self._lifecycle.teacher
        description = teacher.description
        if expected_fingerprint not in ("", description.fingerprint):
            raise FingerprintMismatchError(
                f"expected_fingerprint is {expected_fingerprint}, but this teacher's is {description.fingerprint}: its "
                "weights or settings have changed; describe it anew"
            )
        if teacher.output_head is None:
            raise EncodingNotOfferedError("this teacher does not offer HIDDEN, and so no output head")
        about = {FINGERPRINT_HEADER: description.fingerprint, "vary": "accept"}
        if names(request.headers.get("accept"), PAYLOAD_TYPE):
            held: AsyncExitStack = request.scope[HELD]
            head = await held.enter_async_context(self._lifecycle.head_bytes.sending(value_type))
            self._metrics.response_bytes.labels("OutputHead").inc(head.num_bytes)
            return HeadResponse(head, PAYLOAD_TYPE, about)
        default: ValueType = "bfloat16" if description.compute_dtype == "bfloat16" else "float32"
        file = HeadFile(teacher.output_head, value_type or default, description.fingerprint)
        self._metrics.response_bytes.labels("OutputHead").inc(file.num_bytes)
        return PiecewiseResponse(file.parts(), HEAD_TYPE, about | {"content-length": str(file.num_bytes)})

    async def logits(self, request: Request) -> Response:
        """Answer in JSON, or as an Arrow IPC stream where `accept` asks for one."""
        form = choose(request.headers.get("accept"), (JSON_TYPE, ARROW_TYPE))
        require_json(request.headers.get("content-type"), request.headers.get("content-encoding"))
        asked = await self._read(await request.body())
        teacher = self._lifecycle.teacher
        logits_request, description = await asyncio.to_thread(asked.to_request), teacher.description
        checked = teacher.check(logits_request)
        tokens = self._token_texts(description) if asked.include_tokens else None
        if form == JSON_TYPE:
            check_size(logits_request, description)
        elif tokens is not None:
            raise InvalidRequestError(
                "include_tokens must be false: they stand in JSON alone; GET /v1/teacher lists them"
            )
        held: AsyncExitStack = request.scope[HELD]
        answer = await held.enter_async_context(teacher.answering(checked))
        self._metrics.response_bytes.labels(type(logits_request.encoding).__name__).inc(answer.num_bytes)
        parts: Iterator[bytes] = (
            json_parts(logits_request, answer, tokens)
            if form == JSON_TYPE
            else arrow_parts(logits_request, answer, description)
        )
        return PiecewiseResponse(parts, form, {"vary": "accept"})

    async def _read(self, body: bytes) -> LogitsIn:
        if len(body) < _LARGE_BODY_BYTES:
            return LogitsIn.from_json(body)
        async with self._reading:
            return await asyncio.to_thread(LogitsIn.from_json, body)

    def _token_texts(self, description: TeacherDescription) -> TokenTexts:
        if not description.tokens:
            raise InvalidRequestError("include_tokens must be false: this teacher has no tokenizer")
        if self._tokens is None:
            self._tokens = TokenTexts(description.tokens)
        return self._tokens

    def _may_see_detail(self, request: Request) -> bool:
        try:
            self._access.check(request.headers.get("authorization"), "metrics")
        except TeacherError:
            return False
        return True


def _description(description: TeacherDescription, *, include_tokens: bool) -> dict[str, Any]:
    """Return what is served, under the contract's names; the tokens only where they were asked for."""
    limits = description.limits
    content = {name: getattr(description, name) for name in description.__slots__}
    content["encodings"] = [KINDS[encoding] for encoding in description.encodings]
    content["limits"] = {name: getattr(limits, name) for name in limits.__slots__}
    if not include_tokens:
        del content["tokens"]
    return content

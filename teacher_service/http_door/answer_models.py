"""The schemas of JSON answers, for the OpenAPI page; `json_answers` writes what they describe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field

_Row = list[float | None]
# Null where it is not finite, as the log of no tail at all, or logits over a temperature near 0.
_Rows = list[list[float | None]]
_Ids = list[list[int]]
_Texts = list[list[str | None]]


class StatusOut(BaseModel):
    """How the service stands. Detail is for those with a token."""

    status: Literal["alive", "loading", "ready", "draining"]
    model: str | None = Field(None, description="What is served; once ready.")
    cache: str | None = Field(None, description="on, off, or paused while Redis fails; once ready.")
    progress: str | None = Field(None, description="How far loading has come.")


class LimitsOut(BaseModel):
    """The bounds that a request is held to."""

    max_sequences: int
    max_sequence_tokens: int
    max_request_tokens: int
    max_top_k: int
    max_draws: int
    max_candidates: int
    max_message_bytes: int


class TeacherOut(BaseModel):
    """What is served, and within which limits."""

    model: str
    fingerprint: str = Field(description="Identifies everything that an answer's bytes depend on.")
    weights_fingerprint: str
    tokenizer_fingerprint: str = Field(description="Empty where there is no tokenizer.")
    vocabulary_size: int
    tokenizer_size: int
    hidden_size: int = Field(description="Width of the final hidden state; 0 where the backend has none.")
    encodings: list[Literal["dense", "hidden", "top_k", "sampled", "candidates"]]
    limits: LimitsOut
    compute_dtype: str
    mode: str
    version: str
    device_kind: str = Field(description="What it computes on: cpu, or the names of its GPUs.")
    tokens: list[str] | None = Field(None, description="The tokenizer's tokens by id; where they were asked for.")


class _PayloadOut(BaseModel):
    positions: list[int]
    input_tokens: list[str | None] | None = Field(None, description="The tokenizer's tokens of the sequence.")
    input_texts: list[str | None] | None = Field(None, description="What they read as.")


class DenseOut(_PayloadOut):
    """All N logits of each position, untempered."""

    kind: Literal["dense"]
    logits: _Rows


class HiddenOut(_PayloadOut):
    """The final hidden state of each position."""

    kind: Literal["hidden"]
    hidden: _Rows


class _ScoredOut(_PayloadOut):
    temperature: float
    vocabulary_size: int
    logits: _Rows = Field(description="Untempered.")
    log_probabilities: _Rows = Field(description="log softmax(logits) over all N ids, at the ids that are listed.")
    tempered_log_probabilities: _Rows = Field(description="The same of logits / temperature.")
    log_normalizer: _Row = Field(description="logsumexp over all N logits.")
    log_tail_mass: list[float | None] = Field(description="Log of the probability of the ids that are not listed.")
    tempered_log_normalizer: _Row
    tempered_log_tail_mass: list[float | None]


class TopKOut(_ScoredOut):
    """The k largest logits of each position, by falling logit."""

    kind: Literal["top_k"]
    token_ids: _Ids
    tokens: _Texts | None = None
    texts: _Texts | None = None


class CandidatesOut(_ScoredOut):
    """Logits at the ids that were named, in one list for all positions or one for each."""

    kind: Literal["candidates"]
    token_ids: list[int] | _Ids
    tokens: list[str | None] | _Texts | None = None
    texts: list[str | None] | _Texts | None = None


class SampledOut(_PayloadOut):
    """Draws from softmax(logits / temperature): for each position the distinct ids and how often each was drawn."""

    kind: Literal["sampled"]
    temperature: float
    vocabulary_size: int
    draws: int
    token_ids: _Ids
    tokens: _Texts | None = None
    texts: _Texts | None = None
    counts: _Ids
    entropy: _Row = Field(description="Of softmax(logits / temperature), in nats.")


class TimingOut(BaseModel):
    """Where the time went, in seconds."""

    queue_seconds: float
    compute_seconds: float
    encode_seconds: float


class LogitsOut(BaseModel):
    """The answer to a request, one payload per sequence, in the order asked."""

    fingerprint: str
    cache_hits: int = Field(description="How many of the payloads came from the cache.")
    timing: TimingOut
    payloads: list[Annotated[DenseOut | HiddenOut | TopKOut | SampledOut | CandidatesOut, Discriminator("kind")]]

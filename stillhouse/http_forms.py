"""The forms in which a teacher speaks with its clients over HTTP: paths and media types, the same on both sides.

The messages are the contract's own; docs/teacher.md describes the forms. Knows nothing of servers or connections.
"""

from __future__ import annotations

TEACHER_PATH = "/v1/teacher"
LOGITS_PATH = "/v1/logits"
OUTPUT_HEAD_PATH = "/v1/output-head"

MESSAGE_TYPE = "application/protobuf"
"""Of the contract's messages: `ComputeLogitsRequest` and its response, and `GetTeacherResponse`."""

PAYLOAD_TYPE = "application/vnd.stillhouse.payload"
"""Of one payload as docs/payload-format.md specifies it: the output head."""

PROBLEM_TYPE = "application/problem+json"
"""Of whatever is refused (RFC 9457)."""

ERROR_URN = "urn:stillhouse:error:"
"""What the `type` of a problem begins with, before the name of its class in `errors`."""

FINGERPRINT_HEADER = "stillhouse-fingerprint"
"""Of an answer that cannot say itself whose it is."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""The largest message that protobuf reads."""

MAX_REQUEST_BYTES = 8 * 2**20
"""The largest message that a client sends: what a teacher takes unless it is told otherwise (max_http_body_bytes)."""

"""The HTTP door, part by part; `teacher_service.app` puts them together.

A request passes `gate` (access, body, time, its caller going away), then one of `routes`, which reads it with
`requests`, chooses a form with `negotiation` and answers with `json_answers`, `arrow_answers` or `head_file`, piece by
piece through `streaming`. What goes wrong is a problem detail (`problems`). `description` makes the OpenAPI page, and
`protocol` is what speaks HTTP/1.1 below all of this.
"""

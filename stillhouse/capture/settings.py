"""The settings of a capture: a flag wins over its variable `CAPTURE_*`, and that over the default.

The corpus is described by training's own keys (`DataSpec`), the teacher's address and TLS by training's names. Each
description is the flag's help. Knows nothing of how a setting is used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo

from stillhouse.channel import check_address
from stillhouse.data.spec import DataSpec
from stillhouse.encoding_choice import FORMS, check_text
from stillhouse.errors import ConfigurationError
from stillhouse.request import CacheMode

ENV_PREFIX = "CAPTURE_"

OWN_TEACHER = ("model", "revision", "backend", "device", "dtype")
"""Settings of a teacher that is started for the occasion, named as `stillhouse teacher serve` names them."""

_SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_\d+_(TCP|UDP)(_.*)?)")
"""What Kubernetes puts into every pod's environment for a service called `capture-...`: no setting of ours."""


def _share(value: object) -> object:
    """Read i/n."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value)
    if match is None:
        raise ValueError("must be i/n, such as 0/4, the first of four")
    index, count = int(match[1]), int(match[2])
    if count == 0:
        raise ValueError(f"must be i/n with n of at least 1, such as 0/4, the first of four; got {value}")
    if not index < count:
        raise ValueError(f"parts are counted from 0: of {count} the last is {max(count - 1, 0)}/{count}")
    return index, count


class CaptureSettings(BaseModel):
    """What is captured, from whom, and how. Times are in seconds, sizes in bytes unless a name says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, use_attribute_docstrings=True)

    output_dir: Path
    """Folder of the store; run again with the same flags, a capture goes on there."""
    data: DataSpec

    teacher: str | None = None
    """The address of a running teacher, of gRPC (127.0.0.1:8001) or HTTP (http://127.0.0.1:8000); several may stand
    behind it."""
    teacher_token: SecretStr | None = None
    """The teacher's token; not a flag, since other users of a machine can read a command line."""
    teacher_ca: str | None = None
    """PEM file of the authority that signed the teacher's certificate, for TLS; system: those that this machine
    trusts. By default the connection is not encrypted."""
    teacher_certificate: Path | None = None
    """PEM file of this client's own certificate, where the teacher asks for one (mutual TLS)."""
    teacher_key: Path | None = None
    """PEM file of that certificate's private key, unencrypted."""

    model: str | None = None
    """Instead of --teacher: start a teacher of this model for the occasion, a hub name, a folder, a .gguf file or
    smollm2. Its other settings are its own TEACHER_* variables."""
    revision: str | None = None
    """With --model: branch, tag or commit of a hub name."""
    backend: str | None = None
    """With or instead of --model: what runs the teacher that is started; by default transformers."""
    device: str | None = None
    """With --model: where it computes, auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """With --model: the dtype that it computes in; by default the one that the weights were saved in."""

    tokenizer: str | None = None
    """The tokenizer that the corpus is read with: a folder, a hub name, a .gguf file or smollm2; by default the
    teacher's."""
    cache_dir: Path | None = None
    """Where prepared corpora are kept; by default in the user's cache folder."""

    encoding: str = Field(default="sampled:50", description=f"What the teacher answers with: {FORMS}.")
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """T of the answers. Dense and hidden ones serve any temperature; the others this one."""
    part: Annotated[tuple[int, int], BeforeValidator(_share)] = (0, 1)
    """Capture the i-th of n parts, written i/n and counted from 0, into a folder of its own; `stillhouse store merge`
    joins them."""
    samples_per_shard: int | None = Field(default=None, ge=1)
    """Samples of a file; by default as many as make about 262,144 tokens or 64 MiB. The same for every part."""
    allow_nondeterministic: bool = False
    """Take the answers of a teacher in throughput mode too, which depend in their last bits on what shared their
    batch: a capture is then equal to no other to the bit."""

    max_request_tokens: int = Field(default=4096, ge=1)
    """Tokens of one request; a longer sample goes alone."""
    max_concurrent_requests: int = Field(default=4, ge=1, le=256)
    """Requests in flight: with one teacher enough to hide the way, with several behind the address a few for each."""
    max_held_bytes: int = Field(default=512 * 2**20, ge=1)
    """Answers in flight or waiting to be written, in bytes; one request is always sent."""
    cache_mode: CacheMode = "use"
    """What the teacher's cache may do: use, refresh, or bypass (it then keeps what others have asked for)."""
    teacher_wait_seconds: float = Field(default=600.0, ge=0)
    """Give up on a teacher that has been away for so long (exit code 1); the same command goes on."""
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Deadline of one request to the teacher."""

    dry_run: bool = False
    """Say what the capture would take, in bytes and in time, and write nothing."""

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.starts_teacher == (self.teacher is not None):
            what = "are two teachers" if self.starts_teacher else "are both missing"
            raise ValueError(f"teacher and model {what}: name a running one by --teacher, or one to start by --model")
        if not self.starts_teacher:
            given = [name for name in OWN_TEACHER if getattr(self, name) is not None]
        else:
            given = [name for name in type(self).model_fields if name.startswith("teacher_") and self._is_given(name)]
            given = [name for name in given if name != "teacher_wait_seconds"]
        if given:
            raise ValueError(
                f"{given[0]} has no effect {'with' if self.starts_teacher else 'without'} --model; drop it"
            )
        if self.teacher is not None:
            check_address(self.teacher)
        check_text(self.encoding)
        return self

    def _is_given(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def starts_teacher(self) -> bool:
        """Whether a teacher is started for the occasion."""
        return self.model is not None or self.backend is not None


def flag_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the settings that are flags of their own: all but the corpus, which has several, and the secrets."""
    for name, info in CaptureSettings.model_fields.items():
        if name != "data" and "Secret" not in str(info.annotation):
            yield name, info


def load_settings(flags: Mapping[str, Any], data: Mapping[str, Any], environment: Mapping[str, str]) -> CaptureSettings:
    """Return the settings from flags and environment.

    Args:
        flags: values by field; those that are None were not given.
        data: the same of the corpus, by field of `DataSpec`.
        environment: `CAPTURE_*` variables are read, and unknown ones refused.

    Raises:
        ConfigurationError: an unknown variable, or a value that cannot be; the message names it.
    """
    values, spec = _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    spec |= {name: value for name, value in data.items() if value is not None}
    try:
        return CaptureSettings.model_validate({**values, "data": spec})
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_explain, error.errors(include_url=False)))) from None


def variable(name: str) -> str:
    """Return the variable of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {variable(name): name for name in CaptureSettings.model_fields if name != "data"}
    corpus = {variable("data" if name == "sources" else name): name for name in DataSpec.model_fields}
    values: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENV_PREFIX) or not text:
            continue
        if name in own:
            values[own[name]] = text
        elif name in corpus:
            is_list = get_origin(DataSpec.model_fields[corpus[name]].annotation) is tuple
            spec[corpus[name]] = [part for part in text.split(",") if part] if is_list else text
        elif not _SERVICE_LINK.fullmatch(name):
            near = difflib.get_close_matches(name, [*own, *corpus], n=1)
            hint = f"did you mean {near[0]}?" if near else "unset it, or see --help for the settings"
            raise ConfigurationError(f"{name} is no setting of a capture: {hint}")
    return values, spec


def _explain(error: Any) -> str:
    place = [str(part) for part in error["loc"]]
    if not place:
        return str(error["msg"]).removeprefix("Value error, ")
    name = "data" if place in (["data"], ["data", "sources"]) else place[-1] if place[0] == "data" else place[0]
    named = f"{name} (--{name.replace('_', '-')}, {variable(name)})"
    if error["type"] == "missing" or (place == ["data", "sources"] and not error["input"]):
        return f"{named} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if "Secret" in str(error["input"]) or isinstance(error["input"], dict):
        return f"{named}: {message}"
    return f"{named}: {message}; got {error['input']!r:.100}"

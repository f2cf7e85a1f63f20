"""Stillhouse: knowledge distillation with the teacher as a service.

The public names are imported when they are first used, so that `import stillhouse` is quick and pulls in no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.lazy_names import lazy_names
from stillhouse.version import __version__

if TYPE_CHECKING:
    from stillhouse.client import AsyncTeacherClient, TeacherClient
    from stillhouse.data import DataSpec, Order, prepare
    from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
    from stillhouse.errors import StillhouseError, TeacherError
    from stillhouse.fixtures import FixtureStudent, FixtureTeacher
    from stillhouse.kd import (
        NO_LABEL,
        LossAndGradient,
        causal_lm_kd_loss,
        head_kd_loss,
        kd_logit_gradient,
        kd_loss,
        kd_loss_and_gradient,
        kd_step,
        kd_step_per_position,
    )
    from stillhouse.payloads import (
        CandidateLogits,
        DenseLogits,
        HiddenStates,
        OutputHead,
        Payload,
        SampledCounts,
        TopKLogits,
        concatenate,
    )
    from stillhouse.providers import Answer, StudentLogitsProvider, TeacherLogitsProvider
    from stillhouse.request import All, Explicit, From, Last, LogitsRequest, Sequence, TeacherDescription
    from stillhouse.request_ids import request_id
    from stillhouse.store import Store, StoreDataset, StoredSample, open_store

_HOME = {
    "DataSpec": "data",
    "Order": "data",
    "prepare": "data",
    "NO_LABEL": "kd",
    "LossAndGradient": "kd",
    "OutputHead": "payloads",
    "AsyncTeacherClient": "client",
    "TeacherClient": "client",
    "Candidates": "encodings",
    "Dense": "encodings",
    "Encoding": "encodings",
    "Hidden": "encodings",
    "Sampled": "encodings",
    "TopK": "encodings",
    "StillhouseError": "errors",
    "TeacherError": "errors",
    "FixtureStudent": "fixtures",
    "FixtureTeacher": "fixtures",
    "causal_lm_kd_loss": "kd",
    "head_kd_loss": "kd",
    "kd_logit_gradient": "kd",
    "kd_loss": "kd",
    "kd_loss_and_gradient": "kd",
    "kd_step": "kd",
    "kd_step_per_position": "kd",
    "CandidateLogits": "payloads",
    "DenseLogits": "payloads",
    "HiddenStates": "payloads",
    "Payload": "payloads",
    "SampledCounts": "payloads",
    "TopKLogits": "payloads",
    "concatenate": "payloads",
    "Answer": "providers",
    "StudentLogitsProvider": "providers",
    "TeacherLogitsProvider": "providers",
    "Store": "store",
    "StoreDataset": "store",
    "StoredSample": "store",
    "open_store": "store",
    "All": "request",
    "Explicit": "request",
    "From": "request",
    "Last": "request",
    "LogitsRequest": "request",
    "Sequence": "request",
    "TeacherDescription": "request",
    "request_id": "request_ids",
}

__all__ = [
    "NO_LABEL",
    "All",
    "Answer",
    "AsyncTeacherClient",
    "CandidateLogits",
    "Candidates",
    "DataSpec",
    "Dense",
    "DenseLogits",
    "Encoding",
    "Explicit",
    "FixtureStudent",
    "FixtureTeacher",
    "From",
    "Hidden",
    "HiddenStates",
    "Last",
    "LogitsRequest",
    "LossAndGradient",
    "Order",
    "OutputHead",
    "Payload",
    "Sampled",
    "SampledCounts",
    "Sequence",
    "StillhouseError",
    "Store",
    "StoreDataset",
    "StoredSample",
    "StudentLogitsProvider",
    "TeacherClient",
    "TeacherDescription",
    "TeacherError",
    "TeacherLogitsProvider",
    "TopK",
    "TopKLogits",
    "__version__",
    "causal_lm_kd_loss",
    "concatenate",
    "head_kd_loss",
    "kd_logit_gradient",
    "kd_loss",
    "kd_loss_and_gradient",
    "kd_step",
    "kd_step_per_position",
    "open_store",
    "prepare",
    "request_id",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, __all__)

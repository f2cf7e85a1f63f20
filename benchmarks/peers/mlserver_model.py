"""The model that MLServer loads, by its path."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.table import look_up, table


class Table(MLModel):  # type: ignore[misc]  # it is not installed where types are checked
    """Answers from the table."""

    async def load(self) -> bool:
        """Make it."""
        self._table = table()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Look up."""
        ids = np.frombuffer(payload.inputs[0].data.root[0], np.int32)
        answer = look_up(self._table, ids).tobytes()
        output = ResponseOutput(name="logits", shape=[1, 1], datatype="BYTES", data=[answer])
        return InferenceResponse(model_name=self.name, outputs=[output])

"""One model whose every layer is split over the processes that torchrun has started.

All of them load it and run each pass together; the first alone serves, hands every batch's ids to the others, and
runs the head. The others `follow` until it is gone. Ids travel over gloo, whatever moves the layers' sums, since a
follower may wait for hours, which NCCL takes for a fault.
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import structlog
import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.errors import TeacherUnavailableError
from teacher_service.backends.transformers import TransformersBackend

# A leader that dies ends the wait at once, since its connection closes; one that lives may have nothing to ask.
_LONGEST_WAIT = timedelta(days=365)

logger = structlog.get_logger(__name__)


class TensorParallelBackend(TransformersBackend):
    """A model split over processes, made in all of them at once; for the first, a backend like any other."""

    _control: dist.ProcessGroup | None = None
    _is_broken = False

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)  # each process makes the same passes to probe the model, in one order
        self._control = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)

    def follow(self) -> None:
        """Take part in the first process's passes until it is gone."""
        # torchrun tells every process to end at once, and the first may have work in flight, which needs this one.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            shape = torch.zeros(2, dtype=torch.int64)
            try:
                dist.broadcast(shape, src=0, group=self._control)
                batch = torch.zeros(2, *shape.tolist(), dtype=torch.int64)
                dist.broadcast(batch, src=0, group=self._control)
            except RuntimeError as error:
                logger.info("leader_gone", reason=str(error).partition("\n")[0])
                return
            with torch.inference_mode():
                super()._hidden(batch[0], batch[1])

    def _hidden(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        if self._control is None:
            return super()._hidden(ids_BL, positions_BL)
        if self._is_broken:
            raise TeacherUnavailableError("the processes of this teacher are out of step; it is being stopped")
        try:
            dist.broadcast(torch.tensor(ids_BL.shape), src=0, group=self._control)
            dist.broadcast(torch.stack([ids_BL, positions_BL]), src=0, group=self._control)
            return super()._hidden(ids_BL, positions_BL)
        except Exception:
            # The others may stand in the middle of a pass that this one has left: the next would mix two batches.
            self._is_broken = True
            logger.exception("out_of_step", remedy="lower max_batch_tokens if memory ran out; start the service again")
            os.kill(os.getpid(), signal.SIGTERM)
            raise

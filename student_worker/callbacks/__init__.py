"""What watches a run: five hooks and `Stop`, and those of our own that use them.

The names that a callback of somebody's own needs stand here; what comes with the package is in the modules beside.
"""

from student_worker.callbacks.base import Callback, RunView, StepRecord, Stop
from student_worker.evaluation.figures import Evaluation

__all__ = ["Callback", "Evaluation", "RunView", "StepRecord", "Stop"]

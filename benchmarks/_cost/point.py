"""One point of a curve, measured and foretold, as a flat row that can be drawn as it is."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks._result import Value


@dataclass(frozen=True, slots=True)
class Point:
    """`known` says how the prediction got its constants.

    "apart": from work that is none of ours, in the same run; "formula": none are needed; "point": from this curve's
    own points, which the row of such a point names by "fitted", so that it counts for no check.
    """

    curve: str
    x_name: str
    x: float
    measured: float
    predicted: float
    unit: str
    known: str

    @property
    def ratio(self) -> float:
        """How far the prediction is off: 1 is right, 2 is twice or half."""
        return max(self.measured / self.predicted, self.predicted / self.measured)

    def row(self) -> dict[str, Value]:
        """Return the row."""
        return {
            "curve": self.curve,
            "x_name": self.x_name,
            "x": self.x,
            "measured": float(f"{self.measured:.5g}"),
            "predicted": float(f"{self.predicted:.5g}"),
            "unit": self.unit,
            "measured_over_predicted": round(self.measured / self.predicted, 3),
            "constants": self.known,
        }

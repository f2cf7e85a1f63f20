"""What is read: the `data` part of a recipe, which a store may stand in for."""

from __future__ import annotations

from pydantic import Field

from stillhouse.data.spec import DataSpec, Sources


class RunData(DataSpec):
    """A corpus and its preparation. Without sources the samples are those of the recipe's store."""

    sources: Sources = Field(
        default=(), description=f"{DataSpec.model_fields['sources'].description} Not needed with a store."
    )

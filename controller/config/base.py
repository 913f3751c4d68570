"""What all models of line.yaml build on: names, expressions, and the rule that an unknown key is an error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""A short lower-case name; becomes part of node ids, so it must never need quoting."""
TagName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}\.[a-z][a-z0-9_]{0,39}$")]
"""``group.point``, the group usually a station's name."""
Expression = Annotated[str, Field(min_length=1, max_length=400)]
"""A condition over tags, e.g. ``filler.bowl_level >= 20 % and not filler.fault`` (``controller.core.expr``)."""
Scalar = bool | int | float | str


class Model(BaseModel):
    """Base: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

"""What the sections of the configuration are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
# TOML has no null: "none" stands for it.
_NoneByName = BeforeValidator(lambda value: None if value == "none" else value)
PositiveOrNone = Annotated[Annotated[float, Field(gt=0)] | None, _NoneByName]
PathOrNone = Annotated[Path | None, _NoneByName]
GpuShareOrNone = Annotated[Annotated[float, Field(gt=0, le=1)] | None, _NoneByName]
TextOrNone = Annotated[str | None, _NoneByName]


class Section(BaseModel):
    """A part of the tree: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

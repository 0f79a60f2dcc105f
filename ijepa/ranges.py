"""Ranges of values in configs, as annotations that pydantic checks (ijepa.strict)."""

from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
"""Some of a whole, but neither nothing nor all."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "tf32", "bfloat16"]
"""Number format in which a network computes (ijepa.precision); ijepa.config explains each."""
Pixels = Literal["exact", "fast"]
"""Decoding of training images (ijepa.data.jpeg)."""

"""Ranges of values in configs, as annotations that pydantic checks (ijepa.strict)."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T", bound=float)


def rises(pair: tuple[T, T]) -> tuple[T, T]:
    """The pair; pydantic refuses one whose second number is smaller than the first."""
    if not pair[0] <= pair[1]:
        raise PydanticCustomError("falling", "must be in rising order")
    return pair


Rising = Annotated[tuple[T, T], AfterValidator(rises)]
"""Two numbers of a range, such as Rising[Share], of which the second may be as large."""
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
Compile = bool | Literal["all"]
"""Blocks that torch compiles: none, those without gradients, or all (ijepa.config)."""
Pixels = Literal["exact", "fast", "device"]
"""Decoding of training images; ijepa.config explains each."""

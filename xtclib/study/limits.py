"""What a gate holds an artefact to, and how it is timed there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xtclib.config import Count, Expect, Positive, config

Points = Annotated[float, Field(ge=0, le=100), Expect("points from 0 to 100")]
Percent = Annotated[float, Field(gt=0, le=100), Expect("a percentage above 0 and at most 100")]


def option(name: str) -> str:
    """A limit as the command line writes it.

    >>> option("max_drop")
    '--max-drop'
    """
    return "--" + name.replace("_", "-")


@config
class Limits:
    """What an artefact may be; one limit at least, and what is not asked for is not measured.

    ``max_drop``: points of the task's score that it may lose; ``max_mb``: 10⁶ bytes of its weights'
    file; ``max_speed_ratio``: its median time ÷ its teacher's; ``max_ms``: of one batch;
    ``min_agreement``: percent of rows that both answer alike. A value at its limit holds.

    >>> Limits(max_mb=10, max_drop=1).against
    ['max_drop']
    """

    max_drop: Points | None = None
    max_mb: Positive | None = None
    max_speed_ratio: Positive | None = None
    max_ms: Positive | None = None
    min_agreement: Percent | None = None

    def __post_init__(self) -> None:
        if not self.named:
            known = ", ".join(map(option, vars(self)))
            raise ValueError(f"received no limit, expected one at least of {known}")

    @property
    def named(self) -> list[str]:
        """The limits that were given."""
        return [name for name, value in vars(self).items() if value is not None]

    @property
    def against(self) -> list[str]:
        """Those of them that need a teacher."""
        return [name for name in self.named if name not in ("max_mb", "max_ms")]

    @property
    def scored(self) -> bool:
        """Whether rows have to be answered."""
        return self.max_drop is not None or self.min_agreement is not None

    @property
    def timed(self) -> bool:
        """Whether anything runs against the clock."""
        return self.max_speed_ratio is not None or self.max_ms is not None


@config
class Timing:
    """What is run against the clock: so many rows of so many tokens, on so many threads."""

    batch: Count = 8
    length: Count = 32
    threads: Count = 1

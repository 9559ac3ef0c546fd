"""One stage cut into shares that processes do on their own, without a scheduler between them.

Sites that forbid long-lived drivers run job arrays. The work of a harvest is shards, that of a correlation is panels,
and both are independent: each is on disk whole or not at all. So a stage is *begun* once, each process then does its
share of what is missing, and the ordinary run, once more, finishes: it finds all parts there, or makes up for those
that a process failed to do::

    run --until harvest --share begin/16     text, rows, empty stores
    run --until harvest --share 3/16         shards 3, 19, 35, …
    run --until correlate --share begin/16   stores finished; panels cut for 16 processes
    run --until correlate --share 3/16       panels 3, 19, 35, …
    run                                      everything that is left

The result is the same, byte for byte, as that of one run that cuts its panels alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from storage.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which part of a stage's work a process does; with no number it begins the stage, and does no part of it.

    Examples
    --------
    >>> Share.parse("1/3").of(list("abcdefg"))
    ['b', 'e']
    >>> Share.parse("begin/3")
    Share(number=None, count=3)
    """

    number: int | None
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read ``begin/N`` or ``I/N``."""
        match = re.fullmatch(r"(?:begin|(\d+))/(\d+)", text)
        if match is None or int(match[1] or 0) >= int(match[2]):
            raise InputError(f"A share is begin/N or I/N with I from 0 to N − 1, not {text!r}")
        return cls(None if match[1] is None else int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{'begin' if self.number is None else self.number}-of-{self.count}"

    @property
    def begins(self) -> bool:
        """Whether this is the process that begins the stage."""
        return self.number is None

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of all items of a stage, those that are done already among them."""
        return [] if self.number is None else list(items[self.number :: self.count])

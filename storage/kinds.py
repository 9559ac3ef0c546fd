"""Which quantity a store holds, and which quantities may be compared."""

from __future__ import annotations

import logging

from storage.errors import InputError

logger = logging.getLogger(__name__)

#: What a dictionary gives out, the same before its top-k, and the model's own units.
KINDS = ("post", "pre_topk", "raw")


def check_same_kind(a: str | None, b: str | None) -> None:
    """Refuse to compare activations before a top-k with activations behind one: under one name, two quantities.

    Raw units may stand against either, as a baseline; that is logged. A store that does not say is not judged.

    Parameters
    ----------
    a, b
        The ``kind`` of two stores.

    Raises
    ------
    InputError
        If one is ``pre_topk`` and the other ``post``.

    Examples
    --------
    >>> check_same_kind("post", "post")
    """
    if {a, b} == {"post", "pre_topk"}:
        raise InputError(
            f"A's activations are of kind {a!r}, B's of kind {b!r}: two different quantities, that are not compared. "
            "Harvest both with the same 'kind'"
        )
    if a != b and None not in (a, b):
        logger.warning("Activations of kind %s are compared with %s: two different quantities", a, b)

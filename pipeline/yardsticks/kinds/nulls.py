"""Floors of B's rows permuted, as ``rematch`` has stored them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.yardsticks.base import Drawn, register


@register
class Token(Drawn):
    """B reads each segment in another document: the models agree on the vocabulary, and on nothing else."""

    title: ClassVar[str] = "same token"
    null: ClassVar[str] = "token"
    name: Literal["token"] = "token"


@register
class Document(Drawn):
    """B reads another document: the models agree by chance alone."""

    title: ClassVar[str] = "documents permuted"
    null: ClassVar[str] = "document"
    name: Literal["document"] = "document"

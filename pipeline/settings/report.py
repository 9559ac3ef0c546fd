"""Settings of the report."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from pipeline.settings.base import Section


class ReportSettings(Section):
    """What the report shows."""

    contexts: PositiveInt = Field(8, description="Top activating contexts kept per feature.")
    pairs: PositiveInt = Field(100, description="Best pairs shown per pair of sites.")

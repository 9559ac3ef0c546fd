"""Settings of the yardsticks: the floors and ceilings that scores are held against."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.settings.base import Flag, Number, Section, registered_section
from pipeline.settings.registries import YARDSTICKS
from storage.yaml_files import parse_yaml


def parse_yardstick(text: str) -> dict[str, Any]:
    """Return a yardstick from how it is written on the command line.

    >>> parse_yardstick("other_dictionary:a=saes/{site}:b=random:64:8")
    {'name': 'other_dictionary', 'a': 'saes/{site}', 'b': 'random:64:8'}
    """
    name, *parts = text.split(":")
    settings: list[str] = []
    for part in parts:
        if "=" in part or not settings:
            settings.append(part)
        else:
            settings[-1] += f":{part}"
    given = (setting.partition("=") for setting in settings)
    # a path may look like a mapping to YAML
    return {"name": name} | {key: value if "{" in value else parse_yaml(value, text) for key, _, value in given}


#: Yardsticks with their settings: each one of :data:`pipeline.settings.registries.YARDSTICKS`.
Yardsticks = Annotated[
    list[Annotated[Any, registered_section(YARDSTICKS, "{name: other_dictionary, a: 'saes/{site}'}")]],
    Flag(
        name="--yardstick",
        metavar="NAME[:KEY=VALUE]",
        parse=parse_yardstick,
        choices=lambda: YARDSTICKS,
    ),
]
_ALONE = ("token", "document", "random_directions", "other_windows")


class YardsticksSettings(Section):
    """Which floors and ceilings there are, and between which two of them scores are placed."""

    use: Yardsticks = Field(
        [{"name": name} for name in _ALONE],
        validate_default=True,
        min_length=1,
        description=f"Mappings with the name and the settings of a yardstick (docs/yardsticks.md). {', '.join(_ALONE)} "
        "by default, which need nothing else.",
    )
    floor: str | None = Field(None, description="The floor of normalised scores; the first of those used by default.")
    ceiling: str | None = Field(None, description="Their ceiling; the first of those used by default.")
    groups: Annotated[int, Number, Field(ge=2)] = Field(
        10, description="Random groups of pairs that are left out in turn for the intervals of normalised scores."
    )

    @model_validator(mode="after")
    def _one_of_each_kind(self) -> YardsticksSettings:
        names = [item.name for item in self.use]
        if len(set(names)) < len(names):
            raise ValueError(f"a yardstick is named twice: {names}")
        for kind in ("floor", "ceiling"):
            wanted, there = getattr(self, kind), [item.name for item in self.use if item.kind == kind]
            if wanted is not None and wanted not in there:
                raise ValueError(f"{kind} is one of the {kind}s that are used ({', '.join(there)}), not {wanted!r}")
        return self

    def named(self, kind: str) -> str | None:
        """Return the floor or ceiling of normalised scores; None if there is none of the kind."""
        first = next((item.name for item in self.use if item.kind == kind), None)
        return getattr(self, kind) or first

    def record(self) -> dict[str, Any]:
        """Return the settings that decide the result, besides what it is made from."""
        named = {kind: self.named(kind) for kind in ("floor", "ceiling")}
        # results of the first release had pairs of highest r, in groups by rank
        return {**named, "groups": self.groups, "pairs": "random"}

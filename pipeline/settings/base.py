"""What all sections of the experiment file share."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import AfterValidator, BaseModel, ConfigDict

from storage.errors import InputError


class Section(BaseModel):
    """A part of the experiment file: unknown keys are errors, values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def known(look_up: Callable[[str], object]) -> AfterValidator:
    """Return the check that there is what a text names; see :mod:`pipeline.settings.registries`."""

    def check(text: str) -> str:
        try:
            look_up(text)
        except InputError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


SITE_PLACEHOLDER = "{site}"

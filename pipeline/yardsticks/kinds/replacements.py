"""Floors and ceilings with other dictionaries, other models, or other windows in the place of the run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.settings.experiment import Experiment
from pipeline.settings.harvest import ModelSettings
from pipeline.yardsticks.base import register
from pipeline.yardsticks.replaced import Replaced
from storage import open_activations
from storage.rundir import SIDES, Side


@register
class RandomDirections(Replaced):
    """Directions drawn at random on both sides, as many as the dictionary has, and as many active in a row."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "floor"
    title: ClassVar[str] = "random directions"
    name: Literal["random_directions"] = "random_directions"
    seed: int = Field(0, ge=0, description="Seed of the directions of A; those of B are drawn with the next one.")

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:
        """Return the model with a random dictionary at every site."""
        seed = self.seed + SIDES.index(side)
        dictionary = {site: f"random:{_size(path)}:{seed}" for site, path in stores.items()}
        kind = "post" if model.kind == "raw" else model.kind
        return model.model_copy(update={"dictionary": dictionary, "kind": kind})


def _size(path: Path) -> str:
    """Return FEATURES:K of a store: its features, and how many of them are active in a row that is no sink."""
    with open_activations(path) as store:
        rows = store.sizes["token"] - int(store["sink"].sum()) if "sink" in store else store.sizes["token"]
        active = round(float(store["n_active"].sum()) / max(1, rows))
        return f"{store.sizes['feature']}:{min(max(1, active), store.sizes['feature'])}"


@register
class OtherWindows(Replaced):
    """The same dictionary on the same rows, read in windows of half the length: with less context for most of them."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "ceiling"
    title: ClassVar[str] = "other windows"
    name: Literal["other_windows"] = "other_windows"

    def windows(self, config: Experiment) -> int:
        """Return half the window."""
        return config.corpus.max_length // 2

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:  # noqa: ARG002
        """Return the model itself."""
        return model


class Given(Replaced):
    """A yardstick with dictionaries that the user names."""

    paths: ClassVar[tuple[str, ...]] = ("a", "b")
    a: str | None = Field(None, description="Dictionary of A, as in the experiment; '{site}' stands for the site.")
    b: str | None = Field(None, description="The same of B.")

    @property
    def sides(self) -> Sequence[Side]:
        """The sides that a dictionary is given for."""
        return [side for side in SIDES if getattr(self, side) is not None]

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:  # noqa: ARG002
        """Return the model with the dictionary that is given."""
        return model.model_copy(update={"dictionary": getattr(self, side)})


@register
class OtherDictionary(Given):
    """Another dictionary of the same model at the same site, trained with another seed."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "ceiling"
    title: ClassVar[str] = "other dictionary seed"
    same_space: ClassVar[bool] = True
    name: Literal["other_dictionary"] = "other_dictionary"


@register
class FrozenDecoder(Given):
    """A dictionary of the model itself whose decoder is random, and stayed so in training (arXiv 2602.14111)."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "floor"
    title: ClassVar[str] = "frozen random decoder"
    name: Literal["frozen_decoder"] = "frozen_decoder"


@register
class RandomModel(Given):
    """A dictionary that was trained on the model with weights drawn anew (arXiv 2501.17727)."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "floor"
    title: ClassVar[str] = "trained on a random model"
    name: Literal["random_model"] = "random_model"
    seed: int = Field(0, ge=0, description="Seed of the weights that it was trained on, as in `randomise`.")

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:
        """Return the model with weights drawn anew and the dictionary that is given."""
        return super().replaced(model, side, stores).model_copy(update={"randomise": self.seed})


@register
class OtherModel(Given):
    """Another model, such as one trained with another seed, with its own dictionary; it has the same tokenizer."""

    kind: ClassVar[Literal["floor", "ceiling"]] = "ceiling"
    title: ClassVar[str] = "other model seed"
    paths: ClassVar[tuple[str, ...]] = ("a", "b", "model_a", "model_b")
    name: Literal["other_model"] = "other_model"
    model_a: str | None = Field(None, description="The other model in the place of A, as in the experiment.")
    model_b: str | None = Field(None, description="The same of B.")

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:
        """Return the other model with the dictionary that is given."""
        other = getattr(self, f"model_{side}") or model.model
        return super().replaced(model, side, stores).model_copy(update={"model": other})

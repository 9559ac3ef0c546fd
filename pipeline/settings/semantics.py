"""Settings of the semantic subspaces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.settings.base import Section
from pipeline.settings.compare import Metric, Null
from pipeline.settings.match import MatchMethod
from pipeline.settings.registries import NULLS

NonConceptKind = Literal["punctuation", "blank", "beginning", "position", "frequent", "single_token"]

#: Share from which on a feature is of a kind that stands for no concept.
NON_CONCEPT_LIMITS: dict[NonConceptKind, float] = {
    "punctuation": 0.5,
    "blank": 0.5,
    "beginning": 0.5,
    "position": 0.9,
    "frequent": 0.1,
    "single_token": 0.9,
}


class CountRule(Section):
    """A feature belongs to a concept if `at_least` of its `of` top contexts stand at a keyword."""

    name: Literal["count"] = "count"
    at_least: PositiveInt = 2
    of: PositiveInt = Field(5, description="top contexts looked at")

    @model_validator(mode="after")
    def _can_be_met(self) -> CountRule:
        if self.at_least > self.of:
            raise ValueError(f"at least {self.at_least} of {self.of} contexts can never be")
        return self


class ShareRule(Section):
    """A feature belongs to a concept if keywords have `at_least` this share of the activation in its top contexts."""

    name: Literal["share"] = "share"
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.5
    of: PositiveInt = Field(8, description="top contexts looked at")


class PmiRule(Section):
    """A feature belongs to a concept if it fires on the concept's rows 2**`at_least` times as often as by chance."""

    name: Literal["pmi"] = "pmi"
    at_least: float = Field(3.0, description="pointwise mutual information, in bits")
    min_count: PositiveInt = Field(5, description="rows of the concept on which the feature must fire")


class ProbeRule(Section):
    """The features that a sparse linear probe weighs most when it tells the concept's rows from others."""

    name: Literal["probe"] = "probe"
    features: PositiveInt = Field(20, description="most features that a concept gets")
    rows: Annotated[int, Field(ge=100)] = Field(20_000, description="rows of the sample that has no keyword")
    rows_of_concept: Annotated[int, Field(ge=10)] = Field(2_000, description="most rows of each concept in the sample")
    strength: Annotated[float, Field(gt=0)] = Field(1.0, description="C of the logistic regression with an L1 penalty")
    seed: int = 0


Rule = Annotated[CountRule | ShareRule | PmiRule | ProbeRule, Field(discriminator="name")]


class SemanticsSettings(Section):
    """Which concepts are looked for, and which features belong to them."""

    concepts: str | list[str] = Field(
        "default", description="'default', a YAML file of your own, or a list of these; later groups replace earlier"
    )
    only: list[str] | None = Field(None, description="names of the concepts to keep; all by default")
    inflections: bool | None = Field(
        None, description="plurals and verb forms of every keyword, or of none; by default as the groups ask for"
    )
    rule: Rule = CountRule()
    approaches: list[Literal["global", "within"]] = Field(
        ["global", "within"], description="pairs of the whole space cut out, features paired within the concept"
    )
    sides: Literal["both", "either"] = Field(
        "both", description="whose features must belong to the concept, of pairs cut out of the whole space"
    )
    within: MatchMethod = Field("greedy", description="how features are paired within a concept: any matching method")
    min_pairs: Annotated[int, Field(ge=3)] = Field(10, description="subspaces of fewer pairs are not tested")
    metrics: list[Metric] = Field(["svcca:k=4", "rsa", "svcca_pc1", "svcca"])
    judged: Annotated[list[Metric], Field(min_length=2, max_length=2)] = Field(
        ["svcca:k=4", "rsa"], description="the two metrics that both have to beat chance"
    )
    nulls: list[Null] = Field(["shuffled", "random_features", "random_pairs"])
    null_runs: PositiveInt = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    embedding: str | None = Field(
        "model:b",
        description="words' vectors for the coherence: 'model:a' or 'model:b' (input embeddings), 'gensim:FILE', "
        "'sentence-transformers:FOLDER', or null for none",
    )
    clusters: Annotated[int, Field(ge=0)] = Field(
        0, description="clusters of the pairs by decoder geometry that are tested like concepts; 0 for none"
    )
    geometry: Literal["joint", "a", "b"] = Field("joint", description="whose decoder rows find the clusters")

    @model_validator(mode="after")
    def _judged_are_scored(self) -> SemanticsSettings:
        if missing := [metric for metric in self.judged if metric not in self.metrics]:
            raise ValueError(f"judged names {missing[0]!r}, which is not among the metrics {self.metrics}")
        return self

    @field_validator("nulls")
    @classmethod
    def _nulls_of_subsets(cls, nulls: list[Null]) -> list[Null]:
        if outside := [null for null in nulls if NULLS[null].source == "control"]:
            raise ValueError(f"{', '.join(outside)} needs a control store, which subspaces do not have")
        return nulls

    @field_validator("embedding")
    @classmethod
    def _known_source(cls, embedding: str | None) -> str | None:
        kinds = ("model:a", "model:b", "gensim:", "sentence-transformers:", "model:")
        if embedding is not None and not embedding.startswith(kinds):
            raise ValueError("it is model:a, model:b, gensim:FILE, sentence-transformers:FOLDER, or null")
        return embedding

"""Settings of what features stand for: concepts, subspaces, features without a concept, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, TypeAdapter, ValidationError, field_validator, model_validator

from pipeline.settings.base import Flag, Number, Section, known, reason
from pipeline.settings.compare import Metric, Null
from pipeline.settings.registries import METHODS, NULLS
from storage.errors import InputError

Approach = Literal["global", "within"]
Sides = Literal["both", "either"]
Geometry = Literal["joint", "a", "b"]
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

#: What nulls draw from that subspaces do not have, by its name in :data:`pipeline.compare.nulls.Source`.
NOT_OF_SUBSETS = {"control": "a control store", "words": "the words of all pairs", "blocks": "blocks of text"}
Count = Annotated[int, Number, Field(ge=1)]


class CountRule(Section):
    """A feature belongs to a concept if `at_least` of its `of` top contexts stand at a keyword."""

    name: Literal["count"] = "count"
    at_least: PositiveInt = 2
    of: PositiveInt = Field(5, description="Number of top contexts that are examined.")

    @model_validator(mode="after")
    def _can_be_met(self) -> CountRule:
        if self.at_least > self.of:
            raise ValueError(f"at least {self.at_least} of {self.of} contexts can never be")
        return self


class ShareRule(Section):
    """A feature belongs to a concept if keywords have `at_least` this share of the activation in its top contexts."""

    name: Literal["share"] = "share"
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.5
    of: PositiveInt = Field(8, description="Number of top contexts that are examined.")


class PmiRule(Section):
    """A feature belongs to a concept if it fires on the concept's rows 2**`at_least` times as often as by chance."""

    name: Literal["pmi"] = "pmi"
    at_least: float = Field(3.0, description="Pointwise mutual information, in bits.")
    min_count: PositiveInt = Field(5, description="Rows of the concept on which the feature must fire.")


class ProbeRule(Section):
    """The features that a sparse linear probe weighs most when it tells the concept's rows from others."""

    name: Literal["probe"] = "probe"
    features: PositiveInt = Field(20, description="Maximum number of features per concept.")
    rows: Annotated[int, Field(ge=100)] = Field(20_000, description="Rows without a keyword in the sample.")
    rows_of_concept: Annotated[int, Field(ge=10)] = Field(
        2_000, description="Maximum number of rows per concept in the sample."
    )
    strength: Annotated[float, Field(gt=0)] = Field(1.0, description="C of the logistic regression with an L1 penalty.")
    seed: int = 0


AnyRule = Annotated[CountRule | ShareRule | PmiRule | ProbeRule, Field(discriminator="name")]


def parse_rule(text: str) -> AnyRule:
    """Return the rule that an option names.

    >>> parse_rule("count:at_least=3:of=8").of
    8
    """
    name, *pairs = text.split(":")
    settings = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    try:
        rule: AnyRule = TypeAdapter(AnyRule).validate_python({"name": name, **settings})
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))}: {reason(item)}" for item in error.errors())
        raise InputError(f"{text!r} is not a rule ({reasons}); give it as count:at_least=2:of=5") from error
    return rule


Rule = Annotated[AnyRule, Flag(metavar="NAME[:KEY=VALUE]", parse=parse_rule)]


class ConceptsSettings(Section):
    """Which concepts are looked for, and which features belong to them."""

    concepts: Annotated[str | list[str], Flag(metavar="FILE")] = Field(
        "default",
        description="One or more YAML files of concepts; `default` is the one shipped with the package. "
        "A group of a later file replaces the group of the same name in an earlier one.",
    )
    only: Annotated[list[str] | None, Flag(metavar="NAME")] = Field(
        None, description="Names of the concepts to keep; default: all."
    )
    inflections: bool | None = Field(
        None, description="Add plurals and verb forms to every keyword, or to none; default: as each group specifies."
    )
    rule: Rule = Field(
        CountRule(),
        description="When a feature belongs to a concept: count:at_least=2:of=5 (the default), share, pmi or probe.",
    )


class SubspaceSettings(Section):
    """How the subspaces of concepts are made and tested."""

    approaches: Annotated[list[Approach], Flag(name="--approach", metavar="NAME")] = Field(
        ["global", "within"],
        description="Pairs selected from the matching of the whole space (global), features paired "
        "within the concept (within), or both.",
    )
    sides: Sides = Field(
        "both",
        description="For the approach global: whether the features of both sides or of either side must "
        "belong to the concept.",
    )
    within: Annotated[str, known(METHODS.__getitem__), Flag(metavar="NAME")] = Field(
        "greedy", description="How features are paired within a concept: a method, as `match --help` lists them."
    )
    min_pairs: Annotated[int, Number, Field(ge=3)] = Field(
        10, description="Minimum number of pairs for a subspace to be tested."
    )
    metrics: Annotated[list[Metric], Flag(name="--metric", metavar="NAME[:OPTIONS]")] = Field(
        ["svcca:k=4", "rsa", "svcca_pc1", "svcca"], description="Metrics, as in the comparison of whole spaces."
    )
    nulls: Annotated[list[Null], Flag(name="--null", metavar="NAME")] = Field(
        ["shuffled", "random_features", "random_pairs", "random_keywords"],
        description="Null models, as listed by `compare --help`, and random_keywords: as many pairs of "
        "random lists of words, in clumps of the same sizes.",
    )
    null_runs: Count = Field(1000, description="Runs of each null.")
    seed: Annotated[int, Number, Field(ge=0)] = Field(0, description="Seed of the nulls and of the clusters.")
    clusters: Annotated[int, Number, Field(ge=0)] = Field(
        0, description="Number of clusters of pairs by decoder geometry, tested like concepts; 0: none."
    )
    geometry: Geometry = Field("joint", description="Whose decoder rows are clustered.")

    @model_validator(mode="after")
    def _something_to_test(self) -> SubspaceSettings:
        if len(set(self.approaches)) < len(self.approaches) or not (self.approaches or self.clusters):
            raise ValueError(f"approaches are some of global, within, each once; not {self.approaches}")
        return self

    @field_validator("nulls")
    @classmethod
    def _nulls_of_subsets(cls, nulls: list[Null]) -> list[Null]:
        for null in nulls:
            if NULLS[null].source in NOT_OF_SUBSETS:
                raise ValueError(f"{null} needs {NOT_OF_SUBSETS[NULLS[null].source]}, which subspaces do not have")
        return nulls


class SemanticsSettings(SubspaceSettings, ConceptsSettings):
    """Which concepts are looked for, and how their subspaces are tested."""

    judged: Annotated[list[Metric], Field(min_length=2, max_length=2)] = Field(
        ["svcca:k=4", "rsa"], description="The two metrics that must both exceed chance."
    )
    embedding: Annotated[str | None, Flag(metavar="SOURCE", parse=lambda text: None if text == "none" else text)] = (
        Field(
            "model:b",
            description="Word vectors for the coherence: model:a or model:b (input embeddings), gensim:FILE, "
            "sentence-transformers:FOLDER, or none (null in YAML).",
        )
    )

    @model_validator(mode="after")
    def _judged_are_scored(self) -> SemanticsSettings:
        if missing := [metric for metric in self.judged if metric not in self.metrics]:
            raise ValueError(f"judged names {missing[0]!r}, which is not among the metrics {self.metrics}")
        return self

    @field_validator("embedding")
    @classmethod
    def _known_source(cls, embedding: str | None) -> str | None:
        kinds = ("model:a", "model:b", "gensim:", "sentence-transformers:", "model:")
        if embedding is not None and not embedding.startswith(kinds):
            raise ValueError("it is model:a, model:b, gensim:FILE, sentence-transformers:FOLDER, or null")
        return embedding


def _limits(given: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """Return the limits of all kinds, where some are given, as a mapping or as texts KIND=SHARE."""
    if not isinstance(given, Mapping):
        given = dict(text.partition("=")[::2] for text in given)
    return {**NON_CONCEPT_LIMITS, **given}


class NonConceptSettings(Section):
    """Which features count as without a concept."""

    kinds: Annotated[list[NonConceptKind], Flag(name="--kind", metavar="KIND", choices=lambda: NON_CONCEPT_LIMITS)] = (
        Field(
            ["blank", "punctuation", "beginning", "position", "frequent"],
            description="Kinds of features without a concept; the first kind that applies to a feature is its reason.",
        )
    )
    limits: Annotated[
        dict[NonConceptKind, Annotated[float, Number, Field(gt=0, le=1)]],
        BeforeValidator(_limits),
        Flag(name="--limit", metavar="KIND=SHARE"),
    ] = Field(
        dict(NON_CONCEPT_LIMITS),
        description="Minimum share for a feature to be of a kind, above 0 and at most 1; default: "
        + ", ".join(f"{kind}={share:g}" for kind, share in NON_CONCEPT_LIMITS.items())
        + ".",
    )


class LabelSettings(Section):
    """Which language model labels features, and how it is asked."""

    url: Annotated[str, Flag(name="--endpoint", metavar="URL")] = Field(
        description="Base address of the endpoint, such as https://HOST/v1."
    )
    model: str = Field(description="Name of the model at the endpoint.")
    key_variable: Annotated[str, Flag(metavar="NAME")] = Field(
        "OPENAI_API_KEY", description="Environment variable with the API key; if it is not set, no key is sent."
    )
    texts: Count = Field(5, description="Top contexts sent per feature.")
    batch: Count = Field(8, description="Features per request.")
    parallel: Count = Field(4, description="Parallel requests.")

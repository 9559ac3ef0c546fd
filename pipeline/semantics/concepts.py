"""Concepts: named groups of keywords, read from YAML.

The package brings a file of its own (``concepts.yaml``, which also explains the format). Users name files beside it or
instead of it; the later file wins where two have a group of the same name, unless the group says ``extend: true``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from pipeline.settings.base import reason
from pipeline.settings.semantics import ConceptsSettings
from storage.errors import FormatError, InputError, shown
from storage.yaml_files import read_yaml

logger = logging.getLogger(__name__)

DEFAULT = "default"
DEFAULT_FILE = Path(__file__).with_name("concepts.yaml")

Inflection = Literal["plural", "verb"]


@dataclass(frozen=True)
class Concept:
    """A named group of keywords.

    Attributes
    ----------
    name
        Its name.
    keywords
        Words, or several words in a row, that match whatever their case; inflected forms are among them.
    exact_case
        Keywords that match only as they are written.
    patterns
        Regular expressions that a whole word must match.
    """

    name: str
    keywords: tuple[str, ...]
    exact_case: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class _Group(BaseModel):
    """One group as a file gives it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keywords: list[str] = []
    exact_case: list[str] = []
    patterns: list[str] = []
    inflections: list[Inflection] = []
    extend: bool = False

    @field_validator("keywords", "exact_case")
    @classmethod
    def _are_words(cls, keywords: list[str]) -> list[str]:
        for keyword in keywords:
            if not any(map(str.isalnum, keyword)):
                raise ValueError(f"{keyword!r} has no letter or digit; a keyword is made of words")
        return keywords

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _not_empty(self) -> _Group:
        if not (self.keywords or self.exact_case or self.patterns):
            raise ValueError("it has neither keywords nor exact_case nor patterns")
        return self


def load_concepts(
    source: str | Path | Sequence[str | Path] = DEFAULT,
    *,
    only: Iterable[str] | None = None,
    inflections: bool | None = None,
) -> dict[str, Concept]:
    """Read concepts from one or several files.

    Parameters
    ----------
    source
        ``"default"`` for those that come with the package, the path of a YAML file, or several of these in order: a
        group in a later file replaces the one of the same name, or adds to it if it says ``extend: true``.
    only
        Names of the concepts to keep; all by default.
    inflections
        True adds plurals and verb forms to the keywords of every group, False to those of none; by default each group
        has those that its file asks for.

    Returns
    -------
    dict
        :class:`Concept` by name, in the order of the files.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it is no mapping of groups, or a key or value is wrong; the message names each.
    InputError
        If `only` names a concept that is not there, or no concept is left.

    Examples
    --------
    >>> concepts = load_concepts()
    >>> len(concepts) > 20, "wolves" in concepts["animals"].keywords
    (True, True)
    >>> list(load_concepts(only=["months", "kinship"]))
    ['months', 'kinship']
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    groups: dict[str, list[_Group]] = {}
    for listed in sources:
        for name, group in _read(DEFAULT_FILE if str(listed) == DEFAULT else Path(listed)).items():
            groups[name] = [*groups.get(name, []), group] if group.extend else [group]
    if only is not None:
        groups = _chosen(groups, list(only))  # before keywords are inflected, which takes a second for all
    if not groups:
        raise InputError(f"There is no concept in {sources}; name at least one group of keywords")
    return {
        name: reduce(_joined, (_concept(name, group, inflections) for group in several))
        for name, several in groups.items()
    }


def chosen_concepts(settings: ConceptsSettings) -> dict[str, Concept]:
    """Return the concepts that settings ask for."""
    return load_concepts(settings.concepts, only=settings.only, inflections=settings.inflections)


def _read(file: Path) -> dict[str, _Group]:
    content = read_yaml(file, f"There is no file of concepts at {file}; copy {DEFAULT_FILE} and edit it")
    if not isinstance(content, dict):
        raise FormatError(f"{file} must map names of concepts to keywords, not be {type(content).__name__}")
    groups, wrong = {}, []
    for name, given in content.items():
        try:
            groups[str(name)] = _Group.model_validate({"keywords": given} if isinstance(given, list) else given)
        except ValidationError as error:
            wrong += [_line(name, item) for item in error.errors()]
    if wrong:
        raise FormatError(f"{file}:\n" + "\n".join(wrong))
    return groups


def _line(name: Any, item: Any) -> str:
    where = ".".join(map(str, (name, *item["loc"])))
    return f"  {where}: {reason(item)} (given: {shown(item['input'])})"


def _concept(name: str, group: _Group, inflections: bool | None) -> Concept:
    kinds: Sequence[Inflection] = group.inflections
    if inflections is not None:
        kinds = ("plural", "verb") if inflections else ()
    forms = [form for keyword in group.keywords for form in (keyword, *inflect(keyword, kinds))]
    return Concept(name, _distinct(forms), _distinct(group.exact_case), _distinct(group.patterns))


def _joined(first: Concept, second: Concept) -> Concept:
    return replace(
        first,
        keywords=_distinct(first.keywords + second.keywords),
        exact_case=_distinct(first.exact_case + second.exact_case),
        patterns=_distinct(first.patterns + second.patterns),
    )


def _distinct(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _chosen(groups: Mapping[str, list[_Group]], names: list[str]) -> dict[str, list[_Group]]:
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise InputError(f"There are no concepts {unknown}; those that were read: {', '.join(groups)}")
    return {name: groups[name] for name in names}


def inflect(keyword: str, kinds: Sequence[Inflection] = ("plural", "verb")) -> list[str]:
    """Return inflected forms of an English word, or of the last word of several.

    Plurals come from the library ``inflect``, which knows the irregular ones (man, wolf, mother-in-law). Verbs get the
    regular -s, -ed and -ing by the rules of spelling; irregular past forms are few, and stand in the files as keywords.
    A stemmer would do neither: it takes "universe" and "university" for one word.

    Examples
    --------
    >>> inflect("wolf", ["plural"]), inflect("prime minister", ["plural"]), inflect("stop", ["verb"])
    (['wolves'], ['prime ministers'], ['stops', 'stopped', 'stopping'])
    """
    forms = []
    if "plural" in kinds:
        forms.append(_plural(keyword))
    if "verb" in kinds:
        *first, verb = keyword.rsplit(" ", 1)
        forms += [" ".join((*first, form)) for form in verb_forms(verb)]
    return [form for form in forms if form != keyword]


@cache
def _engine() -> Any:
    try:
        import inflect as library  # noqa: PLC0415 - takes a second to import
    except SystemError as error:
        # CPython before 3.11.5: its parser's count of depth goes wrong where two threads parse at once (gh-106905),
        # and this library is parsed once more as it is imported
        logger.info("Importing inflect once more (%s)", error)
        import inflect as library  # noqa: PLC0415

    return library.engine()


def _plural(keyword: str) -> str:
    return str(_engine().plural_noun(keyword))


def verb_forms(verb: str) -> tuple[str, str, str]:
    """Return the regular forms of an English verb in -s, -ed and -ing.

    A final e goes before -ed and -ing, y after a consonant becomes i, a single final consonant after a single vowel is
    doubled in words of one syllable.

    Examples
    --------
    >>> verb_forms("bake"), verb_forms("carry"), verb_forms("rain")
    (('bakes', 'baked', 'baking'), ('carries', 'carried', 'carrying'), ('rains', 'rained', 'raining'))
    >>> verb_forms("die"), verb_forms("see")[2], verb_forms("open")[1]
    (('dies', 'died', 'dying'), 'seeing', 'opened')
    """
    doubled = verb + verb[-1] if re.fullmatch(r"[^aeiou]*(qu)?[aeiou][^aeiouwxy]", verb) else verb
    third = verb + ("es" if re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", verb) else "s")
    if verb.endswith("ie"):
        return third, f"{verb}d", f"{verb[:-2]}ying"
    if verb.endswith("e"):
        return third, f"{verb}d", f"{verb if verb.endswith(('ee', 'oe', 'ye')) else verb[:-1]}ing"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ies", f"{verb[:-1]}ied", f"{verb}ing"
    return third, f"{doubled}ed", f"{doubled}ing"


def concepts_hash(concepts: Mapping[str, Concept]) -> str:
    """Return a SHA-256 of all that concepts say, for manifests.

    >>> concepts_hash({"pets": Concept("pets", ("cat",))})[:8]
    '52417ea3'
    """
    content = json.dumps([asdict(concept) for concept in concepts.values()], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()

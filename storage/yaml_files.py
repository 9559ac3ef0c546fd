"""YAML files that people write: read, or refused with the file's name.

A small file can ask for a lot: an alias of aliases stands for billions of nodes, and brackets nest without end. Both
are counted while the file is parsed, before anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from storage.bounds import check_file
from storage.damage import cause_of
from storage.errors import FormatError

#: What no file of settings or words comes near.
LARGEST_FILE = 4 * 10**6
DEEPEST = 50
MOST_NODES = 500_000

#: Whole numbers have no more bits than this: what a setting is compared or divided with is a float at times.
MOST_BITS = 64

# libyaml where it is there: ten times as fast
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):
    """A safe loader without endless integers."""

    def construct_yaml_int(self, node: Any) -> int:
        number = int(super().construct_yaml_int(node))
        if number.bit_length() > MOST_BITS:
            raise ValueError(f"a whole number of {number.bit_length():,} bits, line {node.start_mark.line + 1}")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
#: What PyYAML's constructors raise on values such as ``!!bool 7``, ``2024-99-99``, or a number of 5,000 digits.
_WRONG_VALUES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


def read_yaml(file: Path, missing: str) -> Any:
    """Return what a YAML file holds; `missing` is what to say where there is none.

    FormatError if it is not YAML in UTF-8, or nests or repeats beyond reason.
    """
    check_file(file, missing, LARGEST_FILE)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as such") from (
            error
        )
    return parse_yaml(text, str(file))


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text holds; messages say that it comes from `where`.

    >>> parse_yaml("n: [1, 2]", "a.yaml")
    {'n': [1, 2]}
    >>> parse_yaml("[" * 99, "a.yaml")
    Traceback (most recent call last):
    storage.errors.FormatError: a.yaml nests deeper than 50 levels (line 1); no file of settings does
    """
    try:
        _count(text, where)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise FormatError(f"{where} is not valid YAML: {error}") from error
    except FormatError:
        raise
    except _WRONG_VALUES as error:
        raise FormatError(f"{where} is not valid YAML: a value cannot be read ({cause_of(error)})") from error


def _count(text: str, where: str) -> None:
    """Refuse a text that nests too deep, or whose aliases stand for too many nodes."""
    open_counts = [0]  # nodes of each collection that is open, and of the whole text
    open_anchors: list[str | None] = []
    sizes: dict[str | None, int] = {}
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.CollectionStartEvent():
                open_counts.append(1)
                open_anchors.append(event.anchor)
            case yaml.CollectionEndEvent():
                sizes[open_anchors.pop()] = size = open_counts.pop()
                open_counts[-1] += size
            case yaml.ScalarEvent():
                sizes[event.anchor] = 1
                open_counts[-1] += 1
            case yaml.AliasEvent() if event.anchor in open_anchors:
                raise FormatError(f"{where} has an alias *{event.anchor} inside of what it stands for; write it out")
            case yaml.AliasEvent():
                open_counts[-1] += sizes.get(event.anchor, 1)
        _check_counts(where, event.start_mark.line + 1 if event.start_mark else 0, len(open_anchors), open_counts[-1])


def _check_counts(where: str, line: int, depth: int, nodes: int) -> None:
    if depth > DEEPEST:
        raise FormatError(f"{where} nests deeper than {DEEPEST} levels (line {line}); no file of settings does")
    if nodes > MOST_NODES:
        raise FormatError(
            f"{where} stands for more than {MOST_NODES:,} values (line {line}): aliases repeat what repeats; write out "
            "what is meant"
        )

"""The demo's text: Lee news and an extract of Wikipedia, both part of the gensim wheel.

The Lee corpus is 348 news items, one a line. The extract holds about a hundred articles in wiki markup; gensim's own
filter takes most of it away, and what it leaves is cleaned here. Each section of an article is one document, and names
its article: sections of one article are not independent. A fixed
tenth of the documents, chosen by a hash of their names, is kept out of the training of the demo's dictionaries: the
demo itself reads only these.
"""

from __future__ import annotations

import bz2
import hashlib
import html
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.errors import MissingDependencyError, MissingInputError

logger = logging.getLogger(__name__)

#: Sections shorter than this many characters say too little to be a document.
MIN_CHARACTERS = 200

#: Of so many documents, one is held out.
HELD_OUT_ONE_IN = 10

_NEWS = ("lee_background.cor", "lee.cor")
_WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1\s*$", re.MULTILINE)
_EMPHASIS = re.compile(r"'{2,}")
_LIST_MARK = re.compile(r"^[*#:;]+\s*")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;:]*\s*\)")
_BLANKS = re.compile(r"[ \t\u00a0]+")
_MARKUP = re.compile(r"[{}|\[\]]|\b(?:thumb|align|style|colspan|cellpadding)\b\s*[=|]|https?://|__\w+__")

#: Sections that are lists of links or titles.
_NOT_PROSE = {
    "bibliography", "external links", "footnotes", "further reading", "gallery", "notes", "references",
    "see also", "sources", "works cited", "citations", "notes and references", "discography", "filmography",
}  # fmt: skip


class Document(NamedTuple):
    """A named text, and the article that it is a section of."""

    name: str
    text: str
    article: str


def documents() -> Iterator[Document]:
    """Yield all documents, always in the same order."""
    folder = _data_folder()
    yield from _news(folder)
    yield from _articles(folder / _WIKIPEDIA)


def held_out(name: str) -> bool:
    """Return whether a document is kept out of training: by a hash of its name, so that it never depends on order.

    >>> [name for name in ("Anarchism", "Autism", "Albedo", "Aruba", "Achilles: Birth") if held_out(name)]
    ['Autism']
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def text(*, held: bool = True) -> str:
    """Return the documents that the demo reads, or those that its dictionaries are trained on, as JSON lines."""
    chosen = [document for document in documents() if held_out(document.name) == held]
    logger.info("Text: %d documents, %d characters", len(chosen), sum(len(document.text) for document in chosen))
    return "".join(json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in chosen)


def _data_folder() -> Path:
    """Return the folder of gensim's sample data, without importing gensim."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "The demo's text comes with gensim: pip install 'semantic-subspace-matching[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "test" / "test_data"
    missing = [name for name in (*_NEWS, _WIKIPEDIA) if not (folder / name).is_file()]
    if missing:
        raise MissingInputError(f"The installed gensim has no {', '.join(missing)} in {folder}; gensim 4.4 has")
    return folder


def _news(folder: Path) -> Iterator[Document]:
    for name in _NEWS:
        for number, line in enumerate((folder / name).read_text(encoding="iso-8859-1").splitlines()):
            if len(line) >= MIN_CHARACTERS:
                yield Document(f"{name}:{number}", line.strip(), f"{name}:{number}")


def _articles(path: Path) -> Iterator[Document]:
    """Yield the sections of the Wikipedia extract that are prose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(path) as file:
        for title, markup, _ in extract_pages(file, filter_namespaces=("0",)):
            if not markup.lstrip().lower().startswith("#redirect"):
                yield from sections(title, filter_wiki(markup))


def sections(title: str, article: str) -> Iterator[Document]:
    r"""Split an article at its headings and yield the sections that are prose.

    Examples
    --------
    >>> text = "Intro. " * 40 + "\n== History ==\n" + "It was. " * 30 + "\n== See also ==\n" + "* Other\n" * 90
    >>> [document.name for document in sections("Thing", text)]
    ['Thing', 'Thing: History']
    """
    pieces = _HEADING.split(article)
    headings = ["", *pieces[2::3]]
    for number, (heading, body) in enumerate(zip(headings, pieces[::3], strict=True)):
        text = clean(body)
        if heading.lower() not in _NOT_PROSE and len(text) >= MIN_CHARACTERS:
            repeated = heading in headings[:number]
            name = ": ".join(filter(None, (title, heading))) + (f" #{number}" if repeated else "")
            yield Document(name, text, title)


def clean(body: str) -> str:
    r"""Return a section's prose: one paragraph a line, without list marks, emphasis and lines that are still markup.

    >>> clean("'''Bold''' words &amp; more ( ; ).\n* {{cite}}\n\n: indented")
    'Bold words & more .\nindented'
    """
    lines = (_clean_line(line) for line in html.unescape(body).splitlines())
    return "\n".join(line for line in lines if line and not _MARKUP.search(line))


def _clean_line(line: str) -> str:
    line = _EMPTY_BRACKETS.sub("", _EMPHASIS.sub("", _LIST_MARK.sub("", line.strip())))
    return _BLANKS.sub(" ", line).strip()

"""How pages are made: templates that escape every text, and the scripts that a page's policy lets run."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.report.tables import short_name
from pipeline.report.verdict import gigabytes, metric_name, null_name, number, p_number
from pipeline.report.vocabulary import quantity_name
from pipeline.report.yardsticks import numbered_notes

HERE = Path(__file__).parent
TEMPLATES = HERE / "templates"
#: The explorer's scripts: the libraries that it is built on, and itself.
SCRIPTS = (HERE / "vendor" / "libraries.js", TEMPLATES / "explorer.js")


def environment() -> jinja2.Environment:
    """Return the templates with the filters that they use; every text is escaped, an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "p": p_number, "metric": metric_name, "null": null_name, "short": short_name}
    made.filters |= {"gigabytes": gigabytes, "quantity": quantity_name, "numbered_notes": numbered_notes}
    # every copy of the libraries in the explorer's scripts has to bring their licences along
    made.globals["licences"] = (HERE / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    return made


@functools.lru_cache(maxsize=1)
def explorer_scripts() -> tuple[Markup, ...]:
    """Return the explorer's scripts as they stand in a page.

    Raises
    ------
    ValueError
        If one could end its own element.
    """
    texts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    for path, text in zip(SCRIPTS, texts, strict=True):
        if "</script" in text.lower() or "<!--" in text:
            raise ValueError(f"{path} holds a sequence that would end or comment out its own element in a page")
    # our own files, not data: they are the only scripts that the policy knows
    return tuple(Markup(text) for text in texts)  # noqa: S704


def content_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy: no connection, no plug-in, no frame, and these scripts alone, as in the page.

    >>> content_policy([])
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    """
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "base-uri 'none'", "form-action 'none'"]
    if scripts:
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
        rules.insert(1, "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    return "; ".join(rules)

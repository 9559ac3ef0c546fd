"""Where a dictionary's features are shown on Neuronpedia: a link for people to follow, never a request."""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from pathlib import Path

import yaml

logger = logging.getLogger(__name__)

SITE = "https://www.neuronpedia.org"
#: SAELens's list of releases, inside its package.
LIST = "pretrained_saes.yaml"


def feature_page(dictionary: str) -> str | None:
    """Return the address of a dictionary's features, without the number of the feature, or None.

    `dictionary` is ``release/sae_id`` of SAELens's list; the address is such as
    ``https://www.neuronpedia.org/gpt2-small/6-res-jb``. None where the dictionary is not of that list, Neuronpedia does
    not have it, or SAELens is not installed.

    >>> feature_page("my/own/folder") is None
    True
    """
    release, _, sae_id = dictionary.partition("/")
    page = _listed(release).get(sae_id)
    return f"{SITE}/{page}" if page and re.fullmatch(r"[\w.-]+/[\w.-]+", page) else None


@functools.lru_cache(maxsize=8)
def _listed(release: str) -> dict[str, str]:
    """Return Neuronpedia's id by dictionary of one release; the part of the list about it is all that is parsed."""
    spec = importlib.util.find_spec("sae_lens")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [Path(place) / LIST for place in places]
    text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")
    start = re.search(rf"^{re.escape(release)}:\s*$", text, flags=re.MULTILINE) if release else None
    if start is None:
        return {}
    end = re.search(r"^\S", text[start.end() :], flags=re.MULTILINE)
    part = text[start.start() : start.end() + end.start()] if end else text[start.start() :]
    try:
        saes = yaml.safe_load(part)[release]["saes"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        logger.warning("SAELens's list of releases is laid out in a new way (%r): no links to Neuronpedia", error)
        return {}
    return {sae["id"]: sae["neuronpedia"] for sae in saes if sae.get("neuronpedia")}

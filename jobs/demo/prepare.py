"""Lay out the demo: text, models, dictionaries and the experiment file, from installed packages alone.

Nothing is downloaded. The one slow step, dequantising SmolLM2, is done once for each user and kept in a cache.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from string import Template

from jobs.demo.models import MINILM, SMOLLM2
from jobs.demo.text import documents, held_out
from jobs.demo.train_dictionaries import MAX_LENGTH
from pipeline.harvest.gguf import converted
from pipeline.settings.experiment import load_experiment
from storage.errors import MissingInputError
from storage.files import write_text

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent


def prepare(folder: str | Path) -> Path:
    """Write the demo's text and experiment file, and see to its models.

    Parameters
    ----------
    folder
        Where ``text.jsonl`` and ``experiment.yaml`` go; made if it is not there.

    Returns
    -------
    Path
        The experiment file, validated.

    Raises
    ------
    MissingDependencyError
        If a package that carries text or weights is not installed.
    MissingInputError
        If a dictionary is missing from this installation.
    InputError
        If weights are other ones than the dictionaries were trained on.
    """
    folder = Path(folder)
    smollm2, minilm = SMOLLM2.path(), MINILM.path()
    dictionaries = _HERE / "dictionaries"
    missing = [site for site in SMOLLM2.sites + MINILM.sites if not (dictionaries / site / "cfg.json").is_file()]
    if missing:
        raise MissingInputError(f"No dictionary for {', '.join(missing)} in {dictionaries}: reinstall the package")
    converted(smollm2)
    _write(folder / "text.jsonl", text())
    _write(
        folder / "experiment.yaml",
        Template((_HERE / "experiment.yaml").read_text(encoding="utf-8")).substitute(
            max_length=MAX_LENGTH,
            # JSON strings and lists are YAML, whatever a path contains
            smollm2=json.dumps(str(smollm2)),
            minilm=json.dumps(str(minilm)),
            dictionaries=json.dumps(str(dictionaries)),
            sites_a=json.dumps(SMOLLM2.sites),
            sites_b=json.dumps(MINILM.sites),
        ),
    )
    load_experiment(folder / "experiment.yaml")
    return folder / "experiment.yaml"


def text() -> str:
    """Return the demo's documents as JSON lines: those that the dictionaries were not trained on."""
    chosen = [document for document in documents() if held_out(document.name)]
    logger.info("Text: %d documents, %d characters", len(chosen), sum(len(document.text) for document in chosen))
    return "".join(json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in chosen)


def _write(path: Path, content: str) -> None:
    """Write a file whole or not at all; an unchanged one keeps its time."""
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    write_text(path, content)

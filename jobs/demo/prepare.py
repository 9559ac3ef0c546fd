"""Lay out the demo: text, models, dictionaries and the experiment file, from installed packages alone.

Nothing is downloaded. The one slow step, dequantising SmolLM2, is done once for each user and kept in a cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

from jobs.demo.models import MAX_LENGTH, MINILM, SMOLLM2
from jobs.demo.text import text
from pipeline.harvest.gguf import converted
from pipeline.settings.experiment import load_experiment
from storage.errors import MissingInputError
from storage.files import write_text

_HERE = Path(__file__).parent


def prepare(folder: str | Path, yardsticks: list[dict[str, Any]] | None = None) -> Path:
    """Write the demo's text and experiment file to a folder, see to its models, and return the experiment file.

    With `yardsticks`, as :func:`jobs.demo.yardsticks.demo_yardsticks` returns them, it asks for these too.
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
        )
        + ("" if yardsticks is None else f"yardsticks:\n  use: {json.dumps(yardsticks)}\n"),
    )
    load_experiment(folder / "experiment.yaml")
    return folder / "experiment.yaml"


def _write(path: Path, content: str) -> None:
    """Write a file whole or not at all; an unchanged one keeps its time."""
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    write_text(path, content)

"""Dictionaries for the demo's yardsticks, trained here once and kept in the user's cache; nothing is downloaded.

They are trained like the demo's own (:mod:`jobs.demo.train_dictionaries`), with another seed: as those are, with a
decoder that stays random, and on models with random weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.demo.models import MINILM, SMOLLM2, PackagedModel
from jobs.demo.train_dictionaries import Recipe, fit, harvest_raw, read_rows, save
from pipeline.harvest.gguf import cache_folder
from storage.files import remove_folder
from storage.locks import lock

logger = logging.getLogger(__name__)

#: Fewer documents than the demo's own dictionaries were trained on: reading them is most of the time.
RECIPE = Recipe(documents=450)


@dataclass(frozen=True)
class Training:
    """What a yardstick's dictionaries are trained with: a seed, a decoder that stays random, a model's random weights.

    `randomise` is the seed of the weights; None for the model itself.
    """

    seed: int = 1
    frozen: bool = False
    randomise: int | None = None


#: By the yardstick that they are for.
TRAININGS = {
    "other_dictionary": Training(),
    "frozen_decoder": Training(frozen=True),
    "random_model": Training(randomise=0),
}


def demo_yardsticks(recipe: Recipe = RECIPE) -> list[dict[str, Any]]:
    """Return the demo's yardsticks as an experiment names them, after training what the cache does not have.

    On two cores that takes about half an hour, once: reading 450 documents with two models, and then again with random
    weights, and twelve dictionaries.
    """
    folder = cache_folder() / f"demo-yardsticks-{_digest(recipe)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        for randomise in dict.fromkeys(training.randomise for training in TRAININGS.values()):
            _train(folder, recipe, randomise)
    given = [
        {
            "name": name,
            **{side: str(folder / name / "{site}") for side in "ab"},
            **({} if training.randomise is None else {"seed": training.randomise}),
        }
        for name, training in TRAININGS.items()
    ]
    return [*({"name": name} for name in ("token", "document", "random_directions")), *given, {"name": "other_windows"}]


def _digest(recipe: Recipe) -> str:
    """Return a hash of all that the dictionaries depend on."""
    parts = {
        "recipe": recipe.model_dump(),
        "trainings": {name: asdict(training) for name, training in TRAININGS.items()},
        "models": [SMOLLM2.sha256, MINILM.sha256],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _train(folder: Path, recipe: Recipe, randomise: int | None) -> None:
    """Train the dictionaries of one set of weights that are not there, two at a time."""
    todo = [
        (name, site, model)
        for name, training in TRAININGS.items()
        if training.randomise == randomise
        for model in (SMOLLM2, MINILM)
        for site in model.sites
        if not (folder / name / site / "cfg.json").is_file()
    ]
    if not todo:
        return
    logger.info("Training %d dictionaries for %s", len(todo), ", ".join(dict.fromkeys(name for name, _, _ in todo)))
    raw = folder / f"raw-{randomise}"
    stores = harvest_raw(raw, recipe, held_out=False, randomise=randomise)["train"]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(_train_site, folder / name / site, stores[site], model, recipe, TRAININGS[name])
            for name, site, model in todo
        ]
        for (name, site, _), future in zip(todo, futures, strict=True):
            future.result()
            logger.info("Trained %s at %s", name, site)
    remove_folder(raw)


def _train_site(out: Path, store: Path, model: PackagedModel, recipe: Recipe, training: Training) -> None:
    import torch

    torch.set_num_threads(1)
    seeded = recipe.model_copy(update={"seed": training.seed})
    out.parent.mkdir(parents=True, exist_ok=True)
    save(fit(read_rows(store), seeded, frozen=training.frozen), out, out.name, model)

"""Train the demo's four dictionaries.

    python -m jobs.demo.train_dictionaries --work SCRATCH --out jobs/demo/dictionaries

Text that the demo does not read goes through both models with the identity dictionary (our own harvest: the raw
residual stream); sae-lens's own trainer fits a TopK dictionary to each site; each is judged on the held-out documents
and written in the layout of sae-lens, in float16, with what it reached in ``figures.json``: change the ``README.md`` of
the dictionaries with them. Everything is seeded; a harvest that is there already is not repeated.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import Field

from jobs.demo.models import MAX_LENGTH, MINILM, SMOLLM2, PackagedModel
from jobs.demo.text import text
from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import IDENTITY, load_dictionary
from pipeline.harvest.run import harvest, make_rows
from pipeline.harvest.site_check import variance_unexplained
from pipeline.settings.base import Section
from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from pipeline.work.options import options
from pipeline.work.script import run_script
from pipeline.work.workers import local_client
from storage import iter_shards, open_activations
from storage.files import write_text

logger = logging.getLogger(__name__)

#: Limits that a dictionary must keep.
MAX_FVU, MAX_DEAD = 0.25, 0.10

#: A feature that has not fired for so many steps is dead for the trainer's auxiliary loss.
DEAD_AFTER_STEPS = 100

#: Rows judged at once; bounds the memory of judging.
JUDGED_AT_ONCE = 8192

SIDES: tuple[Literal["a"], Literal["b"]] = ("a", "b")


class Recipe(Section):
    """How the dictionaries are trained."""

    n_features: int = Field(2048, description="Width.")
    k: int = Field(32, description="Active features a row.")
    documents: int = Field(1400, description="Training documents, drawn with the seed.")
    samples: int = Field(600_000, description="Rows that training sees, with repetition.")
    batch: int = Field(1024, description="Rows a step.")
    lr: float = Field(3e-3, description="Learning rate; it falls to a tenth over the last third.")
    seed: int = Field(0, description="Seed of the sample, the initial weights and the order of rows.")


def harvest_raw(
    work: Path, recipe: Recipe, *, held_out: bool = True, randomise: int | None = None
) -> dict[str, dict[str, Path]]:
    """Write the raw residual streams of the training and the held-out documents; return part → site → store.

    With `randomise`, those of the models with weights that are drawn anew with this seed.
    """
    models = {
        side: ModelSettings(
            model=str(packaged.path()), dictionary=IDENTITY, sites=list(packaged.sites), randomise=randomise
        )
        for side, packaged in zip(SIDES, (SMOLLM2, MINILM), strict=True)
    }
    parts: list[tuple[str, int | None]] = [("train", recipe.documents), *([("held-out", None)] if held_out else [])]
    stores: dict[str, dict[str, Path]] = {}
    with local_client() as client:
        for part, count in parts:
            folder = work / part
            write_text(folder / "text.jsonl", text(held=part == "held-out"))
            corpus = CorpusSettings(path=str(folder / "text.jsonl"), documents=count, seed=recipe.seed)
            build_corpus(corpus, folder / "corpus.zarr")
            make_rows(folder / "corpus.zarr", models["a"], models["b"], MAX_LENGTH, folder / "rows.zarr", client=client)
            stores[part] = {}
            for side in SIDES:
                stores[part] |= harvest(
                    folder / "corpus.zarr", folder / "rows.zarr", models[side], side,
                    StoreSettings(dtype="float16"), folder / side, client=client,
                )  # fmt: skip
    return stores


def read_rows(store: Path) -> NDArray[np.float16]:
    """Return a raw store's rows without its attention sinks, float16 (rows, d_model)."""
    sink = np.asarray(open_activations(store)["sink"].values, bool)
    parts = [np.asarray(part, np.float16)[~sink[rows]] for rows, part in iter_shards(store)]
    return np.concatenate(parts)


def fit(rows: NDArray[np.float16], recipe: Recipe, *, frozen: bool = False) -> Any:
    """Train one dictionary with sae-lens's own trainer on raw activations (rows, d_model).

    The scale of its input is folded into the weights of the ``TopKTrainingSAE``: it reads raw activations. With
    `frozen`, the decoder stays as it was drawn.
    """
    import torch
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    torch.manual_seed(recipe.seed)
    steps = recipe.samples // recipe.batch
    d_model = rows.shape[1]
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_model, d_sae=recipe.n_features, k=recipe.k, normalize_activations="expected_average_only_in"
        )
    )
    sae.W_dec.requires_grad_(not frozen)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr=recipe.lr,
            lr_end=recipe.lr / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 3,
            dead_feature_window=DEAD_AFTER_STEPS,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=_batches(rows, recipe),
    )
    # The trainer would estimate the scale itself, but the bias has to start at the mean in the scaled space: at the
    # steps' size it would take most of the training to get there.
    sample = rows[: 1 << 15].astype(np.float32)
    scale = float(np.sqrt(d_model) / np.linalg.norm(sample, axis=1).mean())
    trainer.activation_scaler.scaling_factor = scale
    sae.b_dec.data = torch.from_numpy(sample.mean(axis=0) * scale)
    return trainer.fit()


def _batches(rows: NDArray[np.float16], recipe: Recipe) -> Iterator[Any]:
    """Yield float32 batches without end: every row once in a random order, then again in another."""
    import torch

    generator = np.random.default_rng(recipe.seed)
    while True:
        order = generator.permutation(len(rows))
        for i in range(0, len(order) - recipe.batch + 1, recipe.batch):
            yield torch.from_numpy(rows[np.sort(order[i : i + recipe.batch])].astype(np.float32))


def save(sae: Any, folder: Path, site: str, model: PackagedModel) -> None:
    """Write a trained dictionary as an inference dictionary of sae-lens, in float16, whole or not at all."""
    from safetensors.torch import load_file, save_file

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    sae.save_inference_model(partial)
    weights = partial / "sae_weights.safetensors"
    save_file({name: value.half().contiguous() for name, value in load_file(weights).items()}, weights)
    weights.chmod(0o644)  # safetensors makes files that only their owner can read
    config = json.loads((partial / "cfg.json").read_text(encoding="utf-8"))
    config["dtype"] = "float16"
    config["device"] = "cpu"
    config["metadata"] |= {
        "model_name": model.name, "hook_name": site, "context_size": MAX_LENGTH, "prepend_bos": model == SMOLLM2,
    }  # fmt: skip
    (partial / "cfg.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def judge(folder: Path, rows: NDArray[np.float16]) -> dict[str, float]:
    """Return what a dictionary reaches as written on raw rows (rows, d_model) that training has not seen.

    These are FVU, L0, and the share of features that never fire.
    """
    dictionary = load_dictionary(str(folder), rows.shape[1])
    fired = np.zeros(dictionary.n_features, np.int64)
    exact = rows.astype(np.float32)
    error = np.empty_like(exact)
    for i in range(0, len(exact), JUDGED_AT_ONCE):
        block = exact[i : i + JUDGED_AT_ONCE]
        encoded = dictionary.encode(block)
        fired += np.bincount(encoded.indices, minlength=dictionary.n_features)
        error[i : i + JUDGED_AT_ONCE] = block - dictionary.reconstruct(block)
    return {
        "fvu": variance_unexplained(exact, error),
        "l0": float(fired.sum() / len(exact)),
        "dead": float((fired == 0).mean()),
        "rows": len(exact),
    }


def train_site(
    site: str, stores: dict[str, dict[str, Path]], out: Path, model: PackagedModel, recipe: Recipe
) -> dict[str, Any]:
    """Train, write and judge the dictionary of one site; return its figures."""
    import torch

    # One thread each: two dictionaries are trained at once, and sums keep one order.
    torch.set_num_threads(1)
    rows = read_rows(stores["train"][site])
    start = time.monotonic()
    sae = fit(rows, recipe)
    seconds = time.monotonic() - start
    folder = out / site
    save(sae, folder, site, model)
    figures = {
        "site": site, "model": model.name, "d_model": rows.shape[1], "training_rows": len(rows),
        "seconds": seconds, **judge(folder, read_rows(stores["held-out"][site])),
    }  # fmt: skip
    logger.info("%s", figures)
    return figures


@options(Recipe)
def command(
    work: Annotated[Path, typer.Option(help="Folder for activations (about 2 GB); may be deleted.")],
    settings: Recipe,
    out: Annotated[Path, typer.Option(help="Folder of the dictionaries.")] = Path(__file__).parent / "dictionaries",
    only: Annotated[list[str] | None, typer.Option(help="A site to train; all four by default.")] = None,
) -> None:
    """Train all four dictionaries; the exit status says whether each keeps its limits."""
    warnings.simplefilter("ignore")
    figures = _train_all(harvest_raw(work, settings), out, settings, only)
    raise typer.Exit(int(any(site["fvu"] > MAX_FVU or site["dead"] > MAX_DEAD for site in figures)))


def _train_all(
    stores: dict[str, dict[str, Path]], out: Path, recipe: Recipe, only: list[str] | None
) -> list[dict[str, Any]]:
    """Train two dictionaries at a time, each in a process of its own; keep each one's figures beside it."""
    out.mkdir(parents=True, exist_ok=True)
    owners = {site: model for model in (SMOLLM2, MINILM) for site in model.sites if not only or site in only}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(train_site, site, stores, out, model, recipe) for site, model in owners.items()]
        figures = [future.result() for future in futures]
    for site in figures:
        write_text(out / site["site"] / "figures.json", json.dumps(site, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    run_script(command)

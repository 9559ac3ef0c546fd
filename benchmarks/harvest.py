"""Harvest one site of a model, from token ids to a finished store, beside two plain torch loops over the same windows.

::

    python -m benchmarks.harvest                      # SmolLM2-135M, block 5 of 30, the demo's text and dictionary
    python -m benchmarks.harvest --tiny               # a tiny random model made on the spot

The last line is one JSON object. Every way runs in processes of its own, the first two `--repeats` times in turn, and
their best times count; the slow third runs once. Imports, loading of model and dictionary, tokenization and a warm-up
on a few documents are outside of all three times; all use the same number of threads, and the same windows in batches
of the same size, grouped by length. The text is a seeded sample of all the demo's documents; the default is some 96,000
rows, which fill six shards of the default size: in a much smaller text the calibration sample weighs more, and threads
that are left without a shard at the end.

==================  ==================================================================================================
``harvest``         all of ours: local cluster started, calibration sample, site check, shards encoded, compressed and
                    written, statistics and content hash computed, store renamed
``bare_loop``       the same model cut behind the site, a forward hook, the rows' activations through sae-lens's own
                    ``encode``; nothing is kept or written
``full_model``      the whole model with ``output_hidden_states=True``, then as above: how the study did it
==================  ==================================================================================================

``ratios.bare_loop`` and ``ratios.full_model`` are our time ÷ theirs. ``max_error`` is the largest difference between
the store's activations and those of the bare loop. Then the store's activations are written and read again as `csr`
and as a dense Zarr array with zstd in the same chunks: ``ratios.dense_size``, ``dense_write``, ``dense_read``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

import storage
from benchmarks.measure import run_measured
from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from pipeline.work.workers import n_cpus

WAYS = ("harvest", "bare_loop", "full_model")
WARM_UP_DOCUMENTS = 4
CHECKED_ROWS = 2000

MEASURED = """
from benchmarks.harvest import measure
figures.update(measure(**arguments))
"""


# --- the inputs -------------------------------------------------------------------------------------------------------


def demo_inputs(folder: Path) -> tuple[ModelSettings, Path, int]:
    """Return SmolLM2 at one site with the demo's dictionary, all of the demo's text, and the longest window."""
    from jobs.demo.prepare import prepare  # noqa: PLC0415 - imports torch
    from jobs.demo.text import documents  # noqa: PLC0415
    from pipeline.settings.experiment import load_experiment  # noqa: PLC0415

    experiment = load_experiment(prepare(folder))
    model = experiment.models["a"].model_copy(update={"sites": ["layers.5"]})
    text = folder / "all-text.jsonl"
    text.write_text("".join(json.dumps(document._asdict()) + "\n" for document in documents()), encoding="utf-8")
    return model, text, experiment.corpus.max_length


def tiny_inputs(folder: Path) -> tuple[ModelSettings, Path, int]:
    """Make a random Llama of three blocks, a TopK dictionary of its units, and text of random words."""
    import torch  # noqa: PLC0415
    from sae_lens import TopKSAE, TopKSAEConfig  # noqa: PLC0415
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast  # noqa: PLC0415

    words = ["<s>", *(f"word{i}" for i in range(200))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=words[0]).save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=201, num_hidden_layers=3, **sizes)).save_pretrained(folder / "model")
    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=32, k=6))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(16), -torch.eye(16)]))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.save_model(folder / "dictionary")
    rng = np.random.default_rng(0)
    lines = [json.dumps(" ".join(rng.choice(words[1:], int(rng.integers(5, 60))))) for _ in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = ModelSettings(
        model=str(folder / "model"), dictionary=str(folder / "dictionary"), sites=["layers.1"], batch_size=4
    )
    return model, folder / "text.jsonl", 64


def make_inputs(folder: Path, *, tiny: bool, documents: int, shard_rows: int) -> dict[str, Any]:
    """Write two tables of rows, one to measure and a small one to warm up, and return what every way is told."""
    from pipeline.harvest.corpus import build_corpus  # noqa: PLC0415
    from pipeline.harvest.rows import make_rows  # noqa: PLC0415

    (folder / "input").mkdir()
    model, text, max_length = (tiny_inputs if tiny else demo_inputs)(folder / "input")
    for name, count in (("warm-up", WARM_UP_DOCUMENTS), ("measured", documents)):
        build_corpus(CorpusSettings(path=str(text), documents=count, seed=0), folder / name / "corpus.zarr")
        make_rows(folder / name / "corpus.zarr", model, model, max_length, folder / name / "rows.zarr")
    return {"folder": str(folder), "model": model.model_dump(mode="json"), "shard_rows": shard_rows}


# --- the three ways ---------------------------------------------------------------------------------------------------


def measure(way: str, folder: str, model: dict[str, Any], shard_rows: int) -> dict[str, Any]:
    """Run one way in this process, after a warm-up; return its seconds and number of rows."""
    settings = ModelSettings.model_validate(model)
    run = _ours(settings, StoreSettings(shard_rows=shard_rows)) if way == "harvest" else _loop(settings, way)
    run(Path(folder) / "warm-up")
    start = time.perf_counter()
    rows = run(Path(folder) / "measured")
    return {"seconds": time.perf_counter() - start, "rows": rows}


def _ours(model: ModelSettings, store: StoreSettings) -> Callable[[Path], int]:
    # the package names its function like the module
    harvest = importlib.import_module("pipeline.harvest.run").harvest

    def run(folder: Path) -> int:
        shutil.rmtree(folder / "stores", ignore_errors=True)
        paths = harvest(folder / "corpus.zarr", folder / "rows.zarr", model, "a", store, folder / "stores")
        return int(storage.open_activations(paths[model.sites[0]]).sizes["token"])

    return run


def _loop(model: ModelSettings, way: str) -> Callable[[Path], int]:
    """Return the function that runs a plain loop over the windows of a folder."""
    encode = plain_loop(model, full=way == "full_model")

    def run(folder: Path) -> int:
        return sum(len(rows) for rows, _ in encode(folder))

    return run


def plain_loop(model: ModelSettings, *, full: bool) -> Callable[[Path], Iterator[tuple[NDArray[np.int64], Any]]]:
    """Load model and dictionary; return a function that yields row numbers and their encoded activations (a tensor).

    Parameters
    ----------
    model
        One site of a model whose blocks are a list (``layers.5``).
    full
        Run the whole model with ``output_hidden_states=True`` rather than cut it behind the site.
    """
    import torch  # noqa: PLC0415
    from sae_lens import SAE  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    from pipeline.harvest.dictionaries import dictionary_folder  # noqa: PLC0415
    from pipeline.harvest.models import describe  # noqa: PLC0415

    torch.set_num_threads(n_cpus())
    (site,) = model.sites
    blocks, _, block = site.rpartition(".")
    network = AutoModel.from_pretrained(describe(model).folder, dtype=torch.float32).eval()
    sae = SAE.load_from_disk(str(dictionary_folder(model.dictionary_of(site), site)), dtype="float32").eval()
    seen: list[Any] = []
    if not full:
        del network.get_submodule(blocks)[int(block) + 1 :]
        network.get_submodule(site).register_forward_hook(
            lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )

    def hidden(ids: Any, mask: Any) -> Any:
        if full:
            states = network(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
            return states.hidden_states[int(block) + 1]
        network(input_ids=ids, attention_mask=mask, use_cache=False)
        return seen.pop()

    @torch.inference_mode()
    def encode(folder: Path) -> Iterator[tuple[NDArray[np.int64], Any]]:
        for rows, ids, mask, where in _batches(folder, model.batch_size):
            yield rows, sae.encode(hidden(torch.from_numpy(ids), torch.from_numpy(mask))[where])

    return encode


def _batches(folder: Path, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], Any]]:
    """Yield row numbers, padded ids, mask, and where the rows are, of all windows grouped by length."""
    table = {name: array[...] for name, array in zarr.open_group(str(folder / "rows.zarr"), mode="r").arrays()}
    lengths = table["stop_a"] - table["first_a"]
    starts = np.searchsorted(table["window_of_row"], np.arange(len(lengths) + 1))
    order = np.argsort(-lengths, kind="stable")
    for batch in np.split(order, range(size, len(order), size)):
        ids = np.zeros((len(batch), lengths[batch].max()), np.int64)
        mask = np.zeros_like(ids)
        for i, window in enumerate(batch):
            ids[i, : lengths[window]] = table["input_a"][table["first_a"][window] : table["stop_a"][window]]
            mask[i, : lengths[window]] = 1
        rows = [np.arange(starts[window], starts[window + 1]) for window in batch]
        which = np.repeat(np.arange(len(batch)), [len(part) for part in rows])
        numbers = np.concatenate(rows)
        yield numbers, ids, mask, (which, table["position_a"][numbers])


def largest_difference(folder: Path, model: ModelSettings) -> float:
    """Return the largest difference between the harvested store and the bare loop, over the first batches."""
    path = folder / "stores" / f"{model.sites[0]}.zarr"
    worst, checked = 0.0, 0
    for rows, expected in plain_loop(model, full=False)(folder):
        ours = storage.read_csr(path)[rows].toarray()
        worst = max(worst, float(np.abs(ours - expected.numpy()).max()))
        checked += len(rows)
        if checked >= CHECKED_ROWS:
            break
    return worst


# --- csr beside dense -------------------------------------------------------------------------------------------------


def compare_stores(path: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Write and read a store's activations as csr and as dense Zarr with zstd, in the same chunks, one shard at a time.

    Returns
    -------
    dict
        ``csr_bytes``, ``dense_bytes`` on disk; ``csr_write`` … ``dense_read`` in seconds, the best of `repeats`.
    """
    source = zarr.open_array(str(path / "activation"), mode="r")
    shards = [(rows, shard, shard.toarray()) for rows, shard in storage.iter_shards(path)]
    times: dict[str, list[float]] = {name: [] for name in ("csr_write", "dense_write", "csr_read", "dense_read")}
    for _ in range(repeats):
        for name, act in _store_actions(source, shards, folder).items():
            start = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - start)
    sizes = {f"{name}_bytes": float(_bytes_below(folder / name)) for name in ("csr", "dense")}
    return sizes | {name: min(values) for name, values in times.items()}


def _store_actions(source: zarr.Array, shards: list[Any], folder: Path) -> dict[str, Callable[[], object]]:
    """Return the four things to be timed; writing begins with empty arrays."""
    for name in ("csr", "dense"):
        shutil.rmtree(folder / name, ignore_errors=True)
    writer = storage.ActivationWriter.create(
        folder / "csr", n_tokens=source.shape[0], n_features=source.shape[1], layout="csr", shard_rows=source.shards[0]
    )
    dense = zarr.create_array(
        str(folder / "dense"), shape=source.shape, dtype=source.dtype, chunks=source.chunks,
        compressors=zarr.codecs.ZstdCodec(level=3), fill_value=0,
    )  # fmt: skip

    def write_csr() -> None:
        for i, (_, shard, _) in enumerate(shards):
            writer.write_shard(i, shard)

    def write_dense() -> None:
        for rows, _, block in shards:
            dense[rows] = block

    return {
        "csr_write": write_csr,
        "dense_write": write_dense,
        "csr_read": lambda: [storage.read_csr(writer.partial, rows) for rows, _, _ in shards],
        "dense_read": lambda: [dense[rows] for rows, _, _ in shards],
    }


def _bytes_below(folder: Path) -> int:
    """Return the bytes of an array's chunk files; `csr` stands for the activations of an unfinished store."""
    root = storage.partial_path(folder) / "activation" if folder.name == "csr" else folder
    return sum(file.stat().st_size for file in (root / "c").rglob("*") if file.is_file())


# --- all of it --------------------------------------------------------------------------------------------------------


def benchmark(*, tiny: bool, documents: int, repeats: int, shard_rows: int) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    tiny
        Use a random model made on the spot.
    documents
        A seeded sample of so many documents is read.
    repeats
        How often harvest and the bare loop run.
    shard_rows
        Rows of a shard: what one task of the harvest does.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark-harvest-"))
    try:
        told = make_inputs(folder, tiny=tiny, documents=documents, shard_rows=shard_rows)
        load = os.getloadavg()[0]
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(repeats):
            for way in WAYS if number == 0 else WAYS[:2]:
                runs[way].append(run_measured(MEASURED, {"way": way, **told}))
        best = {way: min(figures, key=lambda one: one["seconds"]) for way, figures in runs.items()}
        model = ModelSettings.model_validate(told["model"])
        store = folder / "measured" / "stores" / f"{model.sites[0]}.zarr"
        stores = compare_stores(store, folder, repeats)
        ours = best["harvest"]
        return {
            "name": "harvest",
            "command": f"python -m benchmarks.harvest{' --tiny' if tiny else ''} --documents {documents}",
            "model": Path(model.model).name,
            "site": model.sites[0],
            "threads": n_cpus(),
            "load_before": load,
            **ours,
            "rows_per_second": {way: figures["rows"] / figures["seconds"] for way, figures in best.items()},
            "all_seconds": {way: [one["seconds"] for one in figures] for way, figures in runs.items()},
            "max_error": largest_difference(folder / "measured", model),
            "stores": stores,
            "ratios": {
                **{way: ours["seconds"] / best[way]["seconds"] for way in WAYS[1:]},
                "dense_size": stores["csr_bytes"] / stores["dense_bytes"],
                "dense_write": stores["csr_write"] / stores["dense_write"],
                "dense_read": stores["csr_read"] / stores["dense_read"],
            },
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny random model instead of SmolLM2")
    parser.add_argument("--documents", type=int, default=240, help="a seeded sample of so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shard-rows", type=int, default=StoreSettings().shard_rows)
    given = parser.parse_args()
    figures = benchmark(tiny=given.tiny, documents=given.documents, repeats=given.repeats, shard_rows=given.shard_rows)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""The same values from a GPU, and one copy of the model on each GPU worker. ``pytest -m gpu`` where there is one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.models import load, torch_device
from pipeline.harvest.run import harvest, make_rows
from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from storage import open_activations, read_csr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


def side_of(folder, device, dictionary="identity", dtype="float32"):
    return ModelSettings(
        model=str(folder),
        dictionary=dictionary,
        sites=["layers.1", "blocks.1.mlp.hook_post"],
        device=device,
        dtype=dtype,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.02)])
def test_values_of_the_gpu_are_those_of_the_cpu(make_model, dtype, tolerance):
    cpu = load(side_of(make_model("llama"), "cpu")).reader(IDS, MASK)
    gpu = load(side_of(make_model("llama"), "auto", dtype=dtype))
    assert torch_device("auto") == "cuda"
    assert next(gpu.reader.network.parameters()).is_cuda
    values = gpu.reader(IDS.to(gpu.device), MASK.to(gpu.device))
    real = MASK.bool()
    for site, wanted in cpu.items():
        torch.testing.assert_close(values[site].cpu()[real], wanted[real], rtol=tolerance, atol=tolerance)


def test_dictionary_on_the_gpu_encodes_as_on_the_cpu():
    rows = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    cpu, gpu = (load_dictionary("random:512:8", 64, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.encode(rows).toarray(), cpu.encode(rows).toarray(), atol=1e-4)
    np.testing.assert_allclose(gpu.reconstruct(rows), cpu.reconstruct(rows), atol=1e-4)


def memory_of_models():
    """Return how much the models of a worker's process take on its GPU, and which GPU that is; one task."""
    return torch.cuda.memory_allocated(), torch.cuda.current_device()


def test_harvest_on_dask_cuda_workers(make_model, tmp_path):
    """Each worker sees one GPU as its first, and loads the model once however many shards it writes."""
    dask_cuda = pytest.importorskip("dask_cuda")
    from distributed import Client

    texts = [f"Text {i} about green birds over the river, said the man (aged {i})." for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    build_corpus(CorpusSettings(path=str(tmp_path / "t.jsonl")), tmp_path / "corpus.zarr")
    store = StoreSettings(shard_rows=64)
    with dask_cuda.LocalCUDACluster() as cluster, Client(cluster) as client:
        stores = {}
        for device in ("cpu", "auto"):
            side = side_of(make_model("llama"), device, "random:64:4").model_copy(update={"sites": ["layers.1"]})
            rows = make_rows(tmp_path / "corpus.zarr", side, side, 32, tmp_path / "rows.zarr", client=client)
            stores[device] = harvest(tmp_path / "corpus.zarr", rows, side, "a", store, tmp_path / device, client=client)
        one, other = (stores[device]["layers.1"] for device in ("cpu", "auto"))
        assert open_activations(one).attrs["row_hash"] == open_activations(other).attrs["row_hash"]
        np.testing.assert_allclose(read_csr(one).toarray(), read_csr(other).toarray(), atol=1e-4)
        used = client.run(memory_of_models)
    assert all(device == 0 for _, device in used.values())
    assert any(0 < taken < 50e6 for taken, _ in used.values())

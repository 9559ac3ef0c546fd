"""Files that people have: every kind comes in as the same numbers, and what cannot come in says how it could."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import scipy.sparse
import zarr

import storage
from storage.errors import FormatError, InputError
from storage.exchange import import_activations

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

SHAPE = (6, 5, 4)
LENGTHS = np.array([5, 3, 1, 5, 4, 2])


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """Activations of 6 sequences of 5 positions that float16 and bfloat16 hold exactly."""
    return rng.integers(1, 9, SHAPE).astype("f4") * (rng.random(SHAPE) < 0.7)


def come_in(file: Path, **options: Any) -> np.ndarray:
    out = file.with_name("out.zarr")
    import_activations(file, out, overwrite=True, **options)
    return storage.read_dense(out) if not storage.is_sparse(out) else storage.read_csr(out).toarray()


def tensor(x: np.ndarray, kind: str) -> Any:
    made = torch.from_numpy(x)
    return {"bf16": made.bfloat16(), "f16": made.half(), "f32": made}[kind]


WRITERS = {
    "x.npy": np.save,
    "x.npz": lambda file, x: np.savez(file, acts=x),
    "x.safetensors": lambda file, x: safetensors.numpy.save_file({"acts": x}, file),
    "bf16.safetensors": lambda file, x: safetensors_torch.save_file({"acts": tensor(x, "bf16")}, file),
    "x.pt": lambda file, x: torch.save(tensor(x, "f32"), file),
    "bf16.pt": lambda file, x: torch.save({"acts": tensor(x, "bf16"), "step": 3}, file),
    "f16.pth": lambda file, x: torch.save([tensor(x, "f16")], file),
    "x.zarr": lambda file, x: zarr.save_array(str(file), x),
    "group.zarr": lambda file, x: zarr.save_group(str(file), acts=x),
}


@pytest.mark.parametrize("name", WRITERS)
def test_arrays_of_sequences_and_of_tokens(tmp_path: Path, x: np.ndarray, name: str) -> None:
    flat = tmp_path / "flat" / name
    flat.parent.mkdir()
    WRITERS[name](flat, x.reshape(-1, SHAPE[2]))
    np.testing.assert_array_equal(come_in(flat), x.reshape(-1, SHAPE[2]))
    file = tmp_path / name
    WRITERS[name](file, x)
    with pytest.raises(InputError, match=r"\(6, 5\) sequences × positions, .* --mask FILE.npy .* or --mask all"):
        come_in(file)
    np.testing.assert_array_equal(come_in(file, mask="all"), x.reshape(-1, SHAPE[2]))
    is_token = np.arange(SHAPE[1]) < LENGTHS[:, None]
    for mask in (LENGTHS, is_token, is_token.astype("i8"), np.asfortranarray(is_token)):
        np.save(tmp_path / "mask.npy", mask)
        np.testing.assert_array_equal(come_in(file, mask=tmp_path / "mask.npy"), x[is_token])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full(6, 6), "holds values from 6 to 6; expected are 0 to 5"),
        (np.ones((6, 4), int), r"of shape \(6, 4\); a mask of 6 × 5 positions holds 0 and 1 in the shape \(6, 5\)"),
        (np.ones((6, 5)), "holds float64 values"),
        (np.zeros((6, 5), bool), "no position is a token"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, x: np.ndarray, mask: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(InputError, match=message):
        come_in(tmp_path / "x.npy", mask=tmp_path / "mask.npy")


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.pt", "x.zarr"])
def test_a_decoder_in_the_same_file(tmp_path: Path, x: np.ndarray, rng: np.random.Generator, name: str) -> None:
    arrays = {"acts": x.reshape(-1, SHAPE[2]), "W_dec": rng.normal(size=(SHAPE[2], 3)).astype("f4")}
    file = tmp_path / name
    {
        ".npz": lambda: np.savez(file, **arrays),
        ".safetensors": lambda: safetensors.numpy.save_file(arrays, file),
        ".pt": lambda: torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, file),
        ".zarr": lambda: zarr.save_group(str(file), **arrays),
    }[file.suffix]()
    np.testing.assert_array_equal(come_in(file), arrays["acts"])
    np.testing.assert_array_equal(storage.open_activations(tmp_path / "out.zarr")["decoder"], arrays["W_dec"])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_tensors(tmp_path: Path, x: np.ndarray, layout: str) -> None:
    sparse = torch.from_numpy(x.reshape(-1, SHAPE[2]))
    torch.save(sparse.to_sparse() if layout == "coo" else sparse.to_sparse_csr(), tmp_path / "x.pt")
    np.testing.assert_array_equal(come_in(tmp_path / "x.pt"), x.reshape(-1, SHAPE[2]))


class Objects:
    """What a checkpoint of a whole model holds."""


def test_files_of_torch_that_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    file, flat = tmp_path / "x.pt", torch.from_numpy(x.reshape(-1, SHAPE[2]))

    def refused(error: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(error, match=message):
            come_in(file, **options)
        assert not (tmp_path / "out.zarr").exists()

    torch.save({"acts": flat, "model": Objects()}, file)
    refused(InputError, r"Python objects besides tensors, which are never unpickled .*; save the tensors alone")
    torch.save({"a": flat, "b": flat}, file)
    refused(InputError, r"2 arrays \(a, b\); name one with --key")
    refused(InputError, "no 'c'; it has a, b", key="c")
    torch.save(flat.T, file)
    refused(InputError, r"a view .* save activations.contiguous\(\)")
    torch.save(torch.zeros(1).expand(2**40, 2**10), file)
    refused(InputError, "a view of shape")
    torch.save(flat, file, _use_new_zipfile_serialization=False)
    refused(InputError, "not a file of torch.save since 1.6: load it and save it again")
    torch.save({"step": 3}, file)
    refused(InputError, "holds no tensor")
    torch.save(flat, file)
    file.write_bytes(file.read_bytes()[:-100])
    refused(FormatError, "cannot be read")


@pytest.mark.parametrize("name", ["x.csv", "headless.csv", "named.csv", "x.parquet", "lists.parquet"])
def test_tables(tmp_path: Path, x: np.ndarray, name: str) -> None:
    flat = x.reshape(-1, SHAPE[2])
    table = pd.DataFrame(flat)
    tokens = pd.DataFrame({"document": np.repeat(["p", "q", "r"], 10), "token": [" NA"] * 30})
    file = tmp_path / name
    if name == "headless.csv":
        np.savetxt(file, flat, delimiter=",")
    elif file.suffix == ".csv":
        (table if name == "x.csv" else pd.concat([tokens, table.add_prefix("f")], axis=1)).to_csv(file, index=False)
    elif name == "x.parquet":
        pd.concat([tokens, table.add_prefix("f")], axis=1).to_parquet(file)
    else:
        pd.DataFrame({"acts": list(flat)}).to_parquet(file)
    has_tokens = name in ("named.csv", "x.parquet")
    np.testing.assert_array_equal(come_in(file, **({"tokens": file} if has_tokens else {})), flat)
    if has_tokens:
        store = storage.open_activations(tmp_path / "out.zarr")
        assert store["document"].values.tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_tables_that_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    for file, write in {"x.csv": pd.DataFrame.to_csv, "x.parquet": pd.DataFrame.to_parquet}.items():
        write(pd.DataFrame({"f0": [1.0, 2.0], "speaker": ["a", "b"]}), tmp_path / file)
        with pytest.raises(InputError, match="columns that hold no numbers: speaker; leave out all but features"):
            come_in(tmp_path / file)
    pd.DataFrame({"acts": [[1.0, 2.0], [1.0]]}).to_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match="row 1 of acts has 1 values, and row 0 2; every token has as many features"):
        come_in(tmp_path / "ragged.parquet")


def test_a_dataset_with_a_column_of_lists(tmp_path: Path, x: np.ndarray) -> None:
    datasets = pytest.importorskip("datasets")
    flat = x.reshape(-1, SHAPE[2])
    columns = {"acts": flat.tolist(), "token": ["a"] * len(flat)}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "acts")
    np.testing.assert_array_equal(come_in(tmp_path / "acts"), flat)
    datasets.Dataset.from_dict({"acts": [[1.0, 2.0], [1.0]]}).save_to_disk(tmp_path / "ragged")
    with pytest.raises(InputError, match=r"row 1 of acts has the shape \(1,\), and row 0 \(2,\)"):
        come_in(tmp_path / "ragged")


@pytest.mark.parametrize("suffix", [".pt", ".csv", ".parquet", ".zarr"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 9, b"PK\x03\x04 no archive"])
def test_files_that_are_none(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"x{suffix}"):
        come_in(tmp_path / f"x{suffix}")


def test_an_array_of_zarr_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), shape=(2**40, 64), chunks=(64, 64), dtype="f4")
    with pytest.raises(InputError, match=r"declares .* GB, and .* bytes of it are stored"):
        come_in(tmp_path / "x.zarr")


def save_splits(folder: Path, acts: np.ndarray, tokens: np.ndarray, *, n_splits: int, save_tokens: bool = True) -> None:
    """Write latents as ``delphi.latents.cache.LatentCache.save_splits`` does (eai-delphi 0.1)."""
    folder.mkdir(parents=True, exist_ok=True)
    locations = np.argwhere(acts)
    activations = acts[tuple(locations.T)]
    bounds = np.linspace(0, acts.shape[2], n_splits + 1).astype(int)
    for start, end in zip(bounds[:-1], bounds[1:] - 1, strict=True):
        mask = (locations[:, 2] >= start) & (locations[:, 2] <= end)
        masked = locations[mask]
        masked[:, 2] -= start
        split = {"locations": masked.astype(np.uint16), "activations": activations[mask].astype(np.float16)}
        if save_tokens:
            split["tokens"] = tokens
        safetensors.numpy.save_file(split, folder / f"{start}_{end}.safetensors")


@pytest.mark.parametrize("block", [3, 2**20])
def test_latents_of_delphi(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("storage.importers.delphi.BLOCK_ENTRIES", block)
    monkeypatch.setattr("storage.readers.SLAB_BYTES", 1000)
    acts = rng.integers(1, 9, (7, 5, 23)).astype("f4") * (rng.random((7, 5, 23)) < 0.2)
    acts[3] = acts[:, -1] = 0
    tokens = rng.integers(0, 3, (7, 5))
    folder = tmp_path / "layers.3"
    save_splits(folder, acts, tokens, n_splits=4)
    np.testing.assert_array_equal(come_in(folder), acts.reshape(-1, 23))
    store = storage.open_activations(tmp_path / "out.zarr")
    assert (store.attrs["site"], store.attrs["kind"], store.attrs["layout"]) == ("layers.3", "post", "csr")
    np.testing.assert_array_equal(come_in(folder, drop_tokens=[0]), acts[tokens != 0])


def test_latents_of_delphi_that_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    acts, tokens = (rng.random((3, 5, 8)) < 0.5).astype("f4"), np.zeros((3, 5), int)
    save_splits(tmp_path / "no", acts, tokens, n_splits=2, save_tokens=False)
    with pytest.raises(InputError, match=r"how many tokens there are: cache again .*save_tokens=True"):
        come_in(tmp_path / "no")
    folder = tmp_path / "layers.1"
    save_splits(folder, acts, tokens[:2], n_splits=2)
    with pytest.raises(FormatError, match=r"up to \[2, 4, 3\], of \(2, 5, 4\)"):
        come_in(folder)
    save_splits(folder, acts, tokens, n_splits=2)
    (folder / "0_3.safetensors").rename(tmp_path / "away")
    with pytest.raises(InputError, match="no split that begins with feature 0; give the folder with all splits"):
        come_in(folder)


def test_csr_of_scipy_is_not_taken_for_sequences(tmp_path: Path, x: np.ndarray) -> None:
    matrix = scipy.sparse.csr_array(x.reshape(-1, SHAPE[2]))
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    keep = np.arange(30) % 2 == 0
    np.save(tmp_path / "mask.npy", keep)
    np.testing.assert_array_equal(come_in(tmp_path / "x.npz", mask=tmp_path / "mask.npy"), matrix.toarray()[keep])

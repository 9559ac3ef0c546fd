"""What a harvest will need: disk for its stores, memory for its tasks. Known before the first shard is computed.

**Disk** of one site's store::

    rows × bytes of a row  +  coordinates  +  decoder  +  32 bytes a feature for the statistics

The bytes of a row are measured: random rows with the number of active features that the calibration sample has are
written to a small store of the same layout, type and chunks. Real features are not active at random, so this is
within some 30 % of the truth, mostly above it. Pooled rows (``max``, ``mean``) hold the union of their tokens'
features, at most their sum, which is assumed. Coordinates take what they take in the table of rows, the decoder what
the compression of its first rows suggests.

**Memory** of one task, beside the model and the dictionaries, which all tasks of a process share::

    shard_rows × Σ_sites (28·n_features if dense, else 40·L0)   the shard, and its copies while it is written
    + 4·batch·length·d_model·(sites + 32)                        the pass through the model
    + 256 MiB                                                   a block of rows while it is encoded

The driver holds some 100 bytes for each row of the table.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numcodecs.zstd
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from storage import ActivationWriter, free_space, partial_path
from storage.errors import BudgetError
from storage.listing import size_on_disk

logger = logging.getLogger(__name__)

#: Rows of the store by which the bytes of a row are measured; fewer where they are wide and dense.
_MEASURED_ROWS = 4096
_MEASURED_VALUES = 8 << 20

#: Rows of a decoder by which its compression is measured.
_DECODER_ROWS = 256
_ZSTD_LEVEL = 3

#: mean, std, max and n_active: 8 bytes each.
_STATISTICS_BYTES = 32

#: Bytes of a task for each stored value, copies included, and for a block of rows that is encoded.
_DENSE_BYTES, _SPARSE_BYTES, _ENCODING_BYTES = 28, 40, 256 << 20

#: How many times the residual stream a block of the model holds at once: queries, keys, values, MLP and their inputs.
_PASS_WIDTHS = 32


@dataclass(frozen=True)
class SiteNeed:
    """What is known of a site's store before it is written.

    Attributes
    ----------
    n_features
        Width of the store.
    active
        Features of a row that are not zero, on average.
    layout, dtype
        As in :class:`storage.ActivationWriter`.
    decoder
        float32 (n_features, d_model).
    """

    n_features: int
    active: float
    layout: Literal["csr", "dense"]
    dtype: str
    decoder: NDArray[np.float32]


def predicted_bytes(need: SiteNeed, n_rows: int, coordinates: int) -> int:
    """Return the bytes that a finished store will take on disk; `coordinates` are those of its token coordinates."""
    activations = n_rows * bytes_of_row(need)
    return int(activations + coordinates + _decoder_bytes(need.decoder) + _STATISTICS_BYTES * need.n_features)


def bytes_of_row(need: SiteNeed) -> float:
    """Write random rows as the store will be written, and return the bytes that one takes; the same each time."""
    width = need.n_features if need.layout == "dense" else max(1.0, need.active)
    rows = int(max(16, min(_MEASURED_ROWS, _MEASURED_VALUES // width)))
    with tempfile.TemporaryDirectory() as folder:
        writer = ActivationWriter.create(
            Path(folder) / "measured", n_tokens=rows, n_features=need.n_features, layout=need.layout, dtype=need.dtype,
            shard_rows=rows,
        )  # fmt: skip
        writer.write_shard(0, _random_rows(need, rows))
        return size_on_disk(writer.partial / "activation" / "c") / rows


def _random_rows(need: SiteNeed, rows: int) -> sp.csr_array:
    """Return rows with about `need.active` positive values each, in random places."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(need.n_features, min(1.0, need.active / need.n_features), rows)
    ids = [np.sort(rng.choice(need.n_features, count, replace=False)) for count in counts]
    values = np.abs(rng.standard_normal(int(counts.sum()), dtype=np.float32))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sp.csr_array((values, np.concatenate(ids).astype(np.int32), indptr), shape=(rows, need.n_features))


def _decoder_bytes(decoder: NDArray[np.float32]) -> float:
    sample = np.ascontiguousarray(decoder[:_DECODER_ROWS])
    return decoder.nbytes * len(numcodecs.zstd.compress(sample, _ZSTD_LEVEL)) / max(1, sample.nbytes)


def task_bytes(needs: Mapping[str, SiteNeed], shard_rows: int, batch_tokens: int) -> int:
    """Return the bytes that one task may take, beside the model and the dictionaries.

    `needs` are the stores by site, `batch_tokens` the tokens of the largest batch, padding included.

    >>> decoder = np.zeros((4096, 8), np.float32)
    >>> task_bytes({"layers.3": SiteNeed(4096, 32, "csr", "float32", decoder)}, 16_384, 8 * 256) >> 20
    278
    """
    a_row = sum(
        _DENSE_BYTES * need.n_features if need.layout == "dense" else _SPARSE_BYTES * need.active
        for need in needs.values()
    )
    d_model = max(need.decoder.shape[1] for need in needs.values())
    forward = 4 * batch_tokens * d_model * (len(needs) + _PASS_WIDTHS)
    return int(shard_rows * a_row) + forward + _ENCODING_BYTES


def check_disk(stores: Mapping[str, Path], predicted: Mapping[str, int]) -> None:
    """Raise a BudgetError if the disk has less free than is still to be written; log the prediction otherwise.

    `stores` are the stores by site, all in one folder, and `predicted` the bytes of each when it is finished. What
    unfinished stores hold already is not needed again.
    """
    written = sum(size_on_disk(partial_path(path)) for path in stores.values())
    needed = max(0, sum(predicted.values()) - written)
    folder = next(iter(stores.values())).parent
    free, _ = free_space(folder)
    if needed > free:
        sites = ", ".join(f"{site} {_gigabytes(size)}" for site, size in predicted.items())
        raise BudgetError(
            f"The stores below {folder} need {_gigabytes(needed)} more of disk ({sites}; {_gigabytes(written)} is "
            f"written), and {_gigabytes(free)} is free there: choose another run directory, fewer documents or sites, "
            "or 'store: {dtype: float16}'"
        )
    logger.info("Disk: %s for %d stores, %s free", _gigabytes(needed), len(stores), _gigabytes(free))


def _gigabytes(size: float) -> str:
    """Return a size for people.

    >>> _gigabytes(1_234_000_000), _gigabytes(52_300)
    ('1.23 GB', '0.0523 MB')
    """
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"

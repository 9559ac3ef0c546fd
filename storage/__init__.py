"""What is on disk: activation stores, the corpus, results and their manifests. Knows nothing of models or metrics.

Everything is Zarr v3 and opens with plain ``xarray.open_zarr`` where this package is installed; the format is
written down in ``docs/store-format.md``.
"""

from __future__ import annotations

from storage.activations import (
    is_sparse,
    iter_dense,
    iter_shards,
    open_activations,
    read_dense,
    write_activations,
)
from storage.codec import CsrCodec, decode_csr, encode_csr
from storage.corpus import Corpus, open_corpus, write_corpus
from storage.errors import (
    BudgetError,
    BusyError,
    CorruptError,
    FormatError,
    InputError,
    MissingDependencyError,
    MissingInputError,
    RowMismatchError,
    SubspaceError,
)
from storage.exchange import export_activations, import_activations
from storage.files import free_space, partial_path
from storage.identity import fingerprint, is_current
from storage.kinds import check_same_kind
from storage.manifest import Manifest, new_manifest, read_manifest
from storage.results import make_result, open_result, write_result
from storage.rows import check_same_rows
from storage.sparse_array import create_sparse_array, missing_shards, read_csr, write_sparse_shard
from storage.targets import Target, claim
from storage.variables import add_variables
from storage.writer import ActivationWriter

__all__ = [
    "ActivationWriter",
    "BudgetError",
    "BusyError",
    "Corpus",
    "CorruptError",
    "CsrCodec",
    "FormatError",
    "InputError",
    "Manifest",
    "MissingDependencyError",
    "MissingInputError",
    "RowMismatchError",
    "SubspaceError",
    "Target",
    "add_variables",
    "check_same_kind",
    "check_same_rows",
    "claim",
    "create_sparse_array",
    "decode_csr",
    "encode_csr",
    "export_activations",
    "fingerprint",
    "free_space",
    "import_activations",
    "is_current",
    "is_sparse",
    "iter_dense",
    "iter_shards",
    "make_result",
    "missing_shards",
    "new_manifest",
    "open_activations",
    "open_corpus",
    "open_result",
    "partial_path",
    "read_csr",
    "read_dense",
    "read_manifest",
    "write_activations",
    "write_corpus",
    "write_result",
    "write_sparse_shard",
]

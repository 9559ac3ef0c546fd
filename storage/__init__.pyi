from . import (
    activations,
    codec,
    corpus,
    dense_array,
    errors,
    exchange,
    files,
    identity,
    inspect,
    inventory,
    jit,
    kernels,
    kinds,
    locks,
    manifest,
    moments,
    readers,
    registry,
    results,
    rows,
    rundir,
    slabs,
    sparse_array,
    targets,
    variables,
    verify,
    writer,
    yaml_files,
)
from .activations import (
    is_sparse,
    iter_dense,
    iter_shards,
    open_activations,
    read_dense,
    write_activations,
)
from .codec import (
    CsrCodec,
    decode_csr,
    encode_csr,
)
from .corpus import (
    Corpus,
    open_corpus,
    write_corpus,
)
from .errors import (
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
from .exchange import (
    export_activations,
    import_activations,
)
from .files import (
    free_space,
    partial_path,
)
from .identity import (
    fingerprint,
    is_current,
)
from .kinds import (
    check_same_kind,
)
from .manifest import (
    Manifest,
    new_manifest,
    read_manifest,
)
from .results import (
    make_result,
    open_result,
    write_result,
)
from .rows import (
    check_same_rows,
)
from .sparse_array import (
    create_sparse_array,
    missing_shards,
    read_csr,
    write_sparse_shard,
)
from .targets import (
    Target,
    claim,
)
from .variables import (
    add_variables,
)
from .writer import (
    ActivationWriter,
)

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
    "activations",
    "add_variables",
    "check_same_kind",
    "check_same_rows",
    "claim",
    "codec",
    "corpus",
    "create_sparse_array",
    "decode_csr",
    "dense_array",
    "encode_csr",
    "errors",
    "exchange",
    "export_activations",
    "files",
    "fingerprint",
    "free_space",
    "identity",
    "import_activations",
    "inspect",
    "inventory",
    "is_current",
    "is_sparse",
    "iter_dense",
    "iter_shards",
    "jit",
    "kernels",
    "kinds",
    "locks",
    "make_result",
    "manifest",
    "missing_shards",
    "moments",
    "new_manifest",
    "open_activations",
    "open_corpus",
    "open_result",
    "partial_path",
    "read_csr",
    "read_dense",
    "read_manifest",
    "readers",
    "registry",
    "results",
    "rows",
    "rundir",
    "slabs",
    "sparse_array",
    "targets",
    "variables",
    "verify",
    "write_activations",
    "write_corpus",
    "write_result",
    "write_sparse_shard",
    "writer",
    "yaml_files",
]

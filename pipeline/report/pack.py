"""Arrays inside a page: one compressed piece of text a browser takes apart without a network.

A pack is a JSON header and the arrays after it, little-endian and aligned to eight bytes, compressed by gzip and
written in base64, in which no character has a meaning in HTML::

    u32 length of the header │ header: {"arrays": {name: [dtype, offset, length]}, …} │ array │ array │ …
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 8
#: What JavaScript has a typed array for, by NumPy's name.
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32")
#: A step of :func:`fixed_point`.
FIXED_STEP = 1e-4
#: What stands for "not defined" in :func:`fixed_point`.
UNDEFINED = np.iinfo(np.int16).min


def pack(arrays: Mapping[str, np.ndarray], **header: Any) -> str:
    """Return arrays and a header as one piece of base64; the same content gives the same text.

    Arrays of any shape are flattened in C order; a dtype that is not among :data:`DTYPES` is a TypeError. The header
    holds what JSON holds, beside the description of the arrays.

    >>> pack({"id": np.arange(3, dtype=np.uint8)})[:4]
    'H4sI'
    """
    description: dict[str, tuple[str, int, int]] = {}
    offset = 0
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise TypeError(f"{name} is {array.dtype}; a pack holds {', '.join(DTYPES)}")
        description[name] = (array.dtype.name, offset, array.size)
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    head = json.dumps({"arrays": description, **header}, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 4) % ALIGNMENT)
    body = b"".join(_padded(array) for array in arrays.values())
    raw = len(head).to_bytes(4, "little") + head + body
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")


def _padded(array: np.ndarray) -> bytes:
    content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return content + b"\0" * (-len(content) % ALIGNMENT)


def fixed_point(values: np.ndarray) -> np.ndarray:
    """Return values between −3 and 3 as int16 in steps of :data:`FIXED_STEP`; NaN becomes :data:`UNDEFINED`.

    >>> fixed_point(np.array([0.5, np.nan])).tolist()
    [5000, -32768]
    """
    defined = np.isfinite(values)
    steps = np.rint(np.where(defined, values, 0) / FIXED_STEP)
    return np.where(defined, np.clip(steps, UNDEFINED + 1, -UNDEFINED - 1), UNDEFINED).astype(np.int16)


def short_floats(values: np.ndarray) -> np.ndarray:
    """Return values as float32 cut to 12 bits of mantissa, so that places on a map compress.

    >>> short_floats(np.array([3.14159265]))
    array([3.140625], dtype=float32)
    """
    bits = values.astype(np.float32).view(np.uint32)
    rounded: np.ndarray = (bits & np.uint32(0xFFFFF000)).view(np.float32)
    return rounded

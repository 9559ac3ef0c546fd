"""The inner loops: compiled ones over sparse rows, and array-API ones over dense blocks.

Kernels know arrays only; what they are given and where their results go is decided by :mod:`pipeline.correlate.panel`.
To add one, produce sums of products of centred values, ``(feature_a, feature_b)`` float64 for each half of the rows,
and hand them to :func:`pipeline.correlate.kernels.reduce.reduce_tile`, which knows everything else.

Compiled kernels are cached on disk beside their file (or in ``NUMBA_CACHE_DIR``). Numba looks at the age of that one
file only: after a change in a function that another file's kernels call, delete the ``*.nbi`` files.
"""

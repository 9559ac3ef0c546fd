"""The inner loops: compiled ones over sparse rows, and array-API ones over dense blocks.

Kernels know arrays only; what they are given and where their results go is decided by :mod:`pipeline.correlate.panel`.
To add one, produce sums of products of centred values, ``(feature_a, feature_b)`` float64 for each half of the rows,
and hand them to :func:`pipeline.correlate.kernels.reduce.reduce_tile`, which knows everything else, or where most sums
are 0 to :func:`pipeline.correlate.kernels.touched.reduce_touched`.

Compiled kernels are kept on disk (:mod:`storage.jit`).
"""

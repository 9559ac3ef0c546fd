"""The rates that all estimates of time come from: seconds of the steps that a correlation is made of.

The defaults are those of one core of a small cloud machine, and of a GPU of the middle of the range. They choose the
kernel, so that the same stores get the same kernel everywhere; what a run will take is told with the rates of the
machine at hand, where ``subspace plan --calibrate`` has measured them (:mod:`pipeline.correlate.rates`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

#: Share of all pairs that are listed or kept: at r ≥ 0.1, on real models, 0.4 to 1 % are kept.
CHOSEN_SHARE = 0.006

#: Bytes of a GPU's memory that a sparse product moves: the sector of 32 bytes with its sum, read and written; and those
#: that a number of a dense product moves: itself, and its sum, read and written.
SECTORS, TILE_BYTES = 64, 20


@dataclass(frozen=True)
class Rates:
    """Seconds on one core, with all cores at work; and on one GPU.

    Attributes
    ----------
    product, streamed
        A product of two sparse values that is added to its sum, resident and streaming, with few active features a row.
    crowded
        The same where an eighth of the features is active: rows are read in one go. Near the density at which either
        kernel takes as long, so it is this one that chooses between them.
    pair
        Setting the sum of a pair to 0, its r, its place in the histogram, its passing by the lists: where all pairs
        are reduced.
    touched
        A product of two sparse values that is added and marked where only pairs with products are reduced; with its
        share of reducing them.
    completed
        A pair without products that is put into a list when all others are done.
    dense_product
        A product in a float32 matrix product.
    tile
        Adding one number of a product to its place in a tile.
    entry
        Reading an entry of a sparse store, decoded, shifted and counted.
    value
        Reading a value of a dense store and standardising it, or turning it to be computed with again.
    chosen
        A product in float64 for one of the few pairs whose held-out r is wanted.
    start
        Seconds before the first panel begins, and after the last one.
    gpu_byte
        A byte of the GPU's memory that is read or written: what its sparse products are made of.
    gpu_dense_product
        A product in a float32 matrix product on a GPU, TF32 off.
    gpu_copy
        A byte between the host and its GPU.
    """

    product: float = 3.0e-9
    streamed: float = 9.0e-9
    crowded: float = 1.2e-9
    pair: float = 4.5e-9
    touched: float = 1.5e-8
    completed: float = 2.0e-6
    dense_product: float = 3.6e-11
    tile: float = 8e-10
    entry: float = 1.0e-7
    value: float = 2.0e-9
    chosen: float = 2.0e-10
    start: float = 1.0
    gpu_byte: float = 1e-12
    gpu_dense_product: float = 2e-13
    gpu_copy: float = 1e-10

    @property
    def gpu_product(self) -> float:
        """A product of two sparse values that is added to its sum on a GPU."""
        return SECTORS * self.gpu_byte

    def on(self, device: Literal["cpu", "cuda"]) -> Rates:
        """Return the rates where products and their sums are on a device.

        >>> Rates().on("cuda").product < Rates().product
        True
        """
        if device == "cpu":
            return self
        product, tile = self.gpu_product, TILE_BYTES * self.gpu_byte
        sparse = replace(self, product=product, streamed=product, crowded=product)
        return replace(sparse, dense_product=self.gpu_dense_product, tile=tile)

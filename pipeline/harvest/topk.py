"""Dictionaries that are a linear encoder, a ReLU and a top-k.

``encode(x) = topk(ReLU((x − b_dec) W_encᵀ + b_enc))``, ``decode(z) = z W_dec + b_dec`` (Gao et al., arXiv 2406.04093).
A transcoder takes nothing off its input, and may add ``x W_skipᵀ`` to its output (Paulo et al., arXiv 2501.18823).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from pipeline.harvest.dictionary import Dictionary, Encoded, Rows, check_kind, csr_of, in_blocks, stack
from pipeline.settings.harvest import ActivationKind


@dataclass(frozen=True)
class TopKWeights:
    """What a TopK dictionary consists of; all float32 tensors.

    Attributes
    ----------
    encoder, decoder
        (n_features, d_model).
    b_enc, b_dec
        (n_features,) and (d_model,).
    k
        How many features a row may have.
    choose
        ``topk``: the k largest after the ReLU; ``signed``: the k largest by magnitude, no ReLU; ``groupmax``: the
        largest of each of k groups of neighbouring features.
    transcode, skip
        Whether another tensor than the input is predicted; and how the input enters it, (d_model, d_model), or None.
    """

    encoder: Any
    decoder: Any
    b_enc: Any
    b_dec: Any
    k: int
    choose: Literal["topk", "signed", "groupmax"] = "topk"
    transcode: bool = False
    skip: Any = None

    def to(self, device: str) -> TopKWeights:
        """Return the weights on a device."""
        names = ["encoder", "decoder", "b_enc", "b_dec", *(["skip"] if self.skip is not None else [])]
        return replace(self, **{name: getattr(self, name).float().to(device) for name in names})

    def before(self, rows: Any) -> Any:
        """Return the activations that the k are chosen from, (rows, n_features)."""
        import torch

        rows = rows if self.transcode else rows - self.b_dec
        hidden = torch.nn.functional.linear(rows, self.encoder, self.b_enc)
        return hidden if self.choose == "signed" else hidden.relu_()

    def chosen(self, rows: Any) -> tuple[Any, Any]:
        """Return values and ids (rows, k) of the chosen features, ids ascending."""
        import torch

        before = self.before(rows)
        if self.choose == "groupmax":
            values, inside = before.unflatten(-1, (self.k, -1)).max(dim=-1)
            return values, inside + torch.arange(0, before.shape[1], before.shape[1] // self.k, device=before.device)
        strength = before.abs() if self.choose == "signed" else before
        ids = torch.topk(strength, self.k, dim=-1, sorted=False).indices.sort(dim=-1).values
        return before.gather(-1, ids), ids


class TopKDictionary(Dictionary):
    """A dictionary of :class:`TopKWeights`; ``pre_topk`` gives the activations that the k are chosen from.

    >>> from pipeline.harvest.dictionaries import load_dictionary
    >>> encoded = load_dictionary("random:64:4", 8).encode(np.ones((2, 8), np.float32))
    >>> encoded.shape, encoded.nnz
    ((2, 64), 8)
    """

    def __init__(
        self,
        weights: TopKWeights,
        id: str,  # noqa: A002
        kind: ActivationKind,
        config: dict[str, Any],
        device: str = "cpu",
    ) -> None:
        check_kind(kind, id, has_top_k=True, architecture="topk")
        self._weights = weights.to(device)
        self._device = device
        self.id = id
        self.kind = kind
        self.config = config
        self.n_features, self.d_model = (int(n) for n in weights.encoder.shape)
        self.decoder = weights.decoder.float().cpu().numpy()
        self.layout = "dense" if kind == "pre_topk" else "csr"

    def encode(self, rows: Rows) -> Encoded:
        """Return the activations: csr for ``post``, an array for ``pre_topk``."""
        import torch

        with torch.inference_mode():
            blocks = [self._encode(self._tensor(rows[part])) for part in in_blocks(rows, self.n_features)]
        return stack(blocks, self.layout, self.n_features)

    def _tensor(self, rows: Rows) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)

    def _encode(self, rows: Any) -> Encoded:
        return self._weights.before(rows).cpu().numpy() if self.layout == "dense" else self._sparse(rows)

    def _sparse(self, rows: Any) -> sp.csr_array:
        import torch

        values, ids = self._weights.chosen(rows)
        active = values != 0
        return csr_of(torch.nonzero(active)[:, 0], ids[active], values[active], (len(rows), self.n_features))

    def reconstruct(self, rows: Rows) -> Rows:
        """Return the decoded top k."""
        import torch

        out = np.empty_like(rows)
        with torch.inference_mode():
            for part in in_blocks(rows, self.n_features):
                inputs = self._tensor(rows[part])
                values, ids = self._weights.chosen(inputs)
                decoded = torch.nn.functional.embedding_bag(
                    ids, self._weights.decoder, per_sample_weights=values, mode="sum"
                )
                skipped = 0 if self._weights.skip is None else inputs @ self._weights.skip.T
                out[part] = (decoded + self._weights.b_dec + skipped).cpu().numpy()
        return out

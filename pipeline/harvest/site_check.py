"""Does this dictionary belong to this site? Asked before anything is harvested.

The commonest mistake with sparse autoencoders is the hook that is off by one: ``hidden_states[3]`` is the *input* of
block 3. Nothing fails then, and the features are plausible nonsense. So every (site, dictionary) is tried first:

1. What the dictionary says of itself is held against the site (:func:`check_model`): width, hook point, context, BOS.
2. It reconstructs some rows of the site, and of the same place one block before and one block behind
   (:func:`judge`). It is refused (:func:`refuse_bad_sites`) if it leaves more variance unexplained than there is, or
   more than :data:`NEIGHBOUR_FACTOR` times what it leaves at a neighbour, and by :data:`NEIGHBOUR_MARGIN` more.
   A transcoder reconstructs another site than it reads, here and in the neighbouring blocks.

``allow_bad_site`` (on the command line ``--allow-bad-site``) turns refusals into warnings. Raw units and the random
control are not meant to explain anything: their figures are recorded, and no neighbour is read for them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.dictionary import Dictionary, Rows
from pipeline.harvest.models import ModelInfo, describe, torch_device
from pipeline.harvest.sites import Site
from pipeline.settings.harvest import ModelSettings
from storage.errors import InputError

logger = logging.getLogger(__name__)

#: Bytes at the beginning and at the end of a file that are compared to know it again.
SAMPLED_BYTES = 2**16

#: A row is an attention sink if its norm exceeds this multiple of the calibration sample's median norm.
SINK_MULTIPLE = 10.0

#: Windows of the calibration sample, evenly spaced over the corpus.
CALIBRATION_WINDOWS = 16

#: Rows of each of these windows that a dictionary is tried on, evenly spaced; the norms of all rows are looked at.
_ROWS_OF_WINDOW = 64

#: A site is refused if a dictionary leaves more by this factor than at a neighbour. Dictionaries leave least at their
#: own site: those of the demo 1.2 to 2.4 times less than one block away.
NEIGHBOUR_FACTOR = 1.25

#: ... and more by this much of the variance: of two sites that are both explained well, neither is wrong.
NEIGHBOUR_MARGIN = 0.02

#: From this factor on it is said that a neighbour is explained better.
_WORTH_SAYING = 1.05

_OVERRIDE = "set allow_bad_site: true, or give --allow-bad-site, to harvest it all the same"


# --- what can be said without running the model -----------------------------------------------------------------------


def dictionary_at(model: ModelSettings, site: Site, device: str = "cpu") -> Dictionary:
    """Return the dictionary of a site; it is loaded once a process."""
    return load_dictionary(
        model.dictionary_of(site.name), site.width, site.name, model.kind,
        names=site.names, neurons=site.role == "neurons", device=torch_device(device),
    )  # fmt: skip


def places_around(model: ModelSettings, info: ModelInfo, site: Site) -> list[tuple[Site, Site]]:
    """Return what a dictionary reads and what it is to explain: at its site, and then in the blocks around it.

    Nothing around it for a dictionary that is not meant to explain anything. InputError if the model has no such site
    as a transcoder predicts.
    """
    dictionary = dictionary_at(model, site)
    target = site if dictionary.output_site is None else info.names.resolve(dictionary.output_site)
    around = zip(info.names.neighbours(site), info.names.neighbours(target), strict=False)
    return [(site, target), *(around if dictionary.reconstructs else ())]


_checked: dict[str, ModelInfo] = {}
_checked_lock = threading.Lock()


def check_model(model: ModelSettings) -> ModelInfo:
    """Describe a model and load its dictionaries, so that what does not fit is known before any work.

    The answer is kept for as long as the files stay what they are: a harvest asks several times. Its `context` is that
    of the model or of a dictionary, whichever is shorter.

    Raises
    ------
    InputError
        If a dictionary says that it was trained at another site, and ``allow_bad_site`` is not set. See also
        :func:`pipeline.harvest.models.describe` and :func:`pipeline.harvest.dictionaries.load_dictionary`.
    """
    key = model_key(model)
    with _checked_lock:
        if key not in _checked:
            if len(_checked) > 1:  # both sides of one experiment are kept
                _checked.clear()
            _checked[key] = _check_model(model)
        return _checked[key]


def model_key(model: ModelSettings) -> str:
    """Return what changes when another model, other dictionaries or other files are described."""
    described = model.model_dump_json(exclude={"label", "batch_size", "device", "dtype"})
    return f"{described}|{_files(model)}"


def is_checked(model: ModelSettings) -> bool:
    """Say whether this process has described the model as it is on disk."""
    return model_key(model) in _checked


def _files(model: ModelSettings) -> list[tuple[str, int, int, str]]:
    """Return every local file that a side is made from: its size, time, and the SHA-256 of its beginning and end.

    Copies may have any time of modification: size and time alone would take another file for the same.
    """
    roots = [Path(model.model), *(Path(model.dictionary_of(site)) for site in model.sites)]
    inside = [path for root in dict.fromkeys(roots) for path in (root, *root.glob("*"), *root.glob("*/*"))]
    return [_state_of(path) for path in inside if path.is_file()]


def _state_of(file: Path) -> tuple[str, int, int, str]:
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        head = stream.read(SAMPLED_BYTES)
        stream.seek(max(len(head), status.st_size - SAMPLED_BYTES))
        sample = hashlib.sha256(head + stream.read(SAMPLED_BYTES)).hexdigest()
    return str(file), status.st_size, status.st_mtime_ns, sample


def _check_model(model: ModelSettings) -> ModelInfo:
    info = describe(model)
    contexts = {}
    for site in info.sites.values():
        dictionary = dictionary_at(model, site)
        logger.info("%s, dictionary %s (%d features)", site, dictionary.id, dictionary.n_features)
        _check_own_site(model, info, site, dictionary)
        if dictionary.output_site is not None:
            logger.info("%s predicts %s", dictionary.id, info.names.resolve(dictionary.output_site))
        if dictionary.context:
            contexts[dictionary.id] = int(dictionary.context)
    shortest = min(contexts, key=lambda name: contexts[name], default=None)
    if shortest is None or (info.context is not None and info.context <= contexts[shortest]):
        return info
    logger.info("%s: windows of at most %d tokens, as %s was trained on", model.model, contexts[shortest], shortest)
    return replace(info, context=contexts[shortest])


def _check_own_site(model: ModelSettings, info: ModelInfo, site: Site, dictionary: Dictionary) -> None:
    """Hold the site that a dictionary was trained at against the one that it is to read."""
    if dictionary.site is None or dictionary.site in site.names:
        return
    try:
        trained_at = info.names.resolve(dictionary.site)
    except InputError:
        logger.warning(
            "%s says that it was trained at %r; %s has no such site", dictionary.id, dictionary.site, model.model
        )
        return
    if info.names.same(trained_at, site):
        return
    message = (
        f"The dictionary {dictionary.id} was trained at {dictionary.site} "
        f"({trained_at.tensor} of {trained_at.path}), not at {site.name} "
        f"({site.tensor} of {site.path}): name the site {dictionary.site}"
    )
    if not model.allow_bad_site:
        raise InputError(f"{message}, or {_OVERRIDE}")
    logger.warning("%s; harvested all the same: allow_bad_site is set", message)


# --- what the sample says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """What a site's calibration sample says.

    Attributes
    ----------
    threshold
        Norm above which a row is a sink.
    n_rows, n_sinks
        Rows of the sample, and how many of them are sinks.
    fvu, fvu_with_sinks
        Fraction of variance unexplained by the dictionary.
    l0
        Mean number of active features a row, sinks excluded.
    neighbours
        FVU of the same dictionary at the neighbouring sites, sinks excluded.
    verdict
        Why the site is a bad one; empty if it is none.
    """

    threshold: float
    n_rows: int
    n_sinks: int
    fvu: float
    fvu_with_sinks: float
    l0: float
    neighbours: dict[str, float] = field(default_factory=dict)
    verdict: str = ""


@dataclass(frozen=True)
class Sample:
    """Some rows of one site.

    Attributes
    ----------
    norms
        float64 (rows,), of every row of the sampled windows.
    chosen
        int64, which of them are kept.
    rows
        float32 (chosen, width).
    targets
        What a dictionary is to make of them, float32 (chosen, width): the rows, or those of a transcoder's other site.
    """

    norms: NDArray[np.float64]
    chosen: NDArray[np.int64]
    rows: Rows
    targets: Rows

    @classmethod
    def of(cls, rows: Rows, targets: Rows | None = None) -> Sample:
        """Sample one window's rows, evenly spaced; `targets` are the rows themselves by default."""
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_OF_WINDOW)).astype(np.int64))
        return cls(
            np.linalg.norm(rows.astype(np.float64), axis=1),
            chosen,
            rows[chosen],
            (rows if targets is None else targets)[chosen],
        )

    @classmethod
    def join(cls, samples: Sequence[Sample]) -> Sample:
        """Put the samples of several windows one behind the other."""
        starts = np.cumsum([0, *(len(sample.norms) for sample in samples)])
        return cls(
            np.concatenate([sample.norms for sample in samples]),
            np.concatenate([sample.chosen + start for sample, start in zip(samples, starts, strict=False)]),
            np.concatenate([sample.rows for sample in samples]),
            np.concatenate([sample.targets for sample in samples]),
        )

    @property
    def threshold(self) -> float:
        """Norm above which a row is a sink."""
        return SINK_MULTIPLE * float(np.median(self.norms))


def calibration_rows(window_of_row: NDArray[np.int32]) -> list[slice]:
    """Return the rows of evenly spaced windows; the numbers of windows ascend.

    >>> calibration_rows(np.array([0, 0, 2, 2, 2], np.int32))
    [slice(0, 2, None), slice(2, 5, None)]
    """
    present = np.unique(window_of_row)
    chosen = np.unique(present[np.linspace(0, len(present) - 1, CALIBRATION_WINDOWS).astype(int)])
    first = np.searchsorted(window_of_row, chosen)
    stop = np.searchsorted(window_of_row, chosen, side="right")
    return [slice(int(i), int(j)) for i, j in zip(first, stop, strict=True)]


def judge(site: Site, sample: Sample, neighbours: Mapping[str, Sample], dictionary: Dictionary) -> Calibration:
    """Compute a site's sink threshold, FVU and L0, and the FVU of its neighbours.

    Some 1,000 rows of `sample` are kept, so that 3 × 4 × 1,000 × (width + n_features) bytes bound the memory. A
    neighbour that overflows is no better site. The FVU are of the dictionary's own output, also where its kind is
    ``pre_topk``; `l0` is of what is stored.
    """
    sink = sample.norms[sample.chosen] > sample.threshold
    error = sample.targets - dictionary.reconstruct(sample.rows)
    active = np.asarray((dictionary.encode(sample.rows) != 0).sum(axis=1)).ravel()
    fvu = variance_unexplained(sample.targets[~sink], error[~sink])
    finite = {name: other for name, other in neighbours.items() if _is_finite(other)}
    around = {name: _fvu_at(other, dictionary) for name, other in finite.items()}
    calibration = Calibration(
        threshold=sample.threshold,
        n_rows=len(sample.norms),
        n_sinks=int((sample.norms > sample.threshold).sum()),
        fvu=fvu,
        fvu_with_sinks=variance_unexplained(sample.targets, error),
        l0=float(active[~sink].mean()),
        neighbours=around,
        verdict=_verdict(site, dictionary, fvu, around) if dictionary.reconstructs else "",
    )
    _log(site, calibration, dictionary)
    return calibration


def _is_finite(sample: Sample) -> bool:
    return bool(np.isfinite(sample.rows).all() and np.isfinite(sample.targets).all())


def _fvu_at(sample: Sample, dictionary: Dictionary) -> float:
    """Return the fraction of variance unexplained, sinks excluded."""
    usual = sample.norms[sample.chosen] <= sample.threshold
    targets = sample.targets[usual]
    return variance_unexplained(targets, targets - dictionary.reconstruct(sample.rows[usual]))


def _verdict(site: Site, dictionary: Dictionary, fvu: float, neighbours: Mapping[str, float]) -> str:
    """Return why a dictionary does not belong to a site; nothing if it does."""
    best = min(neighbours, key=lambda name: neighbours[name], default=None)
    better = best is not None and fvu > max(NEIGHBOUR_FACTOR * neighbours[best], neighbours[best] + NEIGHBOUR_MARGIN)
    if fvu > 1:
        there = f"; at {best} it leaves {neighbours[best]:.3f}" if best is not None and better else ""
        return (
            f"The dictionary {dictionary.id} leaves {fvu:.2f} times the variance of {site.name} unexplained{there}: it "
            "belongs to another site, another model, or text with other special tokens (see prepend_bos)"
        )
    if best is not None and better:
        return (
            f"The dictionary {dictionary.id} leaves {fvu:.3f} of the variance of {site.name} unexplained, but only "
            f"{neighbours[best]:.3f} at {best}: its site is {best}, or the hook is off by one block"
        )
    return ""


def _log(site: Site, calibration: Calibration, dictionary: Dictionary) -> None:
    around = ", ".join(f"{fvu:.3f} at {name}" for name, fvu in calibration.neighbours.items())
    logger.info(
        "%s: FVU %.3f (%.3f with sinks%s), L0 %.1f, %d of %d sample rows above %.4g are sinks",
        site.name, calibration.fvu, calibration.fvu_with_sinks, f"; {around}" if around else "", calibration.l0,
        calibration.n_sinks, calibration.n_rows, calibration.threshold,
    )  # fmt: skip
    better = [name for name, fvu in calibration.neighbours.items() if calibration.fvu > _WORTH_SAYING * fvu]
    if better and not calibration.verdict:
        logger.warning("%s explains %s better than %s: is the hook off by one?", dictionary.id, better[0], site.name)


def refuse_bad_sites(calibrations: Mapping[str, Calibration], *, allowed: bool) -> None:
    """Raise an InputError that names all bad sites at once, or warn of them if they are `allowed`."""
    verdicts = [calibration.verdict for calibration in calibrations.values() if calibration.verdict]
    if verdicts and not allowed:
        raise InputError("\n".join([*verdicts, f"If this is meant: {_OVERRIDE}"]))
    for verdict in verdicts:
        logger.warning("%s; harvested all the same: allow_bad_site is set", verdict)


def variance_unexplained(rows: Rows, error: Rows) -> float:
    """Return the fraction of variance unexplained: Σ‖error‖² / Σ‖row − mean row‖², in float64.

    `rows` are activations, `error` activations minus their reconstruction; both (rows, d_model).

    >>> variance_unexplained(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32))
    0.0
    """
    exact = rows.astype(np.float64)
    total = float(np.square(exact - exact.mean(axis=0)).sum())
    unexplained = float(np.square(error.astype(np.float64)).sum())
    return unexplained / total if total else 0.0

"""What :mod:`benchmarks.crash` lets die: every stage and verb that writes, on small data."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import json
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.sparse

import pipeline
import storage
from benchmarks.toy import EXPERIMENT, make_inputs
from jobs.cli import app
from pipeline.work.share import Share

#: Runs something in the current folder, and returns the exit status. Its argument says whether a finished result that
#: came from other inputs or settings may be replaced.
Action = Callable[[bool], int]


@dataclass(frozen=True)
class Scenario:
    """A stage or verb that writes, and with which files it begins.

    Attributes
    ----------
    name
        Of the table's row.
    start
        Name of the folder that it begins with; see :data:`STARTS`.
    act
        Runs it.
    targets
        What it writes, below that folder.
    other
        The same with other settings; absent where it has none.
    step
        It dies at every operation whose number is a multiple: 1 but for what takes too long.
    """

    name: str
    start: str
    act: Action
    targets: tuple[str, ...]
    other: Action | None = None
    step: int = 1


def acted(action: Action, *, overwrite: bool) -> int:
    """Run an action; print an error on purpose as the command line does, and return its exit status."""
    try:
        return action(overwrite)
    except storage.SubspaceError as error:
        print(f"Error: {error}")
        return error.exit_code


#: Verbs over a run directory: they replace what they wrote there.
ALWAYS_OVERWRITE = ("run", "plan", "submit", "report", "scores", "semantics", "yardsticks")
#: Verbs without a scenario: why no death can leave anything of theirs.
WITHOUT_SCENARIO = {
    **dict.fromkeys(("status", "inspect", "verify", "feature", "doctor"), "it only reads"),
    **dict.fromkeys(("demo", "reproduce"), "it is `run`, with an experiment file that comes with the package"),
    **dict.fromkeys(("cluster up", "cluster down", "cluster status", "cluster job-script"), "it has no target"),
}


def verb(*words: str) -> Action:
    """Return an action that runs the ``subspace`` command."""

    def run(overwrite: bool) -> int:
        may = ["--overwrite"] if overwrite and words[0] not in ALWAYS_OVERWRITE else []
        try:
            app([*words, *may])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def then(*actions: Action) -> Action:
    """Return an action that runs some, one after the other."""
    return lambda overwrite: next((status for action in actions if (status := action(overwrite))), 0)


# --- stores -----------------------------------------------------------------------------------------------------------

ROWS, FEATURES = 150, {"a": 90, "b": 70}


def values(side: str, *, sparse: bool, scale: float = 1.0) -> Any:
    """Return (token, feature) activations of a side."""
    draw = np.random.default_rng(ord(side))
    dense = draw.normal(size=(ROWS, FEATURES[side])).astype("f4") * np.float32(scale)
    return scipy.sparse.csr_array(np.maximum(dense - 1.2 * scale, 0)) if sparse else dense


def tokens() -> dict[str, Any]:
    """Return the coordinates of the rows: 15 documents."""
    place = np.arange(ROWS)
    return {"document": place // 10, "position": place % 10, "char_start": place, "char_end": place + 1,
            "token_id": place % 23}  # fmt: skip


def write_store(path: str, side: str, *, sparse: bool, scale: float = 1.0) -> Action:
    """Return an action that writes a store at once."""

    def run(overwrite: bool) -> int:
        decoder = np.random.default_rng(0).normal(size=(FEATURES[side], 8))
        storage.write_activations(
            path, values(side, sparse=sparse, scale=scale), tokens=tokens(), decoder=decoder,
            attrs={"kind": "post", "model": side}, shard_rows=64, chunk=(32, 16), overwrite=overwrite,
        )  # fmt: skip
        return 0

    return run


def piecewise(scale: float) -> Action:
    """Return an action that writes a store shard by shard, and goes on with one that was begun."""

    def run(overwrite: bool) -> int:
        data = values("a", sparse=True, scale=scale)
        manifest = storage.new_manifest("harvest", {}, {"scale": scale})
        writer = storage.ActivationWriter.create(
            "a.zarr", n_tokens=ROWS, n_features=FEATURES["a"], tokens=tokens(), attrs={"kind": "post"},
            shard_rows=64, chunk=(32, 16), manifest=manifest, overwrite=overwrite,
        )  # fmt: skip
        for i in writer.missing():
            writer.write_shard(i, data[writer.shard_slice(i)], np.arange(len(range(ROWS)[writer.shard_slice(i)])) == 3)
        writer.finalise()
        return 0

    return run


def corpus(n: int) -> Action:
    """Return an action that writes a corpus."""

    def run(overwrite: bool) -> int:
        names = [str(i) for i in range(n)]
        storage.write_corpus("corpus.zarr", (f"document {i}" for i in names), names=names, overwrite=overwrite)
        return 0

    return run


# --- experiments ------------------------------------------------------------------------------------------------------

#: Environment variable with the folder of models and text.
INPUTS = "SUBSPACE_CRASH_INPUTS"
#: One site of each model and a dozen documents: a run of seconds.
SMALL = EXPERIMENT.replace("path: texts.jsonl,", "path: texts.jsonl, documents: 12,").replace(
    "[layers.0, layers.1]", "[layers.1]"
)
SMALL = SMALL.replace("[encoder.layer.0, encoder.layer.1]", "[encoder.layer.1]").replace(
    "shard_rows: 256", "shard_rows: 128"
)
#: A grid of two by one sites, for what is over grids.
GRID = SMALL.replace("[layers.1]", "[layers.0, layers.1]")
#: Other settings of each stage.
OTHERS = {
    "harvest": ("documents: 12", "documents: 9"),
    "correlate": ("top_k: 4", "top_k: 3"),
    "match": ("match: {", "match: {method: mutual, "),
    "compare": ("null_runs: 50", "null_runs: 40"),
    "semantics": ("null_runs: 20", "null_runs: 15"),
    "report": ("pairs: 5", "pairs: 4"),
}


#: Stages that an experiment has only where it asks for them.
FLOORS = """
rematch: {nulls: [NULL], draws: 1, fractions: []}
yardsticks: {use: [{name: NULL}]}
"""


def inputs() -> Path:
    """Return the folder of models and text: one for all, since its absolute path is a setting of what is made of it."""
    return Path(os.environ[INPUTS])


def toy(_: bool) -> int:
    """Make the models, the text and the experiment files."""
    make_inputs(inputs())
    for name, text in {"small": SMALL, "grid": GRID}.items():
        (inputs() / f"{name}.yaml").write_text(text, encoding="utf-8")
    for stage, (old, new) in OTHERS.items():
        assert old in SMALL
        (inputs() / f"{stage}.yaml").write_text(SMALL.replace(old, new), encoding="utf-8")
    for name, null in {"floors": "token", "other floors": "document"}.items():
        (inputs() / f"{name}.yaml").write_text(SMALL + FLOORS.replace("NULL", null), encoding="utf-8")
    return 0


def run_until(stage: str, experiment: str = "small", share: str | None = None) -> Action:
    """Return an action that runs an experiment up to a stage, without the record that `subspace run` makes."""

    def run(_: bool) -> int:
        mine = None if share is None else Share.parse(share)
        pipeline.run(inputs() / f"{experiment}.yaml", run_dir="run", until=stage, share=mine)
        return 0

    return run


def shares(stage: str, experiment: str = "small") -> Action:
    """Return an action that does a stage in two shares: it is begun, done in parts, and finished."""
    parts = [run_until(stage, experiment, share) for share in ("begin/2", "0/2", "1/2")]
    return then(*parts, run_until(stage, experiment))


def whole_run(experiment: str) -> Action:
    """Return an action that runs an experiment as users do."""
    return over_experiment("run", experiment)


def over_experiment(name: str, experiment: str, *words: str) -> Action:
    """Return an action that runs a verb over an experiment file and a run directory."""

    def run(overwrite: bool) -> int:
        return verb(name, str(inputs() / f"{experiment}.yaml"), "--run-dir", "run", *words)(overwrite)

    return run


def explorer(most: int) -> Action:
    """Return an action that makes the report, with its explorer in a folder where it has more bytes."""

    def run(overwrite: bool) -> int:
        page: Any = importlib.import_module("pipeline.report.explorer_page")
        page.MOST_INLINE = most
        return verb("report", "run")(overwrite)

    return run


def best_layers(*others: str) -> Action:
    """Return an action that finds each feature's best layer over the grid of a run."""

    def run(overwrite: bool) -> int:
        best_layer = importlib.import_module("pipeline.correlate.best_layer").best_layer
        sites = [(one, "encoder.layer.1") for one in ("layers.0", "layers.1") if one not in others]
        best_layer(
            {pair: f"run/correlation/{'--'.join(pair)}.zarr" for pair in sites}, "best.zarr", overwrite=overwrite
        )
        return 0

    return run


def streaming(*words: str) -> Action:
    """Return an action that correlates as where B does not fit the memory, in tiles."""

    def run(overwrite: bool) -> int:
        plan: Any = importlib.import_module("pipeline.correlate.plan")
        plan._methods = lambda _: ["streaming"]
        plan._with_strips = lambda _, ways, shape: plan._plan(ways[0], plan.Cut(32, 32), shape)
        plan._slab_rows = lambda *_: 64
        return verb(*CORRELATE, *words)(overwrite)

    return run


def narrow(*words: str) -> Action:
    """Return an action that correlates dense stores in panels of 32 features."""

    def run(overwrite: bool) -> int:
        plan: Any = importlib.import_module("pipeline.correlate.plan")
        plan._widths = lambda *_: iter([32])
        return verb(*CORRELATE, *words)(overwrite)

    return run


# --- an endpoint that labels ------------------------------------------------------------------------------------------


class _Labelling(http.server.BaseHTTPRequestHandler):
    """Answers as OpenAI's chat completions: every feature of the request gets a label."""

    def do_POST(self) -> None:
        """Answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        features = re.findall(r"^Feature (\d+)$", body["messages"][1]["content"], re.MULTILINE)
        content = json.dumps({feature: f"label {feature} by {body['model']}" for feature in features})
        answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


_SERVER = http.server.HTTPServer(("127.0.0.1", 0), _Labelling)


@contextlib.contextmanager
def labelling() -> Iterator[None]:
    """Answer requests for labels in a process of its own, for as long as the block lasts."""
    child = os.fork()
    if child == 0:
        try:
            _SERVER.serve_forever()
        except BaseException:  # noqa: BLE001 - this process must not go on where it was forked
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- what they begin with ---------------------------------------------------------------------------------------------


def nothing(_: bool) -> int:
    """Leave the folder empty."""
    return 0


def to_import(_: bool) -> int:
    """Write a store's values as other programs do."""
    dense = values("a", sparse=False)
    np.save("x.npy", dense)
    safetensors.numpy.save_file({"acts": dense}, "x.safetensors")
    np.savez("tokens.npz", **tokens())
    for name in ("npz", "h5ad", "zarr"):
        storage.export_activations("a.zarr", f"x.{name}", "npz" if name == "npz" else "anndata")
    return 0


def label_file(_: bool) -> int:
    """Write labels of features as a user does."""
    Path("labels.csv").write_text("feature,label\n3,cats\n17,days\n", encoding="utf-8")
    Path("others.csv").write_text("feature,label\n3,dogs\n", encoding="utf-8")
    return 0


def texts(_: bool) -> int:
    """Write two texts as users have them."""
    for name, n in {"text": 9, "others": 7}.items():
        Path(f"{name}.jsonl").write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(n)), encoding="utf-8")
    return 0


def second_run(_: bool) -> int:
    """Put a copy beside a run, which is compared with it."""
    shutil.copytree("run", "again")
    return 0


def without_scores(_: bool) -> int:
    """Take the table of all scores away."""
    shutil.rmtree("run/scores.zarr")
    for suffix in ("csv", "tex"):
        Path(f"run/scores.{suffix}").unlink()
    return 0


SPARSE = then(write_store("a.zarr", "a", sparse=True), write_store("b.zarr", "b", sparse=True))
DENSE = then(write_store("a.zarr", "a", sparse=False), write_store("b.zarr", "b", sparse=False))
CORRELATE = ("correlate", "a.zarr", "b.zarr", "--out", "c.zarr", "--top-k", "4", "--memory", "4GB")
STORE = "run/activations/a/layers.1.zarr"

#: Name → the folder that it is made from, and how.
STARTS: dict[str, tuple[str | None, Action]] = {
    "nothing": (None, nothing),
    "sparse": (None, SPARSE),
    "dense": (None, DENSE),
    "correlated": ("sparse", verb(*CORRELATE)),
    "matched": ("correlated", verb("match", "c.zarr", "--out", "pairs.zarr")),
    "to import": ("sparse", to_import),
    "labels": (None, label_file),
    "texts": (None, texts),
    "toy": (None, toy),
    "harvested": ("toy", run_until("harvest")),
    "correlated run": ("harvested", run_until("correlate")),
    "matched run": ("correlated run", run_until("match")),
    "compared run": ("matched run", run_until("compare")),
    "run": ("compared run", run_until("semantics")),
    "two runs": ("run", second_run),
    "rematched run": ("compared run", run_until("rematch", "floors")),
    "not scored": ("run", without_scores),
    "grid": ("toy", run_until("match", "grid")),
}


def of_verb(start: str, words: str, more: str, *targets: str, name: str | None = None, over: str = "") -> Scenario:
    """Return the scenario of a verb; `more` are options that change its settings, or replace the words `over`."""
    other = f"{words.replace(over, more)}" if over else f"{words} {more}"
    another = verb(*other.split()) if more else None
    return Scenario(name or words.split(maxsplit=1)[0], start, verb(*words.split()), targets, another)


def of_stage(stage: str, start: str, *, experiment: str = "small", other: str | None = None) -> Scenario:
    """Return the scenario of a stage of an experiment; `other` is that of other settings, named after the stage."""
    act, another = run_until(stage, experiment), run_until(stage, other or stage)
    return Scenario(f"run --until {stage}", start, act, ("run",), another)


def of_export(name: str, fmt: str) -> Scenario:
    """Return the scenario of an export."""
    words = f"export a.zarr --format {fmt} --out out.{name}"
    # nothing in a .npy file says that it is ours, so it stays
    other = "" if name == "npy" else "b.zarr"
    return of_verb("sparse", words, other, f"out.{name}", name=f"export, {name}", over="a.zarr")


def of_import(name: str, more: str) -> Scenario:
    """Return the scenario of an import."""
    words = f"import x.{name} --out out.zarr --tokens tokens.npz {more}"
    return of_verb("to import", words, "--dtype float64", "out.zarr", name=f"import, {name}")


def in_place(whole_again: bool) -> Action:
    """Return an action that writes as no stage may: a file in its place, which is taken for whole once it is there."""

    def run(_: bool) -> int:
        path = Path("in-place.txt")
        if whole_again or not path.exists():
            with path.open("w", encoding="utf-8") as file:
                file.write("one ")
                file.flush()
                file.write("two ")
        return 0

    return run


#: What must not come out well, so that it is known that deaths do happen and are judged.
CONTROL = Scenario("written in place", "nothing", in_place(whole_again=False), ("in-place.txt",))

SCENARIOS: list[Scenario] = [
    Scenario("write_activations, csr", "nothing", write_store("a.zarr", "a", sparse=True), ("a.zarr",),
             write_store("a.zarr", "a", sparse=True, scale=2)),
    Scenario("write_activations, dense", "nothing", write_store("a.zarr", "a", sparse=False), ("a.zarr",),
             write_store("a.zarr", "a", sparse=False, scale=2)),
    Scenario("ActivationWriter", "nothing", piecewise(1), ("a.zarr",), piecewise(2)),
    Scenario("write_corpus", "nothing", corpus(9), ("corpus.zarr",), corpus(7)),
    of_import("npy", "--kind raw"),
    of_import("npz", ""),
    of_import("safetensors", "--kind raw"),
    of_import("h5ad", ""),
    of_import("zarr", ""),
    of_export("npy", "npy"),
    of_export("npz", "npz"),
    of_export("h5ad", "anndata"),
    of_export("zarr", "anndata"),
    Scenario("correlate", "sparse", verb(*CORRELATE), ("c.zarr",), verb(*CORRELATE, "--keep-above", "0.2")),
    Scenario("correlate, streaming", "sparse", streaming(), ("c.zarr",), streaming("--keep-above", "0.2")),
    Scenario("correlate, dense", "dense", narrow(), ("c.zarr",), narrow("--keep-above", "0.2")),
    Scenario("correlate, ranks", "sparse", narrow("--measure", "spearman"), ("c.zarr",),
             narrow("--measure", "spearman", "--top-k", "3")),
    Scenario("correlate, full", "sparse", verb(*CORRELATE, "--full", "float32"), ("c.zarr",),
             verb(*CORRELATE, "--full", "float16")),
    of_verb("correlated", "match c.zarr --out p.zarr --csv p.csv", "--method mutual", "p.zarr", "p.csv"),
    of_verb("matched", "compare pairs.zarr a.zarr b.zarr --metric svcca:k=4 --metric rsa --null-runs 9 --out s.zarr",
            "--seed 1", "s.zarr"),
    of_verb("matched", "compare-activations a.zarr b.zarr --null-runs 9 --out s.zarr", "--seed 1", "s.zarr"),
    of_verb("matched", "intervals pairs.zarr a.zarr b.zarr --out i.zarr", "--level 0.9", "i.zarr"),
    of_verb("matched", "convergence pairs.zarr a.zarr b.zarr --out v.zarr --plot v.png", "--threshold 0.3",
            "v.zarr", "v.png"),
    of_verb("matched", "token-identity pairs.zarr a.zarr b.zarr --out t.zarr", "", "t.zarr"),
    of_verb("matched", "rematch pairs.zarr c.zarr a.zarr b.zarr --null document --draws 2 --out r.zarr",
            "--seed 1", "r.zarr"),
    of_verb("correlated", "sweep c.zarr --out w.zarr --csv w.csv --plot w.png", "--max-uses 1,5",
            "w.zarr", "w.csv", "w.png"),
    of_verb("grid", "layers run --out l.zarr --csv l.csv", "--side b", "l.zarr", "l.csv"),
    Scenario("best_layer", "grid", best_layers(), ("best.zarr", "best_a.csv", "best_b.csv"), best_layers("layers.0")),
    of_verb("harvested", f"contexts {STORE} --top-n 5 --out x.zarr", "--distinct-documents", "x.zarr"),
    of_verb("run", f"concepts {STORE} --only animals --rule count:at_least=1:of=4 --out k.zarr",
            "pmi:at_least=1", "k.zarr", over="count:at_least=1:of=4"),
    of_verb("run", f"non-concept {STORE} --out n.zarr", "--limit punctuation=0.8", "n.zarr"),
    of_verb("texts", "corpus text.jsonl --out k.zarr", "others.jsonl", "k.zarr", over="text.jsonl"),
    of_verb("two runs", "diff run again --out d.zarr --csv d.csv --plot d.png", "again run", "d.zarr", "d.csv", "d.png",
            over="run again"),
    of_verb("labels", "labels labels.csv --out l.zarr", "others.csv", "l.zarr", over="labels.csv"),
    of_verb("run", f"label {STORE} --endpoint http://127.0.0.1:{_SERVER.server_port}/v1 --model toy --yes --batch 2 "
            "--feature 3 --feature 4 --feature 5 --feature 6 --feature 7 --parallel 1 --out l.zarr",
            "tiny", "l.zarr", over="toy"),
    of_verb("not scored", "scores run", "", "run/scores.zarr", "run/scores.csv", "run/scores.tex"),
    Scenario("report, inline", "run", explorer(10**9), ("run/report.html",), explorer(0)),
    Scenario("report, folder", "run", explorer(0), ("run/report.html", "run/explorer/1.html"), explorer(10**9)),
    Scenario("report --figures", "run", verb("report", "run", "--figures", "paper", "--format", "png"), ("paper",)),
    of_stage("harvest", "toy"),
    Scenario("harvest, shares", "toy", shares("harvest"), ("run",), run_until("harvest")),
    of_stage("correlate", "harvested"),
    Scenario("correlate, shares", "harvested", shares("correlate"), ("run",), shares("correlate", "correlate")),
    of_stage("match", "correlated run"),
    of_stage("compare", "matched run"),
    of_stage("rematch", "compared run", experiment="floors", other="other floors"),
    of_stage("semantics", "compared run"),
    of_stage("yardsticks", "rematched run", experiment="floors", other="other floors"),
    of_stage("report", "run"),
    of_verb("compared run", "semantics run", "--approach global", "run"),
    of_verb("run", "yardsticks run --yardstick random_directions", "random_directions:seed=1", "run",
            over="random_directions"),
    of_verb("run", "neurons run --run-dir units --csv n.csv --plot n.png", "", "units", "n.csv", "n.png"),
    Scenario("plan", "toy", over_experiment("plan", "small"), ("run",), over_experiment("plan", "harvest")),
    Scenario("submit", "toy", over_experiment("submit", "small", "--array", "2", "--dry-run"), ("run",),
             over_experiment("submit", "small", "--array", "3", "--dry-run")),
    Scenario("run", "toy", whole_run("small"), ("run",), whole_run("match"), step=20),
]  # fmt: skip

"""The verbs of ``subspace``: the command imports the module of a verb only to run it or to show its help.

To add a verb, write a function whose parameters are its options, name it in :data:`TARGETS`, and give examples.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

#: The first part of the list of verbs.
EXPERIMENT = "A whole experiment"
#: ``module:function`` of each verb, by the part of the list that it is in; those of a group of verbs, named after it,
#: are a list of their own without parts.
TARGETS: dict[str | None, dict[str, str]] = {
    EXPERIMENT: {
        "run": "jobs.verbs.run:run_command",
        "plan": "jobs.verbs.plan:command",
        "status": "jobs.verbs.status:command",
        "submit": "jobs.verbs.cluster:submit_command",
        "report": "pipeline.report.__main__:command",
        "scores": "jobs.verbs.scores:command",
        "reproduce": "jobs.verbs.reproduce:command",
        "neurons": "jobs.verbs.neurons:command",
        "demo": "jobs.verbs.run:demo_command",
        "doctor": "jobs.verbs.doctor:command",
    },
    None: {
        "cluster up": "jobs.verbs.cluster:up_command",
        "cluster down": "jobs.verbs.cluster:down_command",
        "cluster status": "jobs.verbs.cluster:status_command",
        "cluster job-script": "jobs.verbs.cluster:job_script_command",
    },
    "Stages": {
        "harvest": "pipeline.harvest.__main__:command",
        "correlate": "pipeline.correlate.__main__:command",
        "match": "pipeline.match.__main__:command",
        "rematch": "pipeline.rematch.__main__:command",
        "compare": "pipeline.compare.__main__:command",
        "semantics": "pipeline.semantics.__main__:command",
    },
    "A closer look": {
        "intervals": "pipeline.correlate.verbs:intervals_command",
        "convergence": "pipeline.correlate.verbs:convergence_command",
        "sweep": "jobs.verbs.match:sweep_command",
        "token-identity": "jobs.verbs.match:token_identity_command",
        "layers": "jobs.verbs.match:layers_command",
        "yardsticks": "pipeline.yardsticks.__main__:command",
        "diff": "jobs.verbs.diff:command",
        "feature": "jobs.verbs.feature:command",
        "compare-activations": "pipeline.compare.verbs:activations_command",
        "contexts": "jobs.verbs.concepts:contexts_command",
        "concepts": "jobs.verbs.concepts:concepts_command",
        "non-concept": "jobs.verbs.concepts:non_concept_command",
        "label": "jobs.verbs.concepts:label_command",
        "labels": "jobs.verbs.concepts:labels_command",
    },
    "Stores and results": {
        "inspect": "jobs.verbs.stores:inspect_command",
        "verify": "jobs.verbs.stores:verify_command",
        "import": "jobs.verbs.stores:import_command",
        "corpus": "jobs.verbs.stores:corpus_command",
        "export": "jobs.verbs.stores:export_command",
    },
}

#: Commands that the help of the verb at their beginning ends with, without ``subspace``.
EXAMPLES = """
run experiment.yaml
run experiment.yaml --run-dir results --cluster slurm-cpu
run experiment.yaml --until match
run experiment.yaml --cluster night
plan experiment.yaml
plan experiment.yaml --calibrate --json
plan experiment.yaml --cluster slurm-cpu
plan experiment.yaml --gpu h100
status runs/pythia-70m-vs-160m
status experiment.yaml --json
submit experiment.yaml --cluster slurm-cpu
submit experiment.yaml --array 16
submit experiment.yaml --cluster slurm-gpu --cluster-file mine.yaml --dry-run
report runs/pythia-70m-vs-160m
scores runs/pythia-70m-vs-160m
scores runs/pythia-70m-vs-160m --latex > scores.tex
scores runs/pythia-70m-vs-160m --csv
reproduce --list
reproduce pythia --cluster slurm-gpu --run-dir runs/pythia
reproduce pythia --show > mine.yaml
reproduce pythia --experiment mine.yaml --run-dir runs/mine
reproduce pythia --table --run-dir runs/pythia --json
neurons runs/pythia-70m-vs-160m --plot neurons.png
neurons runs/pythia-70m-vs-160m --run-dir runs/neurons --csv neurons.csv --json
demo
demo --run-dir somewhere --json
demo --yardsticks
doctor
doctor --cluster-file my-cluster.yaml --json
cluster up night --profile slurm-cpu
cluster down night
cluster status
cluster status night --json
cluster job-script slurm-gpu
cluster job-script slurm-cpu --cluster-file mine.yaml > worker.sbatch
harvest experiment.yaml
harvest experiment.yaml --allow-bad-site
correlate A.zarr B.zarr --out C.zarr
correlate A.zarr B.zarr --top-k 16 --keep-above 0.2 --select all --memory 4GB --out C.zarr
correlate A.zarr B.zarr --measure jaccard --out which-fire-together.zarr
match C.zarr --out pairs.zarr --method greedy --min-correlation 0.2 --csv pairs.csv
match C.zarr --all
match C.zarr --out pairs.zarr --check-on A2.zarr B2.zarr
match C.zarr --out pairs.zarr --filter max_uses:n=100 --filter min_heldout_r:after:value=0.2
match C.zarr --out pairs.zarr --filter non_concept --contexts CA.zarr CB.zarr --stores A.zarr B.zarr \
--corpus corpus.zarr --hubs 10
compare pairs.zarr A.zarr B.zarr --metric svcca --out scores.zarr
compare pairs.zarr A.zarr B.zarr --metric svcca:k=20 --metric rsa --intervals 20 --out scores.zarr
compare concept.zarr A.zarr B.zarr --null random_pairs --pool pairs.zarr --out scores.zarr
semantics runs/pythia-70m-vs-160m
semantics runs/pythia-70m-vs-160m --concepts default --concepts mine.yaml --approach global --json
semantics runs/pythia-70m-vs-160m --clusters 20 --embedding gensim:vectors.txt
intervals pairs.zarr A.zarr B.zarr --out intervals.zarr
intervals pairs.zarr A.zarr B.zarr --level 0.9 --out intervals.zarr --json
convergence pairs.zarr A.zarr B.zarr --out convergence.zarr
convergence C.zarr A.zarr B.zarr --threshold 0.3 --plot convergence.png --out convergence.zarr
rematch pairs.zarr C.zarr A.zarr B.zarr --corpus corpus.zarr --out rematched.zarr
rematch pairs.zarr C.zarr A.zarr B.zarr --null document --draws 100 --metric rsa --out chance.zarr --json
sweep C.zarr --out sweep.zarr --csv sweep.csv --plot sweep.svg
sweep C.zarr --out sweep.zarr --max-uses 1,5,100 --stores A.zarr B.zarr --metric svcca --metric rsa
token-identity pairs.zarr A.zarr B.zarr --out identity.zarr
token-identity pairs.zarr A.zarr B.zarr --corpus corpus.zarr --previous --out identity.zarr --json
layers runs/pythia-70m-vs-160m --csv layers.csv
yardsticks runs/pythia-70m-vs-160m
yardsticks runs/pythia-70m-vs-160m --yardstick token --json \
--yardstick 'other_dictionary:a=seed-1/{site}:b=seed-2/{site}'
diff runs/seed-0 runs/seed-1
diff runs/seed-0 runs/seed-1 runs/seed-2 --out diff.zarr --csv diff.csv --plot diff.png
compare-activations A.zarr B.zarr --metric svcca --metric cka --out scores.zarr
compare-activations A.zarr B.zarr --pairs pairs.zarr --intervals 500 --out scores.zarr --json
feature runs/demo layers.10 17
feature runs/demo b:layers.10 17 --candidates 16 --json
contexts runs/demo/activations/a/layers.10.zarr --feature 17 --feature 256
contexts A.zarr --feature 17 --corpus corpus.zarr --contexts CA.zarr --labels labels.zarr --json
contexts A.zarr --top-n 20 --distinct-documents --out CA.zarr
concepts runs/demo/activations/a/layers.10.zarr --out concepts.zarr
concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --rule pmi:at_least=3 --out concepts.zarr
concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --concepts default --concepts mine.yaml --out concepts.zarr
non-concept runs/demo/activations/a/layers.10.zarr --out non-concept.zarr
non-concept A.zarr --contexts CA.zarr --corpus corpus.zarr --kind punctuation --limit punctuation=0.8 \
--out non-concept.zarr
label A.zarr --endpoint http://localhost:8000/v1 --model NAME --feature 17 --out labels.zarr
label A.zarr --endpoint https://HOST/v1 --model NAME --pairs pairs.zarr --yes --out labels.zarr
labels labels.csv --store A.zarr --out labels.zarr
labels explanations/ --method gpt-4o-mini --out labels.zarr
inspect A.zarr
inspect runs/pythia-70m-vs-160m --json
verify A.zarr C.zarr
verify runs/pythia-70m-vs-160m --threads 8 --json
import activations.npz --decoder W_dec.npy --tokens rows.csv --kind post --out A.zarr
import cached_activations/ --drop-token 0 --out A.zarr
import cells.h5ad --key counts --out A.zarr
import a.npy --tokens tokens.jsonl --out A.zarr
import a.npy --documents document_of_row.npy --out A.zarr
corpus tokens.jsonl --out corpus.zarr
corpus texts.jsonl --column body --group article --out corpus.zarr --json
export A.zarr --format anndata --out A.h5ad
export A.zarr --format npz --out A.npz --json
"""


class Verb(NamedTuple):
    """One verb of the command line: its name as it is typed, its target and its part of the list of verbs."""

    name: str
    target: str
    panel: str | None

    @property
    def summary(self) -> str:
        """The first line of the docstring of its function, which is not imported for that."""
        module, _, function = self.target.partition(":")
        source = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        match = re.search(rf'^def {function}\(.*?^    """(.+?)(?:"""|\n)', source, flags=re.DOTALL | re.MULTILINE)
        return match[1] if match else ""

    @property
    def examples(self) -> list[str]:
        """Commands that its help ends with."""
        return [line for line in EXAMPLES.splitlines() if f"{line} ".startswith(f"{self.name} ")]


VERBS = tuple(Verb(name, target, panel) for panel, targets in TARGETS.items() for name, target in targets.items())

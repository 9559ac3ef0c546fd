"""The verbs of ``subspace``, as data: the command imports the module of a verb only to run it or to show its help.

To add a verb, write a function whose parameters are its options, and name it here.
"""

from __future__ import annotations

from typing import NamedTuple

# the parts of the list of verbs
EXPERIMENT = "A whole experiment"
STAGES = "Its stages"
CLOSER = "A closer look"
STORES = "Stores and results"
#: The verbs of `subspace cluster` are a list of their own, without parts.
CLUSTER = None


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes
    ----------
    name
        As it is typed; of a verb of a group, after the group's name.
    target
        ``module:function``.
    panel
        The part of the list of verbs that it is in.
    summary
        Its line in the list of verbs: the first of the function's docstring.
    examples
        Commands that its help ends with, without ``subspace``.
    """

    name: str
    target: str
    panel: str | None
    summary: str
    examples: tuple[str, ...]


VERBS = (
    Verb(
        "run",
        "jobs.verbs.run:run_command",
        EXPERIMENT,
        "Run an experiment from text to report, or go on with it where it stopped.",
        (
            "run experiment.yaml",
            "run experiment.yaml --run-dir results --cluster slurm-cpu",
            "run experiment.yaml --until match",
        ),
    ),
    Verb(
        "plan",
        "jobs.verbs.plan:command",
        EXPERIMENT,
        "Say what an experiment will take: rows, tasks, operations, disk, memory of a worker, and time.",
        (
            "plan experiment.yaml",
            "plan experiment.yaml --calibrate --json",
            "plan experiment.yaml --cluster slurm-cpu",
        ),
    ),
    Verb(
        "status",
        "jobs.verbs.status:command",
        EXPERIMENT,
        "Say what of an experiment is done, what a run would do next, and why. Nothing is computed.",
        (
            "status runs/pythia-70m-vs-160m",
            "status experiment.yaml --json",
        ),
    ),
    Verb(
        "submit",
        "jobs.verbs.cluster:submit_command",
        EXPERIMENT,
        "Submit a run: its driver as a small job that submits the workers, or as job arrays without a scheduler.",
        (
            "submit experiment.yaml --cluster slurm-cpu",
            "submit experiment.yaml --array 16",
            "submit experiment.yaml --cluster slurm-gpu --cluster-file mine.yaml --dry-run",
        ),
    ),
    Verb(
        "report",
        "pipeline.report.__main__:command",
        EXPERIMENT,
        "Write report.html, pairs.csv and scores.csv from stored results; nothing is computed again.",
        ("report runs/pythia-70m-vs-160m",),
    ),
    Verb(
        "scores",
        "jobs.verbs.scores:command",
        EXPERIMENT,
        "Print all scores of a run, each beside its chance, with p corrected for their number.",
        (
            "scores runs/pythia-70m-vs-160m",
            "scores runs/pythia-70m-vs-160m --latex > scores.tex",
            "scores runs/pythia-70m-vs-160m --csv",
        ),
    ),
    Verb(
        "reproduce",
        "jobs.verbs.reproduce:command",
        EXPERIMENT,
        "Run a published experiment again, and print the published numbers beside ours. Needs the model hub.",
        (
            "reproduce --list",
            "reproduce pythia --cluster slurm-cuda --run-dir runs/pythia",
            "reproduce pythia --show > mine.yaml",
            "reproduce pythia --experiment mine.yaml --run-dir runs/mine",
            "reproduce pythia --table --run-dir runs/pythia --json",
        ),
    ),
    Verb(
        "demo",
        "jobs.verbs.run:demo_command",
        EXPERIMENT,
        "Compare SmolLM2-135M with all-MiniLM-L6-v2, from weights that come as Python packages; no model hub.",
        (
            "demo",
            "demo --run-dir somewhere --json",
        ),
    ),
    Verb(
        "doctor",
        "jobs.verbs.doctor:command",
        EXPERIMENT,
        "Check this computer: packages, memory, disk, Slurm, GPU, model hub; and say what to do.",
        (
            "doctor",
            "doctor --cluster-file my-cluster.yaml --json",
        ),
    ),
    Verb(
        "cluster up",
        "jobs.verbs.cluster:up_command",
        CLUSTER,
        "Start a cluster that goes on when this command ends; `--cluster NAME` joins it.",
        (
            "cluster up night --profile slurm-cpu",
            "run experiment.yaml --cluster night",
        ),
    ),
    Verb(
        "cluster down",
        "jobs.verbs.cluster:down_command",
        CLUSTER,
        "End a cluster: exactly the processes and jobs that it started, also after a crash.",
        ("cluster down night",),
    ),
    Verb(
        "cluster status",
        "jobs.verbs.cluster:status_command",
        CLUSTER,
        "Show clusters that were started: scheduler, workers, jobs, and the way to the dashboard.",
        (
            "cluster status",
            "cluster status night --json",
        ),
    ),
    Verb(
        "cluster job-script",
        "jobs.verbs.cluster:job_script_command",
        CLUSTER,
        "Print the script of a profile's worker jobs, and submit nothing.",
        (
            "cluster job-script slurm-gpu",
            "cluster job-script slurm-cpu --cluster-file mine.yaml > worker.sbatch",
        ),
    ),
    Verb(
        "harvest",
        "pipeline.harvest.__main__:command",
        STAGES,
        "Read the text with both models and write one activation store a site.",
        (
            "harvest experiment.yaml",
            "harvest experiment.yaml --allow-bad-site",
        ),
    ),
    Verb(
        "correlate",
        "pipeline.correlate.__main__:command",
        STAGES,
        "Correlate every feature of A with every feature of B, exactly and in bounded memory.",
        (
            "correlate A.zarr B.zarr --out C.zarr",
            "correlate A.zarr B.zarr --top-k 16 --keep-above 0.2 --select all --memory 4GB --out C.zarr",
            "correlate A.zarr B.zarr --measure jaccard --out which-fire-together.zarr",
        ),
    ),
    Verb(
        "match",
        "pipeline.match.__main__:command",
        STAGES,
        "Choose pairs of features from the kept correlations, exactly.",
        (
            "match C.zarr --out pairs.zarr --method greedy --min-correlation 0.2 --csv pairs.csv",
            "match C.zarr --all",
            "match C.zarr --out pairs.zarr --filter max_uses:n=100 --filter min_heldout_r:after:value=0.2",
            "match C.zarr --out pairs.zarr --filter non_concept --contexts CA.zarr CB.zarr --stores A.zarr B.zarr "
            "--corpus corpus.zarr --hubs 10",
        ),
    ),
    Verb(
        "compare",
        "pipeline.compare.__main__:command",
        STAGES,
        "Score the similarity of the matched spaces, each score beside its nulls.",
        (
            "compare pairs.zarr A.zarr B.zarr --metric svcca --out scores.zarr",
            "compare pairs.zarr A.zarr B.zarr --metric svcca:k=20 --metric rsa --intervals 500 --out scores.zarr",
            "compare concept.zarr A.zarr B.zarr --null random_pairs --pool pairs.zarr --out scores.zarr",
        ),
    ),
    Verb(
        "semantics",
        "pipeline.semantics.__main__:command",
        STAGES,
        "Find the subspaces of concepts in a run and test whether both models arrange them alike.",
        (
            "semantics runs/pythia-70m-vs-160m",
            "semantics runs/pythia-70m-vs-160m --concepts default --concepts mine.yaml --approach global --json",
            "semantics runs/pythia-70m-vs-160m --clusters 20 --embedding gensim:vectors.txt",
        ),
    ),
    Verb(
        "bootstrap",
        "pipeline.correlate.verbs:bootstrap_command",
        CLOSER,
        "Say how sure r of each pair is: intervals from documents drawn with replacement.",
        (
            "bootstrap pairs.zarr A.zarr B.zarr --out intervals.zarr",
            "bootstrap pairs.zarr A.zarr B.zarr --runs 2000 --level 0.9 --out intervals.zarr --json",
        ),
    ),
    Verb(
        "convergence",
        "pipeline.correlate.verbs:convergence_command",
        CLOSER,
        "Say whether enough text was harvested: whether r of the pairs settles as documents come in.",
        (
            "convergence pairs.zarr A.zarr B.zarr --out convergence.zarr",
            "convergence C.zarr A.zarr B.zarr --threshold 0.3 --plot convergence.png --out convergence.zarr",
        ),
    ),
    Verb(
        "sweep",
        "jobs.verbs.match:sweep_command",
        CLOSER,
        "Match at every combination of minimum r and maximum uses; count, score, draw.",
        (
            "sweep C.zarr --out sweep.zarr --csv sweep.csv --plot sweep.svg",
            "sweep C.zarr --out sweep.zarr --max-uses 1,5,100 --stores A.zarr B.zarr --metric svcca --metric rsa",
        ),
    ),
    Verb(
        "token-identity",
        "jobs.verbs.match:token_identity_command",
        CLOSER,
        "Split each pair's r into what the token's identity explains and the rest.",
        ("token-identity pairs.zarr A.zarr B.zarr --out identity.zarr",),
    ),
    Verb(
        "layers",
        "jobs.verbs.match:layers_command",
        CLOSER,
        "Show at which sites of the other model each feature finds its match, and its best one.",
        ("layers runs/pythia-70m-vs-160m --csv layers.csv",),
    ),
    Verb(
        "compare-activations",
        "pipeline.compare.verbs:activations_command",
        CLOSER,
        "Score how alike activations are over the same tokens: two stores, or the features of matched pairs.",
        (
            "compare-activations A.zarr B.zarr --metric svcca --metric cka --out scores.zarr",
            "compare-activations A.zarr B.zarr --pairs pairs.zarr --intervals 500 --out scores.zarr --json",
        ),
    ),
    Verb(
        "contexts",
        "jobs.verbs.concepts:contexts_command",
        CLOSER,
        "Show the text in which features fire, each token shaded by its activation; or make the contexts of a store.",
        (
            "contexts runs/demo/activations/a/layers.10.zarr --feature 17 --feature 256",
            "contexts A.zarr --feature 17 --corpus corpus.zarr --contexts CA.zarr --labels labels.zarr --json",
            "contexts A.zarr --top-n 20 --distinct-documents --out CA.zarr",
        ),
    ),
    Verb(
        "concepts",
        "jobs.verbs.concepts:concepts_command",
        CLOSER,
        "Find the features that fire on the words of each concept.",
        (
            "concepts runs/demo/activations/a/layers.10.zarr --out concepts.zarr",
            "concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --rule pmi:at_least=3 --out concepts.zarr",
            "concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --concepts default --concepts mine.yaml "
            "--out concepts.zarr",
        ),
    ),
    Verb(
        "non-concept",
        "jobs.verbs.concepts:non_concept_command",
        CLOSER,
        "List the features that stand for no meaning: punctuation, blanks, beginnings, positions, always on.",
        (
            "non-concept runs/demo/activations/a/layers.10.zarr --out non-concept.zarr",
            "non-concept A.zarr --contexts CA.zarr --corpus corpus.zarr --kind punctuation --limit punctuation=0.8 "
            "--out non-concept.zarr",
        ),
    ),
    Verb(
        "label",
        "jobs.verbs.concepts:label_command",
        CLOSER,
        "Label features through an endpoint that you name; prints what it will cost and asks before it sends anything.",
        (
            "label A.zarr --endpoint http://localhost:8000/v1 --model NAME --feature 17 --out labels.zarr",
            "label A.zarr --endpoint https://HOST/v1 --model NAME --pairs pairs.zarr --yes --out labels.zarr",
        ),
    ),
    Verb(
        "labels",
        "jobs.verbs.concepts:labels_command",
        CLOSER,
        "Bring labels of features in that were made elsewhere.",
        (
            "labels labels.csv --store A.zarr --out labels.zarr",
            "labels explanations/ --method gpt-4o-mini --out labels.zarr",
        ),
    ),
    Verb(
        "inspect",
        "jobs.verbs.stores:inspect_command",
        STORES,
        "Show what a store, a result or a run holds: size, density, dead features, completeness, origin.",
        (
            "inspect A.zarr",
            "inspect runs/pythia-70m-vs-160m --json",
        ),
    ),
    Verb(
        "verify",
        "jobs.verbs.stores:verify_command",
        STORES,
        "Read every chunk, check its checksum and structure, and compute hashes and statistics again.",
        (
            "verify A.zarr C.zarr",
            "verify runs/pythia-70m-vs-160m --threads 8 --json",
        ),
    ),
    Verb(
        "import",
        "jobs.verbs.stores:import_command",
        STORES,
        "Make an activation store from what other programs wrote, a slab at a time.",
        (
            "import activations.npz --decoder W_dec.npy --tokens rows.csv --kind post --out A.zarr",
            "import cached_activations/ --drop-token 0 --out A.zarr",
            "import cells.h5ad --key counts --out A.zarr",
        ),
    ),
    Verb(
        "export",
        "jobs.verbs.stores:export_command",
        STORES,
        "Write an activation store for other programs; a sparse store stays sparse.",
        (
            "export A.zarr --format anndata --out A.h5ad",
            "export A.zarr --format npz --out A.npz --json",
        ),
    ),
)

"""Hostile settings, hostile files, damaged stores: what a person sees of each, through the command itself.

::

    python -m benchmarks.hostile                 # all cases
    python -m benchmarks.hostile --share 0.05    # a sample of every group
    python -m benchmarks.hostile | tail -n 1 > benchmarks/results/hostile/hostile.json
    python -m benchmarks.hostile --markdown      # the table of docs/faults.md from that

Three groups of cases, drawn with a seed: *settings* (experiment and cluster files in YAML), *imports* (every format
that ``subspace import`` reads, decoders, token tables), and *damages* (files of a run's stores and results that are
cut, flipped, lost, swapped, edited), the last by verbs that read what is damaged. Each case runs the command in a
process of its own, forked from one that has imported everything, and is judged by what came of it:

=================  ====================================================================================================
``traceback``      a traceback, the exit status of a bug, or a signal
``silently_wrong`` the status of success, and another output than that of undamaged files, or for what must be refused;
                   for ``verify``, the status of success over damage that changes what is read
``hang``           longer than 10 s, on a machine that is no busier than it has cores
``memory``         more than 1 GB at the peak
=================  ====================================================================================================

The last line is one JSON object with these counts by group, and each case that counted.
"""

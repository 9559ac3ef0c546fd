"""Bad input, too little memory, too many pairs, and runs that die on the way."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import storage

run = importlib.import_module("pipeline.correlate.run")
plan_module = importlib.import_module("pipeline.correlate.plan")


@pytest.fixture
def case(make_case, values):
    rng = np.random.default_rng(0)
    x = values(rng, 300, 80, 0.1)
    return make_case(x, x + values(rng, 300, 80, 0.05))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, r"top_k: .* greater than or equal to 1 \(given: 0\)"),
        ({"top_k": 257}, r"top_k: .* less than or equal to 256 \(given: 257\)"),
        ({"keep_above": 0}, "keep_above: .* greater than 0"),
        ({"keep_above": 1.5}, "keep_above: .* less than or equal to 1"),
        ({"select": "third"}, "select: .* 'half' or 'all'"),
        ({"kernel": "quantum"}, "kernel: .* 'sparse' or 'dense' .*quantum"),
        ({"memory": "a lot"}, "memory must be a number of bytes"),
        ({"memory": -1}, "memory must be a number of bytes"),
    ],
)
def test_bad_settings_are_named(case, client, arguments, message):
    with pytest.raises(storage.InputError, match=message):
        case.correlate(client=client, **arguments)
    assert not (case.folder / "cor.zarr").exists()
    assert not storage.partial_path(case.folder / "cor.zarr").exists()


def test_missing_store(case, client, tmp_path):
    with pytest.raises(storage.MissingInputError, match=r"nowhere\.zarr"):
        run.correlate(tmp_path / "nowhere.zarr", case.b, client=client)


def test_different_rows_are_an_error_that_names_the_first(make_case, client, values):
    rng = np.random.default_rng(1)
    x = values(rng, 50, 5, 0.5)
    one = make_case(x, x, documents=np.arange(50) // 5)
    two = make_case(x, x, documents=np.arange(50) // 6)
    with pytest.raises(storage.RowMismatchError, match="row 5 on"):
        run.correlate(one.a, two.b, client=client, out=one.folder / "cor.zarr")


def test_too_few_rows(make_case, client):
    with pytest.raises(storage.InputError, match="at least 2"):
        make_case(np.eye(2), np.eye(2)).correlate(client=client)


def test_the_sparse_kernel_refuses_dense_stores(make_case, client):
    case = make_case(np.eye(8), np.eye(8), layouts=("csr", "dense"))
    with pytest.raises(storage.InputError, match="one is dense"):
        case.correlate(client=client, kernel="sparse")


def test_too_little_memory_is_refused_before_anything_is_computed(case, client):
    with pytest.raises(storage.BudgetError, match=r"projected.*allowed.*reserved.*Raise memory"):
        case.correlate(client=client, memory="300MB")


def test_too_many_kept_pairs_stop_the_run_with_a_threshold_that_fits(case, client, force, monkeypatch):
    force("resident", panel=16)
    ds = case.correlate("all", client=client, keep_above=0.01)
    budget = ds.attrs["n_kept"] // 3
    monkeypatch.setattr(plan_module, "MATCHING_SHARE", budget * plan_module.MATCHING_BYTES / 1e9)
    with pytest.raises(storage.BudgetError, match=r"r ≥ 0.01.*should fit") as caught:
        case.correlate(client=client, keep_above=0.01, memory=10**9)
    threshold = float(str(caught.value).split("keep_above=")[1].split()[0])
    assert 0.01 < threshold < 1
    assert case.correlate(client=client, keep_above=threshold, memory=10**9).attrs["n_kept"] <= budget


def test_one_panel_with_too_many_kept_pairs_stops_too(case, client, force, monkeypatch):
    force("resident", panel=16)
    monkeypatch.setattr(plan_module, "KEPT_AT_LEAST", 3)
    monkeypatch.setattr(plan_module, "KEPT_SHARE", 0.001)
    with pytest.raises(storage.BudgetError, match="in one tile"):
        case.correlate(client=client)


def test_a_small_buffer_of_kept_pairs_changes_nothing(case, client, monkeypatch):
    panel = importlib.import_module("pipeline.correlate.panel")
    reference = case.correlate("reference", client=client, keep_above=0.001)
    monkeypatch.setattr(panel, "kept_buffer", lambda n: n)
    small = case.correlate("small", client=client, keep_above=0.001)
    one, two = (storage.read_csr(ds.encoding["source"], name="r") for ds in (reference, small))
    assert one.nnz > 1000
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.data, two.data)


def fail_after(monkeypatch, n_panels, error):
    """Let the caller die after so many finished panels."""
    run_tasks = run.run_tasks

    def dying(*arguments, **settings):
        for count, done in enumerate(run_tasks(*arguments, **settings)):
            yield done
            if settings["name"] == "correlate-panel" and count + 1 == n_panels:
                raise error

    monkeypatch.setattr(run, "run_tasks", dying)


@pytest.mark.parametrize("method", ["resident", "streaming", "dense"])
def test_a_run_that_fails_goes_on_with_the_missing_panels(case, client, force, monkeypatch, caplog, method):
    force(method, panel=16)
    kernel = "dense" if method == "dense" else "sparse"
    reference = case.correlate("reference", client=client, kernel=kernel)
    with monkeypatch.context() as patch:
        fail_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            case.correlate(client=client, kernel=kernel)
    assert not (case.folder / "cor.zarr").exists()
    caplog.set_level("INFO", "pipeline.correlate")
    resumed = case.correlate(client=client, kernel=kernel)
    assert "of 5 panels are already done" in caplog.text
    for name in reference.variables:
        np.testing.assert_array_equal(resumed[name].values, reference[name].values)
    assert not (case.folder / "cor.zarr" / "panels").exists()


@pytest.mark.parametrize("n_panels", [2, 5], ids=["some panels", "all panels"])
def test_work_begun_in_one_mode_is_finished_in_the_other(case, client, force, monkeypatch, n_panels):
    reference = case.correlate("reference", kernel="sparse", client=client)
    for first, second in (("resident", "streaming"), ("streaming", "resident")):
        force(first, panel=16)
        with monkeypatch.context() as patch:
            fail_after(patch, n_panels, RuntimeError("stopped"))
            with pytest.raises(RuntimeError, match="stopped"):
                case.correlate(first, kernel="sparse", client=client)
        force(second, panel=32)  # the panels of unfinished work keep their width
        resumed = case.correlate(first, kernel="sparse", client=client)
        for name in reference.variables:
            np.testing.assert_array_equal(resumed[name].values, reference[name].values)


def test_a_killed_process_leaves_work_that_the_next_one_finishes(case, client, force):
    """The process dies by SIGKILL between two panels' files; what is on disk is either whole or ignored."""
    reference = case.correlate("reference", kernel="sparse", client=client)
    program = f"""
        import importlib, os, signal, threading
        plan = importlib.import_module("pipeline.correlate.plan")
        panel = importlib.import_module("pipeline.correlate.panel")
        plan._widths = lambda *sizes: iter([16])
        save, saved, one_at_a_time = panel.save_arrays, [], threading.Lock()
        def save_or_die(arrays, file):
            with one_at_a_time:  # the second file is whole before the third kills
                if len(saved) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                save(arrays, file)
                saved.append(file)
        panel.save_arrays = save_or_die
        from pipeline.correlate.run import correlate
        correlate({str(case.a)!r}, {str(case.b)!r}, kernel="sparse", out={str(case.folder / "cor.zarr")!r})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    partial = storage.partial_path(case.folder / "cor.zarr")
    assert len(list((partial / "panels").glob("panel-*.npz"))) == 2
    assert not (case.folder / "cor.zarr").exists()
    resumed = case.correlate(kernel="sparse", client=client)
    for name in reference.variables:
        np.testing.assert_array_equal(resumed[name].values, reference[name].values)


def test_a_finished_result_is_not_made_again(case, client, monkeypatch):
    case.correlate(kernel="sparse", client=client)

    def refuse(*_arguments, **_settings):
        raise AssertionError("computed again")

    monkeypatch.setattr(run, "_run", refuse)
    case.correlate(kernel="sparse", client=client)
    case.correlate(kernel="sparse", client=client, memory="5GB")  # does not change the result
    for changed in ({"top_k": 3}, {"keep_above": 0.2}, {"select": "all"}, {"kernel": "dense"}):
        with pytest.raises(AssertionError, match="computed again"):
            case.correlate(client=client, **{"kernel": "sparse", **changed})


def test_a_worker_that_is_lost_while_it_is_asked_is_asked_again(client, monkeypatch):
    resources = importlib.import_module("pipeline.correlate.resources")
    monkeypatch.setattr(resources, "SECONDS_BETWEEN", 0)
    run_everywhere, answers = client.run, [OSError("reset by peer"), storage.InputError("no GPU")]

    def losing(*arguments, **settings):
        return {"tcp://lost": answers.pop(0)} if answers else run_everywhere(*arguments, **settings)

    monkeypatch.setattr(client, "run", losing)
    with pytest.raises(storage.InputError, match="no GPU"):
        resources.find_resources(client, None)
    answers.append(OSError("reset by peer"))
    assert resources.find_resources(client, None).processes == 1


def test_workers_elsewhere_need_a_shared_place_for_the_result(case, client, monkeypatch):
    elsewhere = run.Resources(memory=10**9, processes=1, threads=1, reserved=0, hosts=frozenset({"another-host"}))
    monkeypatch.setattr(run, "find_resources", lambda *_: elsewhere)
    with pytest.raises(storage.InputError, match="another-host"):
        run.correlate(case.a, case.b, client=client)


def test_nothing_stays_in_the_workers(case, client):
    case.correlate(client=client)
    job = importlib.import_module("pipeline.correlate.job")
    assert job.PROCESS.jobs == {}

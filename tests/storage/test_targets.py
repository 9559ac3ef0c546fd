"""What may be replaced, who may write, what is left when a process dies, and what readers make of losses."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import storage
from pipeline.work.outputs import save_figure
from storage import derived, files, inventory, locks, targets
from storage.errors import BusyError, CorruptError, InputError, MissingInputError
from storage.rundir import RunDirectory
from storage.verify import verify


def result(*values):
    return xr.Dataset({"x": ("y", [float(value) for value in values])})


EXPERIMENT = {"name": "toy", "a": {"sites": []}, "b": {"sites": []}}


def manifest(inputs="one", **settings):
    return storage.new_manifest("match", {"correlation": inputs}, settings)


def write_result(path, **options):
    storage.write_result(result(1, 2), path, manifest(), **options)


def write_store(path, **options):
    storage.write_activations(path, np.eye(3), **options)


def write_corpus(path, **options):
    storage.write_corpus(path, ["one", "two"], **options)


def import_array(path, **options):
    source = path.parent / "source.npy"
    np.save(source, np.eye(3))
    storage.import_activations(source, path, **options)


WRITERS = [write_result, write_store, write_corpus, import_array]


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def precious(tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years")
    return folder


class TestDoor:
    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("write", WRITERS)
    def test_what_is_not_ours_stays(self, precious, write, overwrite):
        (precious / ".git").mkdir()
        link = precious.parent / "link.zarr"
        link.symlink_to(precious)
        for path in (precious, precious / "thesis.txt", link):
            with pytest.raises(InputError, match=r"thesis\.txt"):
                write(path, overwrite=overwrite)
        assert (precious / "thesis.txt").read_text() == "ten years"
        assert (precious / ".git").is_dir()

    @pytest.mark.parametrize("write", WRITERS)
    def test_nor_is_it_removed_from_ours(self, tmp_path, write):
        for place in ("x.zarr", "x.zarr/notes"):
            write(tmp_path / "x.zarr", overwrite=True)
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / "thesis.txt").write_text("ten years")
            with pytest.raises(InputError, match=r"thesis\.txt next to its own files"):
                write(tmp_path / "x.zarr", overwrite=True)
            assert (tmp_path / place / "thesis.txt").read_text() == "ten years"
            shutil.rmtree(tmp_path / "x.zarr")

    def test_nor_from_the_place_of_unfinished_work(self, tmp_path):
        (tmp_path / "x.zarr.partial").mkdir()
        (tmp_path / "x.zarr.partial/thesis.txt").write_text("ten years")
        for write in (write_result, write_store):
            with pytest.raises(InputError, match="nothing there is replaced"):
                write(tmp_path / "x.zarr", overwrite=True)
        assert (tmp_path / "x.zarr.partial/thesis.txt").read_text() == "ten years"

    def test_a_zarr_group_of_another_program_stays(self, tmp_path):
        result(1).to_zarr(tmp_path / "x.zarr", zarr_format=3, consolidated=False)
        with pytest.raises(InputError, match="nothing that this package wrote"):
            write_result(tmp_path / "x.zarr", overwrite=True)

    def test_another_kind_stays(self, tmp_path):
        for i, write in enumerate(WRITERS[:3]):
            write(tmp_path / "x.zarr")
            for other in WRITERS[:i] + WRITERS[i + 1 : 3]:
                with pytest.raises(InputError, match="is to be written"):
                    other(tmp_path / "x.zarr", overwrite=True)
            shutil.rmtree(tmp_path / "x.zarr")

    def test_inputs_of_the_call_and_places_inside_of_stores_are_refused(self, tmp_path):
        write_result(tmp_path / "x.zarr")
        itself = storage.new_manifest("match", {"correlation": storage.fingerprint(tmp_path / "x.zarr")}, {})
        with pytest.raises(InputError, match="an input of this very call"):
            storage.write_result(result(3), tmp_path / "x.zarr", itself, overwrite=True)
        with pytest.raises(InputError, match="is inside of the store or result"):
            write_store(tmp_path / "x.zarr/inner.zarr")

    def test_other_inputs_need_overwrite_and_other_settings_do_not(self, tmp_path):
        path = tmp_path / "x.zarr"
        write_result(path)
        storage.write_result(result(5), path, manifest(method="best"))
        with pytest.raises(InputError, match=r"came from other inputs: .* overwrite=True"):
            storage.write_result(result(6), path, manifest("two"))
        assert storage.open_result(path).x.values == [5]
        storage.write_result(result(6), path, manifest("two"), overwrite=True)
        assert storage.open_result(path).x.values == [6]
        for write in (write_store, write_corpus):
            write(tmp_path / write.__name__)
            with pytest.raises(InputError, match="overwrite"):
                write(tmp_path / write.__name__)

    def test_nothing_is_computed_and_nothing_written_where_the_call_is_refused(self, tmp_path, precious):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError):
            storage.make_result(precious, manifest(), lambda: pytest.fail("computed"))
        assert sorted(tmp_path.rglob("*")) == before

    def test_what_comes_while_the_result_is_computed_stays(self, tmp_path):
        def compute():
            (tmp_path / "x.zarr").mkdir()
            (tmp_path / "x.zarr/thesis.txt").write_text("ten years")
            return result(1)

        with pytest.raises(InputError, match=r"thesis\.txt"):
            storage.make_result(tmp_path / "x.zarr", manifest(), compute)
        assert tree(tmp_path) == {"x.zarr/thesis.txt": b"ten years"}

    @pytest.mark.parametrize("write", WRITERS)
    def test_an_empty_folder_and_a_link_may_be_written(self, tmp_path, write):
        (tmp_path / "x.zarr").mkdir()
        write(tmp_path / "x.zarr")
        (tmp_path / "disk").mkdir()
        (tmp_path / "y.zarr").symlink_to(tmp_path / "disk/y.zarr")
        write(tmp_path / "y.zarr")
        assert (tmp_path / "y.zarr").is_symlink()
        assert (tmp_path / "disk/y.zarr/zarr.json").is_file()

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_names_of_unfinished_work_and_of_locks_are_refused(self, tmp_path, write):
        a = tmp_path / "a.zarr"
        for path in (files.partial_path(a), tmp_path / "a.lock", files.temporary_path(a, "old")):
            with pytest.raises(InputError, match="has a name that unfinished work or a lock of this package has"):
                write(path)

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_a_path_below_a_file_is_refused(self, tmp_path, write):
        (tmp_path / "thesis.txt").write_text("thesis")
        with pytest.raises(InputError, match=r"thesis\.txt is not a folder, so that .* cannot be made in it"):
            write(tmp_path / "thesis.txt/deeper/a.zarr")
        assert (tmp_path / "thesis.txt").read_text() == "thesis"

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_a_way_back_out_of_a_store_is_understood(self, tmp_path, write):
        write(tmp_path / "a.zarr")
        write(tmp_path / "a.zarr/../b.zarr")
        assert (tmp_path / "b.zarr/zarr.json").is_file()

    def test_the_home_of_nobody_is_refused(self):
        with pytest.raises(InputError, match="home folder that is not known"):
            storage.open_activations("~nobody-has-this-name/a.zarr")

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_the_root_is_refused_and_a_home_is_understood(self, tmp_path, write, monkeypatch):
        with pytest.raises(InputError, match="root of the file system"):
            write("/")
        monkeypatch.setenv("HOME", str(tmp_path))
        write("~/a.zarr")
        assert (tmp_path / "a.zarr").is_dir()

    def test_a_store_that_a_stage_made_is_not_replaced_by_data(self, tmp_path):
        made = storage.new_manifest("harvest", {"text": "1"}, {})
        storage.write_activations(tmp_path / "a.zarr", np.eye(3), manifest=made)
        with pytest.raises(InputError, match="is a store that 'harvest' made"):
            write_store(tmp_path / "a.zarr", overwrite=True)

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_only_paths_of_a_file_system(self, tmp_path, write, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for url in ("s3://bucket/C.zarr", "gs:/bucket/C.zarr", "http://host/C.zarr"):
            with pytest.raises(InputError, match=r"bucket/C\.zarr|host/C\.zarr"):
                write(url)
        write(f"file://{tmp_path}/C.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["C.zarr"]
        with pytest.raises(InputError, match="not on a file system"):
            storage.open_result("s3://bucket/C.zarr")


class TestFiles:
    def write(self, path, text="a,b\n1,2\n", **options):
        with storage.targets.claim_file(path, targets.starts_with("a,b"), suffixes=[".csv"], **options) as target:
            target.write_text(text)

    def test_an_own_table_with_other_content_needs_overwrite(self, tmp_path):
        path = tmp_path / "sub/x.csv"
        self.write(path)
        self.write(path)
        with pytest.raises(InputError, match="overwrite"):
            self.write(path, "a,b\n3,4\n")
        self.write(path, "a,b\n3,4\n", overwrite=True)
        assert tree(tmp_path) == {"sub/x.csv": b"a,b\n3,4\n"}

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_another_table_stays(self, tmp_path, overwrite, precious):
        (tmp_path / "x.csv").write_text("mine")
        (tmp_path / "y.csv").symlink_to(tmp_path / "x.csv")
        (tmp_path / "z.csv").mkdir()
        for path in (tmp_path / "x.csv", tmp_path / "y.csv", tmp_path / "z.csv", precious / "thesis.txt"):
            with pytest.raises(InputError):
                self.write(path, overwrite=overwrite)
        assert (tmp_path / "x.csv").read_text() == "mine"

    @pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
    def test_a_figure_about_subspaces_stays(self, tmp_path, ending):
        from matplotlib.figure import Figure

        figure, path = Figure(), tmp_path / f"mine{ending}"
        figure.suptitle("Subspace angles")
        figure.savefig(path, metadata={"Title": "Subspace alignment"})
        before = path.read_bytes()
        with (
            pytest.raises(InputError, match="was not written by this command"),
            targets.claim_file(path, targets.names_program, suffixes=[ending], overwrite=True),
        ):
            pass
        assert path.read_bytes() == before
        with targets.claim_file(tmp_path / f"ours{ending}", targets.names_program, suffixes=[ending]) as target:
            with target.writing() as new:
                save_figure(figure, new)
            assert targets.names_program(target.path)

    def test_exports(self, tmp_path):
        for i in (1, 2):
            storage.write_activations(tmp_path / f"{i}.zarr", i * np.eye(4))
        for name, fmt in {"e.npz": "npz", "e.h5ad": "anndata", "e.zarr": "anndata"}.items():
            storage.export_activations(tmp_path / "1.zarr", tmp_path / name, fmt)
            with pytest.raises(InputError, match="overwrite"):
                storage.export_activations(tmp_path / "2.zarr", tmp_path / name, fmt)
            storage.export_activations(tmp_path / "2.zarr", tmp_path / name, fmt, overwrite=True)
            storage.import_activations(tmp_path / name, tmp_path / f"{name}.back.zarr")
            back = storage.open_activations(tmp_path / f"{name}.back.zarr")
            np.testing.assert_array_equal(back.activation.values, 2 * np.eye(4))
        for name, fmt in {"o.npz": "npz", "o.h5ad": "anndata", "o.zarr": "anndata", "o.npy": "npy"}.items():
            path = tmp_path / name
            if name.endswith(".zarr"):
                path.mkdir()
                path /= "thesis.txt"
            path.write_text("ten years")
            with pytest.raises(InputError, match=r"not written by this command|nothing that this package"):
                storage.export_activations(tmp_path / "1.zarr", tmp_path / name, fmt, overwrite=True)
            assert path.read_text() == "ten years"


@pytest.fixture(params=[0o000, 0o002, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS[:3])
def test_who_may_read_and_write_is_for_the_umask_to_say(tmp_path, write, umask):
    write(tmp_path / "new/x.zarr")
    derived.write_derived(tmp_path / "new/x.csv", "a,b\n")
    RunDirectory(tmp_path / "new/run").write_experiment(EXPERIMENT)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}
    assert {mode for path, mode in modes.items() if not path.is_dir()} == {0o666 & ~umask}


class TestRunDirectory:
    def test_what_dead_processes_left_anywhere_is_swept(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.write_experiment(EXPERIMENT)
        write_store(run.activations("a", "x"))
        kept = tree(run.root)
        for ending in ("new", "trash", "old"):
            copy = files.temporary_path(run.activations("a", "x"), ending)
            shutil.copytree(run.activations("a", "x"), copy)
        (run.root / "correlation").mkdir()
        gone = {**locks.Holder.this_process().__dict__, "started": 1.0}
        (run.root / "correlation/x--y.zarr.lock").write_text(json.dumps(gone))
        mine = {"correlation/notes": b"", "correlation/uv.lock": b"[[package]]", "correlation/index.lock": b""}
        for name, content in mine.items():
            (run.root / name).write_bytes(content)
        with run.claim():
            pass
        assert tree(run.root) == kept | mine

    def test_a_run_at_work_is_named_by_its_directory(self, tmp_path):
        run = RunDirectory(tmp_path / "toy")
        with run.claim(), ThreadPoolExecutor(1) as pool:
            for call in (run.check_free, run.claim().__enter__):
                with pytest.raises(BusyError, match=rf"^{run.root} is being written by process {os.getpid()} on "):
                    pool.submit(call).result()

    def test_a_folder_with_other_files_is_no_run_directory(self, precious):
        with pytest.raises(InputError, match=r"thesis\.txt"), RunDirectory(precious).claim():
            pass
        with pytest.raises(InputError, match="is a file"):
            RunDirectory(precious / "thesis.txt").check()
        assert tree(precious) == {"thesis.txt": b"ten years"}

    def test_a_run_directory_inside_of_a_store_is_refused(self, tmp_path):
        write_store(tmp_path / "a.zarr")
        before = tree(tmp_path)
        (tmp_path / "link").symlink_to(tmp_path / "a.zarr/activation")
        for folder in (tmp_path / "a.zarr/run", tmp_path / "a.zarr/activation/x/run", tmp_path / "link/run"):
            with pytest.raises(InputError, match=r"run is inside of the store or result .*give another --run-dir"):
                RunDirectory(folder).write_experiment(EXPERIMENT)
        assert tree(tmp_path) == before

    def test_what_commands_leave_before_a_run_is_no_obstacle(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.check()
        (run.root / "logs").mkdir(parents=True)
        files.temporary_path(run.root / "experiment.json", "partial").touch()
        with run.claim():
            run.write_experiment(EXPERIMENT)
        (run.root / "notes.txt").touch()
        run.check()
        assert sorted(path.name for path in run.root.iterdir()) == ["experiment.json", "logs", "notes.txt"]


HOLD = """
    import sys, storage, time
    with storage.claim("x.zarr", storage.new_manifest("match", {}, {})) as target:
        target.begin()
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds x.zarr."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestInputsAreWatched:
    """What is made from an input names the content that was read, even where somebody replaces it meanwhile."""

    def make(self, tmp_path, meanwhile, *, pieces=False):
        write_store(tmp_path / "a.zarr")
        made_from = storage.new_manifest("match", {"a": storage.fingerprint(tmp_path / "a.zarr")}, {})
        with storage.claim(tmp_path / "x.zarr", made_from) as target:
            if pieces:
                target.begin()
            meanwhile(tmp_path / "a.zarr")
            target.finish() if pieces else target.write(xr.Dataset({"r": ("pair", [1.0])}))

    @pytest.mark.parametrize("pieces", [False, True])
    def test_a_result_of_an_input_that_was_replaced_is_not_kept(self, tmp_path, pieces):
        with pytest.raises(InputError, match=r"a.zarr \(a\) was changed while .*x.zarr was made from it"):
            self.make(tmp_path, lambda a: storage.write_activations(a, 2 * np.eye(6, 3), overwrite=True), pieces=pieces)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]

    @pytest.mark.parametrize("pieces", [False, True])
    def test_the_same_content_again_is_the_same(self, tmp_path, pieces):
        def copy(a):
            shutil.copytree(a, tmp_path / "copy.zarr")
            shutil.rmtree(a)
            (tmp_path / "copy.zarr").rename(a)

        self.make(tmp_path, copy, pieces=pieces)
        assert ("r" in storage.open_result(tmp_path / "x.zarr")) != pieces

    def test_a_source_that_is_written_to_is_not_imported(self, tmp_path, monkeypatch):
        np.save(tmp_path / "x.npy", np.eye(6, 3))
        write_shard = storage.ActivationWriter.write_shard

        def rewrite_first(writer, *args):
            np.save(tmp_path / "x.npy", -np.eye(6, 3))
            return write_shard(writer, *args)

        monkeypatch.setattr(storage.ActivationWriter, "write_shard", rewrite_first)
        with pytest.raises(InputError, match=r"x.npy was changed while it was imported"):
            storage.import_activations(tmp_path / "x.npy", tmp_path / "a.zarr")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_what_somebody_added_to_a_result_stays_unless_it_may_be_overwritten(tmp_path):
    write_result(tmp_path / "x.zarr")
    added = xr.open_zarr(tmp_path / "x.zarr").load().assign(my_label=("mine", [1, 2, 3]))
    added[["my_label"]].to_zarr(tmp_path / "x.zarr", mode="a", zarr_format=3)
    other = xr.Dataset({"r": ("pair", [1.0])})
    with pytest.raises(InputError, match="another program changed: give another path"):
        storage.write_result(other, tmp_path / "x.zarr", manifest(other=1))
    assert "my_label" in xr.open_zarr(tmp_path / "x.zarr")
    storage.write_result(other, tmp_path / "x.zarr", manifest(other=1), overwrite=True)


class TestDerivedFiles:
    """Tables and pages that a run writes again."""

    @pytest.fixture
    def run(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.write_experiment(EXPERIMENT)
        derived.write_derived(run.root / "pairs.csv", "a,b\n1,2\n")
        return run

    def test_are_replaced_by_new_ones(self, run):
        derived.write_derived(run.root / "pairs.csv", "a,b,c\n1,2,3\n")
        derived.write_derived(run.root / "pairs.csv", "a,b\n1,2\n")
        with run.claim():
            assert (run.root / "pairs.csv").read_text() == "a,b\n1,2\n"

    @pytest.mark.parametrize("dies_before", [True, False])
    def test_are_replaced_where_the_process_died_meanwhile(self, run, dies_before, monkeypatch):
        def die(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(targets.FileTarget, "write_text" if dies_before else "check_new", die)
        with pytest.raises(KeyboardInterrupt):
            derived.write_derived(run.root / "pairs.csv", "a,b\n3,4\n")
        monkeypatch.undo()
        with run.claim():
            derived.write_derived(run.root / "pairs.csv", "a,b\n5,6\n")

    def test_stay_where_somebody_edited_them(self, run):
        text = "a,b,my_verdict\n1,2,good\n"
        (run.root / "pairs.csv").write_text(text)
        with pytest.raises(InputError, match="was edited since"):
            derived.write_derived(run.root / "pairs.csv", "a,b\n5,6\n")
        with pytest.raises(InputError, match=r"pairs.csv was edited since this run wrote it"), run.claim():
            pass
        assert (run.root / "pairs.csv").read_text() == text
        (run.root / "pairs.csv").rename(run.root / "mine.csv")
        with run.claim():
            derived.write_derived(run.root / "pairs.csv", "a,b\n5,6\n")

    @pytest.mark.parametrize("text", ["my notes", "<!doctype html>\n<title>Mine</title>"])
    def test_pages_of_somebody_else_stay(self, run, text):
        (run.root / "report.html").write_text(text)
        with pytest.raises(InputError, match="was not written by this command"):
            derived.write_derived(run.root / "report.html", "<!doctype html><title>x", derived.is_page)
        assert (run.root / "report.html").read_text() == text

    @pytest.mark.parametrize("name", ["experiment.json", "models.json", "watch.json", "report.json"])
    @pytest.mark.parametrize("others", [[], ["thesis.txt"]])
    def test_json_of_somebody_else_makes_no_run_directory(self, tmp_path, name, others):
        run = RunDirectory(tmp_path / "mine")
        run.root.mkdir()
        (run.root / name).write_text('{"precious": 1}')
        for other in others:
            (run.root / other).touch()
        with pytest.raises(InputError, match="give another --run-dir"):
            run.write_experiment(EXPERIMENT)
        assert (run.root / name).read_text() == '{"precious": 1}'
        assert sorted(path.name for path in run.root.iterdir()) == sorted([name, *others])

    def test_a_claim_within_a_claim_leaves_what_is_being_written(self, run):
        with run.claim():
            mine = files.temporary_path(run.root / "watch.json", "partial")
            mine.touch()
            with run.claim():
                assert mine.exists()
            with ThreadPoolExecutor(1) as pool, pytest.raises(BusyError):
                pool.submit(lambda: run.claim().__enter__()).result()
        with run.claim():
            assert not mine.exists()

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: file.symlink_to("/dev/null")])
    def test_what_is_no_file_makes_no_run_directory(self, tmp_path, make):
        run = RunDirectory(tmp_path / "mine")
        run.root.mkdir()
        make(run.root / "experiment.json")
        before = (run.root / "experiment.json").lstat()
        with pytest.raises(InputError, match=r"experiment\.json was not written by this package"):
            run.write_experiment(EXPERIMENT)
        assert (run.root / "experiment.json").lstat() == before


def test_json_of_somebody_else_is_no_lock(tmp_path):
    text = '{"host": "db1", "user": "me"}'
    (tmp_path / "x.zarr.lock").write_text(text)
    with pytest.raises(InputError, match="is not a lock of this package"):
        write_result(tmp_path / "x.zarr")
    assert (tmp_path / "x.zarr.lock").read_text() == text


class TestLock:
    def claim(self, tmp_path, **options):
        return storage.claim(tmp_path / "x.zarr", storage.new_manifest("match", {}, {}), **options)

    def test_a_holder_is_named_and_a_dead_one_gives_way_at_once(self, tmp_path, other_process, caplog):
        with pytest.raises(BusyError, match=f"process {other_process.pid} on .*wait until it is done") as refused:
            self.claim(tmp_path).__enter__()
        assert refused.value.exit_code == 75
        started = r"started \d{4}-\d\d-\d\dT[\d:]+\+00:00\) since .* \(the lock is .*/x\.zarr\.lock\)"
        assert re.search(started, str(refused.value))
        assert str(refused.value).startswith(f"{tmp_path}/x.zarr is being written by")
        other_process.kill()
        other_process.wait()
        caplog.set_level("INFO")
        start = time.monotonic()
        with self.claim(tmp_path) as target:
            assert target.resumes()
        assert time.monotonic() - start < 5
        assert "Taking over the lock" in caplog.text
        assert not list(tmp_path.glob("*.lock"))

    def test_a_number_that_another_process_has_now_is_no_holder(self, tmp_path):
        """Ids of processes are used again."""
        here = locks.Holder.this_process()
        stale = {**here.__dict__, "started": here.started - 100}
        (tmp_path / "x.zarr.lock").write_text(json.dumps(stale))
        with self.claim(tmp_path):
            pass

    @pytest.mark.parametrize("make", ["file", "link", "pipe", "folder"])
    def test_what_is_no_lock_stays(self, tmp_path, precious, make):
        file = tmp_path / "a.zarr.lock"
        {
            "file": lambda: file.write_text("[[package]]"),
            "link": lambda: file.symlink_to(precious / "thesis.txt"),
            "pipe": lambda: os.mkfifo(file),
            "folder": file.mkdir,
        }[make]()
        before, kind = tree(precious), file.lstat().st_mode
        with pytest.raises(InputError, match=r"a\.zarr\.lock exists and is not a lock of this package"):
            write_result(tmp_path / "a.zarr")
        assert (tree(precious), file.lstat().st_mode) == (before, kind)
        assert make != "file" or file.read_text() == "[[package]]"
        assert not (tmp_path / "a.zarr").exists()

    @pytest.mark.parametrize(
        "text",
        [
            '{"host": "a", "x": 1}\n{"host": "b", "x": 2}\n',
            '{"host": "a", "process": ' + "[" * 60_000,
            '{"host": "' + "a" * 80_000,
            '{"host": "a", "process": 1, "started": NaN}',
            '{"host": "a", "process": 1, "started": "abc"}',
            '{"host": "a", "process": 1, "started": 1.0, "since": "", "command": "", "token": "", "more": 1}',
        ],
    )
    def test_json_that_no_holder_wrote_stays(self, tmp_path, text):
        (tmp_path / "a.zarr.lock").write_text(text)
        with pytest.raises(InputError, match=r"a\.zarr\.lock exists and is not a lock of this package"):
            write_result(tmp_path / "a.zarr")
        (tmp_path / "run").mkdir()
        run = RunDirectory(tmp_path / "run")
        run.write_experiment({"a": {"sites": []}, "b": {"sites": []}})
        mine = [tmp_path / "a.zarr.lock", run.root / "mine/hosts.json.lock", run.root / f"notes.{'0' * 32}.partial"]
        (run.root / "mine").mkdir()
        for file in mine:
            file.write_text(text)
        with run.claim():
            pass
        assert {file.read_text() for file in mine} == {text}

    @given(st.text(), st.integers(0, 10**6), st.floats(0, 1e12), st.text(), st.data())
    def test_what_a_holder_writes_is_a_lock_wherever_it_was_cut_off(self, host, process, started, command, data):
        holder = locks.Holder(host, process, started, "2026-01-01T00:00:00+00:00", command, "0" * 32)
        text = json.dumps(holder.__dict__)
        assert locks._beginning_of_lock(text[: data.draw(st.integers(0, len(text)))])
        assert not locks._beginning_of_lock(text + "\n")
        assert "\n" not in str(holder)

    def test_a_time_beyond_all_calendars_is_left_out(self):
        holder = locks.Holder("here", 1, 1e300, "x", "c\nError: forged", "t")
        assert str(holder) == "process 1 on here (c Error: forged) since x"

    def test_a_second_name_of_somebodys_file_is_no_lock(self, tmp_path):
        here = json.dumps({**locks.Holder.this_process().__dict__, "started": 1.0})
        (tmp_path / "copy").write_text(here)
        (tmp_path / "a.zarr.lock").hardlink_to(tmp_path / "copy")
        with pytest.raises(InputError, match="is not a lock of this package"):
            write_result(tmp_path / "a.zarr")
        assert (tmp_path / "copy").read_text() == here

    def test_whoever_lost_a_lock_leaves_that_of_the_new_holder(self, tmp_path):
        file = tmp_path / "x.zarr.lock"
        other = json.dumps({**locks.Holder.this_process().__dict__, "host": "elsewhere"})
        with self.claim(tmp_path):
            file.unlink()
            file.write_text(other)
        assert file.read_text() == other

    def test_a_lock_that_cannot_be_written_is_not_left(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(locks.os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            write_result(tmp_path / "a.zarr")
        assert list(tmp_path.iterdir()) == []

    def test_a_lock_whose_heartbeat_cannot_start_is_not_left(self, tmp_path, monkeypatch):
        def refuse(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), locks.lock(tmp_path / "a.zarr"):
            pass
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", ["", "{", '{"host": "here"', "\x00" * 9])
    def test_a_lock_that_was_cut_short_gives_way(self, tmp_path, content):
        (tmp_path / "x.zarr.lock").write_text(content)
        with self.claim(tmp_path):
            pass

    def test_another_host_gives_way_when_its_heart_stands_still(self, tmp_path):
        file = tmp_path / "x.zarr.lock"
        file.write_text(json.dumps({**locks.Holder.this_process().__dict__, "host": "elsewhere"}))
        with pytest.raises(BusyError, match=r"on elsewhere .*120 s after its last sign of life"):
            self.claim(tmp_path).__enter__()
        long_ago = time.time() - 2 * locks.STALE_AFTER
        os.utime(file, (long_ago, long_ago))
        with self.claim(tmp_path):
            pass

    def test_a_heartbeat_in_the_future_does_not_hold_a_lock_for_ever(self, tmp_path):
        file = tmp_path / "x.zarr.lock"
        file.write_text(json.dumps({**locks.Holder.this_process().__dict__, "host": "elsewhere"}))
        soon = time.time() + locks.STALE_AFTER / 2  # a clock that is a little ahead
        os.utime(file, (soon, soon))
        with pytest.raises(BusyError, match="on elsewhere"):
            self.claim(tmp_path).__enter__()
        os.utime(file, (time.time() + 10**6,) * 2)
        with self.claim(tmp_path):
            pass

    def test_without_flock_the_process_is_looked_at(self, tmp_path, other_process, monkeypatch):
        monkeypatch.setattr(locks, "_flock", lambda _: None)
        with pytest.raises(BusyError, match=f"process {other_process.pid}"):
            self.claim(tmp_path).__enter__()
        other_process.kill()
        other_process.wait()
        with self.claim(tmp_path):
            pass

    def test_without_flock_a_clock_that_was_set_makes_no_holder_dead(self, tmp_path, other_process, monkeypatch):
        """The start of a process counts from the boot, and the moment of the boot moves with the clock."""
        monkeypatch.setattr(locks, "_flock", lambda _: None)
        started = locks._started
        monkeypatch.setattr(locks, "_started", lambda process: started(process) + 3600)
        with pytest.raises(BusyError, match=f"process {other_process.pid}"):
            self.claim(tmp_path).__enter__()
        monkeypatch.setattr(locks, "STALE_AFTER", 0.0)
        with self.claim(tmp_path):
            pass

    def test_the_heart_beats(self, tmp_path, monkeypatch):
        monkeypatch.setattr(locks, "BEAT", 0.01)
        with self.claim(tmp_path):
            file = tmp_path / "x.zarr.lock"
            os.utime(file, (1, 1))
            deadline = time.monotonic() + 20
            while file.stat().st_mtime < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def test_one_thread_may_claim_again_and_another_may_not(self, tmp_path):
        with (
            self.claim(tmp_path),
            self.claim(tmp_path),
            ThreadPoolExecutor(1) as pool,
            pytest.raises(BusyError),
        ):
            pool.submit(lambda: self.claim(tmp_path).__enter__()).result()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: self.claim(tmp_path).__enter__()).result()

    def test_parts_exclude_the_whole_and_not_each_other(self, tmp_path):
        with self.claim(tmp_path) as target:
            target.begin()
        with ThreadPoolExecutor(1) as pool, self.claim(tmp_path, part="0-of-2"):
            with self.claim(tmp_path, part="1-of-2"):
                pass
            for part in (None, "0-of-2"):
                with pytest.raises(BusyError):
                    pool.submit(lambda part=part: self.claim(tmp_path, part=part).__enter__()).result()
        with ThreadPoolExecutor(1) as pool, self.claim(tmp_path), pytest.raises(BusyError):
            pool.submit(lambda: self.claim(tmp_path, part="0-of-2").__enter__()).result()
        assert not list(tmp_path.glob("*.lock"))

    def test_a_lock_that_was_lost_is_noticed_before_anything_is_replaced(self, tmp_path):
        write_result(tmp_path / "x.zarr")
        with self.claim(tmp_path, overwrite=True) as target:
            (tmp_path / "x.zarr.lock").unlink()
            with pytest.raises(BusyError, match="Nothing was replaced"):
                target.write(result(7))
        assert storage.open_result(tmp_path / "x.zarr").x.values.tolist() == [1, 2]

    def test_rows_of_two_writers_are_not_mixed(self, tmp_path):
        one = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=6, n_features=3, shard_rows=3)
        one.write_shard(0, np.eye(3))
        copy = pickle.loads(pickle.dumps(one))
        del one
        two = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=6, n_features=3, shard_rows=3)
        assert two.missing() == [0, 1]
        with pytest.raises(BusyError, match="has restarted"):
            copy.write_shard(1, np.eye(3))
        copy.discard()
        for i in two.missing():
            two.write_shard(i, 2 * np.eye(3))
        two.finalise()
        np.testing.assert_array_equal(
            storage.open_activations(two.path).activation.values, 2 * np.eye(3)[[0, 1, 2] * 2]
        )

    def test_a_suspended_writer_hears_that_its_place_was_taken(self, tmp_path):
        one = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=3, n_features=3)
        lock = tmp_path / "a.zarr.partial.lock"
        lock.unlink()  # what whoever takes over does after a while without heartbeats
        two = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=3, n_features=3)
        two.write_shard(0, np.eye(3))
        two.finalise()
        with pytest.raises(BusyError, match=r"taken over .*while this process was suspended"):
            one.write_shard(0, np.eye(3))
        with pytest.raises(MissingInputError, match="There is no unfinished store"):
            two.write_shard(0, np.eye(3))


class TestLeftovers:
    @pytest.mark.parametrize("ending", ["new", "old", "trash"])
    def test_a_name_that_only_looks_alike_stays(self, tmp_path, ending):
        mine = tmp_path / f"a.zarr.{1:032x}.{ending}"
        mine.mkdir()
        (mine / "thesis.txt").write_text("years")
        write_result(tmp_path / "a.zarr")
        assert (mine / "thesis.txt").read_text() == "years"

    def test_what_was_begun_goes_even_where_the_disk_has_no_room_for_another_name(self, tmp_path, monkeypatch):
        """As on a full tmpfs."""

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        for function in ("close_group", "Path.rename"):
            monkeypatch.setattr(f"storage.targets.{function}", full)
        with pytest.raises(OSError, match="No space"):
            write_result(tmp_path / "a.zarr")
        assert list(tmp_path.iterdir()) == []

    def test_what_dead_processes_left_is_swept(self, tmp_path):
        write_result(tmp_path / "x.zarr")
        whole = tree(tmp_path)
        for ending in ("new", "old", "trash"):
            shutil.copytree(tmp_path / "x.zarr", files.temporary_path(tmp_path / "x.zarr", ending))
        names = []

        def dying(path, **_):
            names.append(path)
            raise KeyboardInterrupt

        for old in tmp_path.glob("*.old"):  # what a process leaves that dies while it deletes the old one
            with contextlib.suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
                patch.setattr(files.shutil, "rmtree", dying)
                files.remove_folder(old)
        assert len(names) == 1
        files.temporary_path(tmp_path / "x.zarr", "partial").touch()
        (tmp_path / "x.zarr.mine.old").mkdir()
        storage.write_result(result(1, 2), tmp_path / "x.zarr", manifest())
        assert tree(tmp_path).keys() == whole.keys()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr", "x.zarr.mine.old"]

    def test_a_store_of_data_whose_writer_died_before_its_last_rename_is_written_again(self, tmp_path, monkeypatch):
        def dying(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(targets.Target, "replace", dying)
        monkeypatch.setattr(storage.ActivationWriter, "discard", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "x.zarr")
        monkeypatch.undo()
        write_store(tmp_path / "x.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]

    def test_a_death_between_two_renames_brings_the_old_one_back(self, tmp_path):
        write_result(tmp_path / "x.zarr")
        (tmp_path / "x.zarr").rename(files.temporary_path(tmp_path / "x.zarr", "old"))
        with storage.claim(tmp_path / "x.zarr", manifest()) as target:
            assert target.is_current()
        assert storage.open_result(tmp_path / "x.zarr").x.values.tolist() == [1, 2]

    @pytest.mark.parametrize("calls", range(1, 5))
    def test_whole_work_of_a_dead_process_takes_its_place(self, tmp_path, monkeypatch, calls):
        """The process dies at any rename of the finishing protocol."""
        write_result(tmp_path / "x.zarr")
        count = iter(range(1, 99))
        rename = files.Path.rename

        def dying(self, to):
            if next(count) == calls:
                raise KeyboardInterrupt
            return rename(self, to)

        with storage.claim(tmp_path / "x.zarr", manifest(new=1)) as target:
            folder = target.begin()
            storage.add_variables(result(8), folder)
            (folder / "panels").mkdir()
            monkeypatch.setattr(files.Path, "rename", dying)
            with contextlib.suppress(KeyboardInterrupt):
                target.finish()
        assert next(count) > calls
        monkeypatch.undo()
        with storage.claim(tmp_path / "x.zarr", manifest(new=1)) as target:
            assert target.is_current()
        assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]
        assert storage.open_result(tmp_path / "x.zarr").x.values.tolist() == [8]


class TestReading:
    @pytest.fixture
    def store(self, tmp_path):
        storage.write_activations(tmp_path / "a.zarr", np.eye(40, 9), shard_rows=20, chunk=(10, 9))
        return tmp_path / "a.zarr"

    @pytest.mark.parametrize("lost", ["mean/c/0", "activation/c/1/0", "n_active/c/0", "std/zarr.json"])
    def test_a_lost_file_is_no_zeros(self, store, lost):
        (store / lost).unlink()
        for read in (storage.open_activations, storage.fingerprint):
            with pytest.raises(CorruptError, match=lost):
                read(store)

    def test_a_foreign_chunk_and_a_folder_are_named(self, store):
        (store / "mean/c/1").write_bytes(b"x")
        with pytest.raises(CorruptError, match="mean/c/1: the file is foreign"):
            storage.open_activations(store)
        (store / "mean/c/1").unlink()
        (store / "mean/c/0").unlink()
        (store / "mean/c/0").mkdir()
        with pytest.raises(CorruptError, match="a folder is in the place"):
            storage.open_activations(store)

    def test_chunks_of_another_store_are_named(self, store, tmp_path):
        storage.write_activations(tmp_path / "b.zarr", 2 * np.eye(40, 9), shard_rows=20, chunk=(10, 9))
        shutil.copyfile(tmp_path / "b.zarr/activation/c/0/0", store / "activation/c/0/0")
        with pytest.raises(CorruptError, match="activation/c/0/0"):
            storage.open_activations(store)

    def test_whole_chunks_of_the_same_size_are_told_apart(self, tmp_path, rng):
        """The CRC-32C of data that its own CRC-32C follows is the same number, whatever the data."""
        path = tmp_path / "x.zarr"
        with storage.claim(path, manifest()) as target:
            target.write(xr.Dataset({name: ("pair", rng.random(50)) for name in "ab"}))
        a, b = path / "a/c/0", path / "b/c/0"
        assert a.stat().st_size == b.stat().st_size
        shutil.copyfile(a, b)
        assert [fault.file for fault in verify(path).faults] == ["b/c/0"]
        with pytest.raises(CorruptError, match="b/c/0: the file fails its checksum"):
            storage.open_result(path)

    def test_files_are_read_again_only_where_they_were_touched(self, store, tmp_path, monkeypatch):
        sums = []
        checksum = inventory.crc32
        monkeypatch.setattr(inventory, "crc32", lambda file: sums.append(file) or checksum(file))
        hashed = storage.fingerprint(store)
        shutil.copytree(store, tmp_path / "same.zarr")  # keeps times
        assert storage.fingerprint(tmp_path / "same.zarr") == hashed
        assert not sums
        shutil.copytree(store, tmp_path / "copy.zarr", copy_function=shutil.copyfile)
        assert storage.fingerprint(tmp_path / "copy.zarr") == hashed
        assert sums
        monkeypatch.setattr(inventory, "READ_WHEN_OPENED", 0)
        sums.clear()
        storage.open_activations(tmp_path / "copy.zarr")
        assert not sums

    def test_the_hash_of_a_store_that_was_edited_is_that_of_its_content(self, store, tmp_path):
        before = storage.fingerprint(store)
        ds = xr.open_zarr(store).load()
        ds.to_zarr(store, mode="w", zarr_format=3, consolidated=False)
        assert storage.fingerprint(store) == before
        ds["activation"][3, 3] = 7
        storage.write_activations(tmp_path / "same.zarr", ds.activation.values, shard_rows=20, chunk=(10, 9))
        statistics = xr.open_zarr(tmp_path / "same.zarr").load()
        ds = ds.assign({name: statistics[name].drop_attrs() for name in ("mean", "std", "max", "n_active")})
        ds.to_zarr(store, mode="w", zarr_format=3, consolidated=False)
        assert xr.open_zarr(store, consolidated=False).attrs["content_hash"] == before
        edited = storage.fingerprint(store)
        assert edited != before
        assert edited == storage.fingerprint(tmp_path / "same.zarr")

    def test_a_result_that_was_edited_is_used_and_what_is_made_from_it_is_made_again(self, tmp_path, caplog):
        write_result(tmp_path / "x.zarr")
        before = storage.fingerprint(tmp_path / "x.zarr")
        edited = xr.open_zarr(tmp_path / "x.zarr").load() * 2
        edited.attrs = xr.open_zarr(tmp_path / "x.zarr").attrs
        edited.to_zarr(tmp_path / "x.zarr", mode="w", zarr_format=3, consolidated=False)
        assert storage.fingerprint(tmp_path / "x.zarr") != before
        assert storage.is_current(tmp_path / "x.zarr", manifest())
        assert "changed by another program" in caplog.text

    def test_a_damaged_result_is_made_again(self, tmp_path, caplog):
        write_result(tmp_path / "x.zarr")
        (tmp_path / "x.zarr/x/c/0").write_bytes(b"?")
        with pytest.raises(CorruptError):
            storage.fingerprint(tmp_path / "x.zarr")
        made = storage.make_result(tmp_path / "x.zarr", manifest(), lambda: result(1, 2))
        assert made.x.values.tolist() == [1, 2]
        assert "made again" in caplog.text

    def test_what_stands_in_the_way_of_reading_is_said(self, tmp_path):
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zip").touch()
        for name, message in {
            "a.zarr": "without a zarr.json",
            "a.zip": "unpack it",
            "b.zarr": "check the path",
        }.items():
            with pytest.raises(MissingInputError, match=message):
                storage.open_activations(tmp_path / name)


def test_every_public_writer_goes_through_the_door():
    """Every function of the package that takes a place to write to knows `overwrite`."""
    import inspect

    import pipeline

    writers = {
        function.__name__: function
        for module in (storage, pipeline)
        for name in module.__all__
        if inspect.isfunction(function := getattr(module, name)) and "out" in inspect.signature(function).parameters
    }
    writers |= {name: getattr(storage, name) for name in ("write_activations", "write_corpus", "write_result", "claim")}
    assert {"correlate", "match", "compare", "make_result"} <= writers.keys()
    assert [
        name for name, function in writers.items() if "overwrite" not in inspect.signature(function).parameters
    ] == []
    assert importlib.import_module("storage.targets").claim is storage.claim


class TestEdited:
    """What a user changes with xarray is noticed, whatever the attributes that xarray copies say."""

    @pytest.fixture
    def store(self, tmp_path, tokens):
        rng = np.random.default_rng(3)
        decoder = rng.standard_normal((9, 4))
        storage.write_activations(tmp_path / "a.zarr", np.eye(40, 9), tokens=tokens(40), decoder=decoder)
        return tmp_path / "a.zarr"

    @pytest.mark.parametrize(
        "name",
        [
            *("document", "position", "char_start", "char_end", "token_id", "sink", "decoder"),
            *("mean", "std", "max", "n_active"),
        ],
    )
    def test_every_array_of_a_store_counts(self, store, name):
        before = storage.fingerprint(store)
        ds = xr.open_zarr(store)[[name]].load()
        ds.to_zarr(store, mode="a")
        assert storage.fingerprint(store) == before
        assert xr.open_zarr(store).attrs["content_hash"] == before
        values = ds[name].values
        ds[name] = ds[name].dims, ~values if values.dtype == bool else values + 1
        ds.drop_encoding().to_zarr(store, mode="a")
        assert storage.fingerprint(store) != before

    def test_attributes_of_a_result_count(self, tmp_path):
        path, fingerprints = tmp_path / "x.zarr", []
        storage.write_result(result(1, 2).assign_attrs(threshold=0.5), path, manifest())
        for threshold in (0.5, 0.6):
            xr.Dataset(attrs=xr.open_zarr(path).attrs | {"threshold": threshold}).to_zarr(path, mode="a")
            fingerprints.append(storage.fingerprint(path))
        xr.Dataset(attrs=xr.open_zarr(path).attrs).to_zarr(path, mode="a")
        assert fingerprints[0] != fingerprints[1] == storage.fingerprint(path)


class TestStrangers:
    """What a user put into a group of ours, or into unfinished work, stays."""

    @pytest.fixture
    def edited(self, tmp_path):
        """A result without an inventory, with a variable that a user added."""
        write_result(tmp_path / "x.zarr")
        attrs = xr.open_zarr(tmp_path / "x.zarr").attrs  # xarray replaces them
        xr.Dataset({"mine": ("z", [1.0, 2.0])}, attrs=attrs).to_zarr(tmp_path / "x.zarr", mode="a")
        return tmp_path / "x.zarr"

    def test_one_that_another_program_changed_is_replaced_only_where_it_may_be_overwritten(self, edited):
        with pytest.raises(InputError, match="that another program changed"):
            storage.write_result(result(3), edited, manifest(other=1))
        storage.write_result(result(3), edited, manifest("two"), overwrite=True)
        assert storage.open_result(edited).x.values.tolist() == [3]

    @pytest.mark.parametrize(
        "place",
        [
            *("mine/thesis.txt", "mine/c/thesis.txt", "mine/c/1/thesis.txt", "mine/c/1", "mine/c/00", "mine/c/1/0"),
            *("x/0", "c/thesis.txt", "notes/c/0", "notes/c", "c", "panels/thesis.txt", "notes/sub/zarr.json"),
            "old/thesis.txt",
        ],
    )
    def test_a_file_at_any_depth_is_a_stranger(self, edited, place):
        if place.startswith("old"):
            place = place.replace("old", files.temporary_path(edited / "y.zarr", "old").name)
        (edited / place).parent.mkdir(exist_ok=True, parents=True)
        (edited / place).write_text("ten years")
        with pytest.raises(InputError, match=f"{place} next to its own files"):
            storage.write_result(result(3), edited, manifest("two"), overwrite=True)
        assert (edited / place).read_text() == "ten years"

    def test_a_group_inside_of_one_is_a_stranger(self, edited):
        xr.Dataset({"v": ("z", [1.0, 2.0])}).to_zarr(edited, group="sub", mode="a")
        with pytest.raises(InputError, match="sub/v/c/0"):
            write_result(edited)

    @pytest.mark.parametrize("write", WRITERS[:3])
    def test_links_do_not_lead_into_stores(self, tmp_path, write):
        write_store(tmp_path / "s.zarr")
        before = tree(tmp_path)
        (tmp_path / "link").symlink_to(tmp_path / "s.zarr/activation/c")
        (tmp_path / "inner.zarr").symlink_to(tmp_path / "s.zarr/activation/c/new.zarr")
        for path in (tmp_path / "link/x.zarr", tmp_path / "link/sub/x.zarr", tmp_path / "inner.zarr"):
            with pytest.raises(InputError, match=r"is inside of the store or result .*s\.zarr"):
                write(path)
        assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("link")} == before

    @pytest.mark.parametrize("name", [".zgroup", ".zattrs", ".zarray"])
    def test_groups_of_the_older_format_are_groups(self, tmp_path, name):
        (tmp_path / "v2.zarr").mkdir()
        (tmp_path / "v2.zarr" / name).write_text("{}")
        with pytest.raises(InputError, match="is inside of the store or result"):
            write_store(tmp_path / "v2.zarr/sub/mine.zarr")
        assert tree(tmp_path) == {f"v2.zarr/{name}": b"{}"}

    def test_a_mount_point_and_the_working_directory_are_refused_at_the_door(self, tmp_path, monkeypatch):
        (tmp_path / "disk").mkdir()
        monkeypatch.setattr(targets.os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
        with pytest.raises(InputError, match="give the path of a folder in it"):
            storage.make_result(tmp_path / "disk", manifest(), lambda: pytest.fail("computed"))
        monkeypatch.undo()
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        for path in (".", tmp_path / "empty", "../empty"):
            with pytest.raises(InputError, match="working directory"):
                storage.make_result(path, manifest(), lambda: pytest.fail("computed"))
        with pytest.raises(InputError, match="empty"):
            storage.make_result("..", manifest(), lambda: pytest.fail("computed"))
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "disk", tmp_path / "empty"]

    @pytest.mark.parametrize("closed", [True, False])
    def test_whole_work_is_looked_at_before_it_takes_its_place(self, tmp_path, monkeypatch, closed):
        def interrupt(*_):
            raise KeyboardInterrupt

        path = tmp_path / "x.zarr"
        with storage.claim(path, manifest()) as target:
            partial = target.begin()
            storage.add_variables(result(8), partial)
            (partial / "panels").mkdir()
            (partial / "panels/panel-00000.npz").touch()
            if closed:
                with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                    patch.setattr(targets.Target, "_set_aside", interrupt)
                    target.finish()
        (partial / "mine").mkdir()
        (partial / "mine/thesis.txt").write_text("ten years")
        for overwrite in (True, False):
            with pytest.raises(InputError, match=r"mine/thesis\.txt next to its own files"):
                storage.claim(path, manifest(), overwrite=overwrite).__enter__()
        assert (partial / "mine/thesis.txt").read_text() == "ten years"
        shutil.rmtree(partial / "mine")
        with storage.claim(path, manifest()) as target:
            assert target.is_current() == closed
            assert target.resumes() != closed

    def test_a_folder_that_comes_while_work_is_done_is_not_set_aside(self, tmp_path):
        with storage.claim(tmp_path / "x.zarr", manifest()) as target:
            partial = target.begin()
            storage.add_variables(result(8), partial)
            (partial / "mine").mkdir()
            (partial / "mine/thesis.txt").write_text("ten years")
            target.finish()
        assert (tmp_path / "x.zarr/mine/thesis.txt").read_text() == "ten years"


WRITE = """
    import sys, numpy, storage
    {make}
    print("begun", flush=True)
    sys.stdin.read()
"""
SHAPE = {"n_tokens": 6, "n_features": 3, "shard_rows": 3}


class TestLivingWriter:
    """Nobody throws away the work of a writer that lives."""

    def begin(self, tmp_path, **options):
        return storage.ActivationWriter.create(tmp_path / "a.zarr", **SHAPE, **options)

    @pytest.fixture
    def elsewhere(self, tmp_path):
        """Another process that has begun a.zarr and written a shard."""
        make = 'writer = storage.ActivationWriter.create("a.zarr", n_tokens=6, n_features=3, shard_rows=3)'
        code = textwrap.dedent(WRITE).format(make=f"{make}; writer.write_shard(0, numpy.eye(3))")
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "begun\n"
            yield process
            process.kill()

    def test_the_lock_of_a_dead_one_goes_where_the_store_is_current(self, tmp_path, elsewhere):
        """The writer of an import dies between its last rename and the release of its lock."""
        np.save(tmp_path / "x.npy", np.eye(6, 3))
        storage.import_activations(tmp_path / "x.npy", tmp_path / "b.zarr")
        elsewhere.kill()
        elsewhere.wait()
        lock = tmp_path / "b.zarr.partial.lock"
        (tmp_path / "a.zarr.partial.lock").rename(lock)
        storage.import_activations(tmp_path / "x.npy", tmp_path / "b.zarr")
        assert not lock.exists()
        lock.write_text("of another program")
        storage.import_activations(tmp_path / "x.npy", tmp_path / "b.zarr")
        assert lock.read_text() == "of another program"

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("made", [None, "harvest"])
    def test_a_second_one_is_refused_with_the_name_of_the_first(self, tmp_path, elsewhere, overwrite, made):
        made = made and storage.new_manifest(made, {"text": "1"}, {})
        before = tree(tmp_path)
        with pytest.raises(BusyError, match=f"process {elsewhere.pid} on"):
            self.begin(tmp_path, overwrite=overwrite, manifest=made)
        with pytest.raises(BusyError, match=f"process {elsewhere.pid} on"):
            write_store(tmp_path / "a.zarr", overwrite=overwrite)
        assert tree(tmp_path) == before
        writer = storage.ActivationWriter.open(tmp_path / "a.zarr")
        writer.write_shard(1, np.eye(3))
        assert writer.missing() == []
        writer.finalise()
        assert storage.open_activations(tmp_path / "a.zarr").activation.values.sum() == 6

    @pytest.mark.parametrize("end", ["kill", "exit"])
    def test_a_dead_one_gives_way(self, tmp_path, elsewhere, end):
        elsewhere.kill() if end == "kill" else elsewhere.stdin.close()
        elsewhere.wait()
        writer = self.begin(tmp_path)
        assert writer.missing() == [0, 1]
        writer.discard()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("end", ["discard", "finalise", "forget", "fail"])
    def test_in_one_process(self, tmp_path, end):
        writer = self.begin(tmp_path)
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"):
            self.begin(tmp_path)
        for i in (0, 1):
            writer.write_shard(i, np.eye(3))
        if end in ("discard", "finalise"):
            getattr(writer, end)()
        elif end == "fail":
            with pytest.raises(InputError):
                writer.write_shard(0, np.eye(4))
        writer = None if end != "fail" else writer.discard()
        again = self.begin(tmp_path, overwrite=True)
        again.discard()
        assert not list(tmp_path.glob("*.lock"))
        assert not list(tmp_path.glob("*.partial"))

    def test_one_that_goes_on_holds_it_too(self, tmp_path):
        made, other = (storage.new_manifest("harvest", {"text": text}, {}) for text in "12")
        first = self.begin(tmp_path, manifest=made)
        second = self.begin(tmp_path, manifest=made)
        del first
        third = self.begin(tmp_path, manifest=made)
        del second
        with pytest.raises(BusyError):
            self.begin(tmp_path, manifest=other, overwrite=True)
        del third
        self.begin(tmp_path, manifest=other, overwrite=True).discard()

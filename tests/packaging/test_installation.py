"""The installation of a bundle is atomic, also when it is killed, interrupted or concurrent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import OutputError
from bundler.packaging.installation import (
    complete_installation,
    complete_installations,
    find_leftovers,
    install_bundle,
    remove_leftover,
    staging_directory,
)


def finished(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An installed bundle with its archive."""
    (tmp_path / "model.tar.gz").write_text("old archive")
    return finished(tmp_path / "model", "old")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_staging_directory_is_removed_also_after_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "dist" / "model"
    with staging_directory(directory) as folder:
        assert folder.parent == directory.parent
    with pytest.raises(FileNotFoundError), staging_directory(directory) as folder:
        (folder / "nothing").rename(folder / "half")
    assert list(directory.parent.iterdir()) == []


def test_a_bundle_replaces_an_earlier_one_as_a_whole(directory: Path, tmp_path: Path) -> None:
    (directory / "only in the old one").write_text("x")
    archive = tmp_path / "new.tar.gz"
    archive.write_text("new archive")
    install_bundle(finished(tmp_path / "new", "new"), directory, archive=archive, archive_path=tmp_path / "model.tar.gz")
    assert names(directory) == ["file"]
    assert (directory / "file").read_text() == "new"
    assert (tmp_path / "model.tar.gz").read_text() == "new archive"
    assert names(tmp_path) == ["model", "model.tar.gz"]


def test_the_earlier_bundle_is_restored_when_the_new_one_cannot_be_moved(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        install_bundle(tmp_path / "nothing", directory)
    assert (directory / "file").read_text() == "old"
    assert names(tmp_path) == ["model", "model.tar.gz"]


@pytest.mark.parametrize("earlier", [True, False], ids=["with an earlier bundle", "the first bundle"])
def test_bundle_and_archive_are_unchanged_when_the_archive_cannot_be_installed(tmp_path: Path, earlier: bool) -> None:
    directory, archive, in_the_way = tmp_path / "model", tmp_path / "new.tar.gz", tmp_path / "model.tar.gz"
    if earlier:
        finished(directory, "old")
    archive.write_text("archive")
    (in_the_way / "something").mkdir(parents=True)
    bundle = finished(tmp_path / "new", "new")
    with pytest.raises(OutputError, match=r"model\.tar\.gz cannot be replaced"):
        install_bundle(bundle, directory, archive=archive, archive_path=in_the_way)
    assert not earlier or (directory / "file").read_text() == "old"
    assert (bundle / "file").read_text() == "new"
    assert names(tmp_path) == [*(["model"] if earlier else []), "model.tar.gz", "new", "new.tar.gz"]


class Interrupted(type(Path())):  # type: ignore[misc]
    """A path whose rename is followed by KeyboardInterrupt."""

    def rename(self, target: Path) -> Path:
        super().rename(target)
        raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["the earlier one is aside", "the new one is in place"])
def test_an_interruption_between_the_renames_leaves_the_earlier_bundle(directory: Path, tmp_path: Path, moment: str) -> None:
    with staging_directory(directory) as folder:
        bundle, place_of_it, archive = finished(folder / "new", "new"), directory, folder / "new.tar.gz"
        archive.write_text("new archive")
        if moment == "the earlier one is aside":
            place_of_it = Interrupted(directory)
        else:
            bundle = Interrupted(bundle)
        with pytest.raises(KeyboardInterrupt):
            install_bundle(bundle, place_of_it, archive=archive, archive_path=tmp_path / "model.tar.gz")
    assert (directory / "file").read_text() == "old"
    assert (tmp_path / "model.tar.gz").read_text() == "old archive"
    assert names(tmp_path) == ["model", "model.tar.gz"]


def test_an_installed_bundle_is_readable_by_all_users(tmp_path: Path) -> None:
    with staging_directory(tmp_path / "model") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        bundle = finished(folder / "model", "new")
        bundle.chmod(0o700)
        install_bundle(bundle, tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_an_output_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written to"), staging_directory(tmp_path / "file" / "dist" / "model"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(OutputError, match="cannot be written to: Read-only"), staging_directory(tmp_path / "model"):
            pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# For each line FOLDER, N, SIGNAL of stdin, a forked process installs `new` at `FOLDER/model`, and gets the signal just before
# its Nth operation on files; the exit code is written to stdout. Starting an interpreter each time would take much longer.
INSTALLING = """
import os, sys
from pathlib import Path
from bundler.interruption import install_signal_handlers
from bundler.packaging.installation import install_bundle, staging_directory
def install(folder, last, number):
    count = 0
    def watch(event, arguments):
        nonlocal count
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock")
        if changes or event == "open" and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == last:
                os.kill(os.getpid(), number)
    install_signal_handlers()
    with staging_directory(folder / "model") as work:
        (work / "model").mkdir()
        (work / "model" / "file").write_text("new")
        (work / "model" / "manifest.json").write_text("{}")
        (work / "model.tar.gz").write_text("new archive")
        sys.addaudithook(watch)
        install_bundle(work / "model", folder / "model", archive=work / "model.tar.gz", archive_path=folder / "model.tar.gz")
for line in sys.stdin:
    folder, last, number = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            install(Path(folder), int(last), int(number))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Install = Callable[..., int]


@pytest.fixture(scope="module")
def install() -> Iterator[Install]:
    """Install a bundle in another process that gets a signal, and return its exit code."""
    command = [sys.executable, "-c", INSTALLING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def run(folder: Path, last: int, number: int = signal.SIGKILL) -> int:
            print(folder, last, int(number), sep="\t", file=stdin, flush=True)
            return int(stdout.readline())

        yield run


def contents(folder: Path) -> tuple[str | None, str | None]:
    file, archive = folder / "model" / "file", folder / "model.tar.gz"
    return (file.read_text() if file.exists() else None, archive.read_text() if archive.exists() else None)


@pytest.mark.parametrize("earlier", [True, False], ids=["with an earlier bundle", "the first bundle"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_bundle_after_the_next_command(
    tmp_path: Path, install: Install, earlier: bool
) -> None:
    old = ("old", "old archive") if earlier else (None, None)
    seen = set()
    last = 0
    for last in range(1, 200):
        folder = tmp_path / str(last)
        folder.mkdir()
        if earlier:
            finished(folder / "model", "old")
            (folder / "model.tar.gz").write_text("old archive")
        if install(folder, last) == 0:
            break
        between = contents(folder)
        complete_installation(folder / "model")
        after = contents(folder)
        assert after in (old, ("new", "new archive")), (last, between, after)
        seen.add((between == after, after[0]))
        for leftover in find_leftovers(folder):
            assert remove_leftover(leftover)
        assert names(folder) == (["model", "model.tar.gz"] if after[0] else []), last
        assert contents(folder) == after
        shutil.rmtree(folder)
    assert last > 20
    assert seen >= {(True, old[0]), (True, "new"), (False, "new")}  # before, after, and between the moves


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_step_leaves_one_complete_bundle_and_nothing_else(
    tmp_path: Path, install: Install, number: int
) -> None:
    last = 0
    for last in range(1, 200):
        folder = tmp_path / str(last)
        folder.mkdir()
        finished(folder / "model", "old")
        (folder / "model.tar.gz").write_text("old archive")
        if install(folder, last, number) == 0:
            break
        assert contents(folder) in (("old", "old archive"), ("new", "new archive")), last
        assert names(folder) == ["model", "model.tar.gz"], last
    assert last > 20


def test_an_interrupted_installation_is_completed_when_no_bundle_is_at_its_path(tmp_path: Path, install: Install) -> None:
    """`bundler verify` searches a folder for bundles while the only one has been renamed."""
    for last in range(1, 200):
        folder = tmp_path / str(last)
        folder.mkdir()
        finished(folder / "model", "old")
        if install(folder, last) == 0:
            pytest.fail("it was never seen without a bundle")
        if not (folder / "model").exists():
            complete_installations(folder)
            assert contents(folder) == ("new", "new archive")
            return


def test_a_transaction_that_cannot_be_completed_is_reverted(tmp_path: Path, directory: Path) -> None:
    work = tmp_path / ".model-00000000.work"
    finished(work, "x")
    finished(work / "new", "new")
    (work / "new-archive").write_text("new archive")
    journal = {"schema": "edge-bundler/placing/1", "directory": "model", "archive": "model.tar.gz"}
    (work / "journal.json").write_text(json.dumps(journal))
    (tmp_path / "model.tar.gz").unlink()
    finished(tmp_path / "model.tar.gz", "a folder is in the way")
    complete_installation(directory)
    assert (directory / "file").read_text() == "old"
    assert names(tmp_path) == ["model", "model.tar.gz"]


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "[]",
        "null",
        '{"schema": "edge-bundler/placing/1", "directory": "../model", "archive": null}',
        '{"schema": "edge-bundler/placing/1", "directory": "other", "archive": null}',
        '{"schema": "edge-bundler/placing/1", "directory": "model", "archive": "../../x.tar.gz"}',
        '{"schema": "edge-bundler/placing/1", "directory": "model", "archive": ".profile"}',
        '{"schema": "edge-bundler/placing/1", "directory": ["model"], "archive": 3}',
    ],
)
def test_a_journal_that_is_not_valid_is_ignored(tmp_path: Path, directory: Path, journal: str) -> None:
    work = tmp_path / ".model-00000000.work"
    work.mkdir()
    finished(work / "new", "new")
    (work / "journal.json").write_text(journal)
    complete_installation(directory)
    assert (directory / "file").read_text() == "old"
    assert (work / "new" / "file").read_text() == "new"


def test_a_journal_that_is_a_fifo_is_not_waited_for(tmp_path: Path, directory: Path) -> None:
    work = tmp_path / ".model-00000000.work"
    work.mkdir()
    os.mkfifo(work / "journal.json")
    complete_installation(directory)
    assert (directory / "file").read_text() == "old"


def test_concurrent_installations_succeed_and_leave_one_complete_bundle(tmp_path: Path) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", INSTALLING], text=True, **pipes) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{tmp_path}\t0\t9\n" * 3)
        process.stdin.flush()
    for process in processes:
        stdout, stderr = process.communicate(timeout=60)
        assert stdout == "0\n" * 3, stderr
    assert contents(tmp_path) == ("new", "new archive")
    assert names(tmp_path) == ["model", "model.tar.gz"]


def test_the_directory_of_a_running_process_is_no_leftover(tmp_path: Path) -> None:
    with staging_directory(tmp_path / "model") as folder:
        assert find_leftovers(tmp_path) == ()
        program = (
            "import sys; from pathlib import Path; from bundler.packaging.installation import *\n"
            "print(len(find_leftovers(Path(sys.argv[1]))), remove_leftover(Leftover(path=Path(sys.argv[2]), pending=None)))"
        )
        run = subprocess.run([sys.executable, "-c", program, tmp_path, folder], capture_output=True, text=True, check=True)
        assert run.stdout == "0 False\n"
        assert folder.is_dir()


def test_the_directory_of_a_killed_process_is_a_leftover(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from bundler.packaging.installation import staging_directory\n"
        "with staging_directory(Path(sys.argv[1])) as folder:\n    print(folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert find_leftovers(tmp_path) == ()
        process.kill()
    (leftover,) = find_leftovers(tmp_path)
    assert (leftover.path, leftover.pending) == (folder, None)
    assert remove_leftover(leftover)
    assert names(tmp_path) == []


def test_leftovers_of_older_versions_are_recognized_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / ".model-abcd_123" / "model" / "models").mkdir(parents=True)
    (tmp_path / ".model-old-abcdefgh" / "model").mkdir(parents=True)
    (tmp_path / ".model-old-abcdefgh" / "model" / "manifest.json").write_text("{}")
    (tmp_path / ".venv-python11" / "bin").mkdir(parents=True)
    (tmp_path / ".backup-settings" / "backup").mkdir(parents=True)
    for leftover in find_leftovers(tmp_path):
        remove_leftover(leftover)
    assert names(tmp_path) == [".backup-settings", ".venv-python11", "model"]
    assert (tmp_path / "model" / "manifest.json").read_text() == "{}"


def test_a_name_of_the_maximum_length_is_installed(tmp_path: Path) -> None:
    name = "m" * 248
    archive = tmp_path / "a"
    archive.write_text("archive")
    with staging_directory(tmp_path / name) as folder:
        new = finished(folder / "new", "new")
        install_bundle(new, tmp_path / name, archive=archive, archive_path=tmp_path / f"{name}.tar.gz")
    assert names(tmp_path) == [name, f"{name}.tar.gz"]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with staging_directory(tmp_path / "model") as folder:
            bundle = finished(folder / "model", "new")
            (bundle / "models").mkdir()
            (bundle / "models" / "fp32.onnx").write_text("x")
            (bundle / "device.pyz").write_text("x")
            archive = folder / "a"
            archive.write_text("x")
            install_bundle(bundle, tmp_path / "model", archive=archive, archive_path=tmp_path / "model.tar.gz")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "model": 0o755,
        "model.tar.gz": 0o644,
        "model/file": 0o644,
        "model/models": 0o755,
        "model/models/fp32.onnx": 0o644,
        "model/device.pyz": 0o644,
    }

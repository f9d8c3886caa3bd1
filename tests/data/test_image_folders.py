"""Folders of images: which files are found, in which order, and what is said of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from bundler.data import image_folders
from bundler.data.image_folders import FoundImages, Skipped, find_images, folder_problem, sub_folders


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4)).save(folder / name, "PNG")


def names(found: FoundImages, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in found.paths]


def test_images_are_found_by_suffix_or_content(tmp_path: Path) -> None:
    write(tmp_path, "a.jfif", "b.AVIF", "c", "d.unknown", "e.txt", "f.json", "g.v2")
    (tmp_path / "h.heic").write_bytes(b"x")
    (tmp_path / "i.bin").write_bytes(b"x")
    (tmp_path / "j").write_bytes(b"")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jfif", "b.AVIF", "c", "d.unknown", "g.v2", "h.heic"]
    assert [path.name for path in found.others] == ["i.bin", "j"]
    assert found.unusable == ()


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "b/.hidden/c.png", "Thumbs.db", "README")
    found = find_images(tmp_path)
    assert (names(found, tmp_path), found.others, found.unusable) == (["a.png"], (), ())


def test_the_order_is_that_of_the_bytes_of_each_part(tmp_path: Path) -> None:
    expected = ["A.png", "a/Z.png", "a/b.png", "a.png", "a b/c.png", "é.png"]
    write(tmp_path, *expected[::-1])
    assert names(find_images(tmp_path), tmp_path) == sorted(expected, key=lambda name: name.encode().split(b"/"))


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/a/1.png", "elsewhere/2.png")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").symlink_to("../elsewhere/a")
    (data / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert names(find_images(data), data) == ["2.png", "a/1.png"]
    assert sub_folders(data) == [data / "a"]
    (tmp_path / "linked").symlink_to(data)
    assert names(find_images(tmp_path / "linked"), tmp_path / "linked") == ["2.png", "a/1.png"]


def test_folders_that_link_to_one_another_end(tmp_path: Path) -> None:
    write(tmp_path, "data/b/1.png", "beside.png")
    for name, target in (("a", "b"), ("c", "."), ("b/up", ".."), ("b/over", "../.."), ("root", "/")):
        (tmp_path / "data" / name).symlink_to(target)
    found = find_images(tmp_path / "data")
    assert names(found, tmp_path / "data") == ["b/1.png"]  # by its own name
    assert {path.name for path, _ in found.unusable} == {"a", "c", "up", "over", "root"}
    for level in range(30):  # 2^30 paths without a loop
        for side in "ab":
            (tmp_path / "many" / f"{level:02}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "many" / f"{level:02}" / side).symlink_to(tmp_path / "many" / f"{level + 1:02}")
    assert find_images(tmp_path / "many").paths == ()


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.png"]
    assert [(path.name, reason) for path, reason in found.unusable] == [
        ("gone.png", "it is a broken link: No such file or directory"),
        ("pipe.png", "it is a FIFO, not a regular file"),
        ("zero", "it is a character device, not a regular file"),
    ]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    program = (
        "import os, sys; os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534));"
        "from pathlib import Path; print(find_images(Path('.')).unusable, folder_problem(Path('closed')))"
    )
    program = (
        f"import os; from bundler.data.image_folders import find_images, folder_problem; os.chdir({str(tmp_path)!r}); {program}"
    )
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    root = Path(image_folders.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    (tmp_path / "closed").chmod(0o755)
    assert "(PosixPath('closed'), 'the folder cannot be read: Permission denied')" in done.stdout, done.stderr
    assert "cannot be read: Permission denied" in done.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "does not exist"),
        ("a.png", "is not a folder"),
        ("x" * 300, "cannot be read: File name too long"),
        ("\0", "does not exist"),
    ],
)
def test_what_is_no_folder_is_named(tmp_path: Path, name: str, problem: str) -> None:
    write(tmp_path, "a.png")
    assert folder_problem(tmp_path / name) == problem
    assert folder_problem(tmp_path) is None


def test_the_first_few_are_named_and_the_others_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = Skipped()
    paths = tuple(tmp_path / f"{index}\x1b.bin" for index in range(9))
    skipped.add_found([FoundImages(paths=(), unusable=tuple((path, "why") for path in paths), others=paths)], tmp_path)
    skipped.finish()
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("! warning: ") for line in lines] == [
        *(f"skipped {tmp_path}/{index}\\x1b.bin: why" for index in range(5)),
        "9 files are not images: 0\\x1b.bin, 1\\x1b.bin, 2\\x1b.bin, 3\\x1b.bin, 4\\x1b.bin and 4 more",
        "skipped 4 more",
    ]

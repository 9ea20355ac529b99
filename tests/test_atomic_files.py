import os

import pytest

from fastdgl.atomic_files import atomically


def names(folder):
    return sorted(os.listdir(folder))


def test_a_file_takes_its_place_at_the_end(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomically(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
        written = unfinished.stat().st_ino
        assert (tmp_path / "a").read_text() == "old" and unfinished.parent == tmp_path
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"
    # renamed, not copied
    assert (tmp_path / "a").stat().st_ino == written


@pytest.mark.parametrize("write", [lambda p: p.write_text("half"), lambda p: (p.mkdir(), (p / "half").write_text("")), lambda p: None],
                         ids=["file", "folder", "nothing"])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path, write):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomically(tmp_path / "a") as unfinished:
            write(unfinished)
            1 / 0
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "a").mkdir()
    with atomically(tmp_path / "a") as unfinished:
        unfinished.mkdir()
        (unfinished / "new").write_text("")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]
    with pytest.raises(OSError):
        with atomically(tmp_path / "a") as unfinished:
            unfinished.mkdir()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]

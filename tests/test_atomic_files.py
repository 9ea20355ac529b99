import errno
import os
import stat

import pytest

from fastdgl.atomic_files import DiskFullError, atomically


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


def kept_by_the_disk(monkeypatch):
    """What is waited for, and what is renamed, by its name then."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append(("rename", os.path.basename(target))), replace(source, target)))
    return done


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = kept_by_the_disk(monkeypatch)
    with atomically(tmp_path / "a") as unfinished:
        unfinished.mkdir()
        for name in ("one", "two"):
            (unfinished / name).write_text(name)
    assert sorted(done[:3]) == [("flush", name) for name in sorted([unfinished.name, "one", "two"])]
    assert done[3:] == [("rename", "a"), ("flush", tmp_path.name)]


def test_a_disk_that_takes_nothing_at_last_leaves_the_old(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="a: cannot be written: No space left on device"):
        with atomically(tmp_path / "a") as unfinished:
            unfinished.write_text("new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_file_system_that_has_no_flush_is_none_that_fails(tmp_path, monkeypatch):
    def unknown(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    with atomically(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


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


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027], ids=oct)
@pytest.mark.parametrize("own", [0o600, 0o644, 0o755], ids=oct)
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, umask, own):
    """Whatever the library that wrote them has given them."""
    before = os.umask(umask)
    try:
        with atomically(tmp_path / "a") as unfinished:
            unfinished.touch(own)
        with atomically(tmp_path / "b") as unfinished:
            unfinished.mkdir()
            (unfinished / "c").touch(own)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b/c")} == {0o666 & ~umask}
    assert names(tmp_path) == ["a", "b"]

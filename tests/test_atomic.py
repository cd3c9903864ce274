"""Files and folders are complete or absent."""

import errno
from pathlib import Path

import pytest

from robustcert.atomic import complete_file, resumable_folder


def write_half(path: Path) -> None:
    path.write_text("ha")
    raise OSError(errno.ENOSPC, "full")


def test_a_file_is_replaced_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with complete_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(OSError, match=rf"full: '{path}'"), complete_file(path) as temporary:
        write_half(temporary)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_is_replaced_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    for text in ("one", "two"):
        with resumable_folder(path, replaceable=lambda folder: True, key="k") as partial:
            (partial / text).write_text(text)
    with (
        pytest.raises(OSError, match=rf"full: '{path}'"),
        resumable_folder(path, replaceable=lambda folder: True, key="k") as partial,
    ):
        write_half(partial / "three")
    assert [p.name for p in path.iterdir()] == ["two"]


def test_what_is_not_replaceable_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(FileExistsError, match="holds something else: it is not replaced"),
        resumable_folder(tmp_path, replaceable=lambda folder: False, key="k"),
    ):
        pass
    with (
        pytest.raises(FileExistsError, match="not replaced"),
        resumable_folder(tmp_path / "thesis.txt", replaceable=lambda folder: True, key="k"),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    with resumable_folder(
        tmp_path / "empty", replaceable=lambda folder: False, key="k"
    ) as temporary:
        (temporary / "x").touch()
    assert (tmp_path / "empty" / "x").exists()


def test_a_folder_comes_back_if_its_replacement_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(OSError, match="no"),
        resumable_folder(path, replaceable=lambda folder: True, key="k"),
    ):
        pass
    assert (path / "old").exists()

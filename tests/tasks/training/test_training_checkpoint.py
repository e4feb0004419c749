"""Checkpoints: whole or not there, and only ever data."""

import errno
import pickle
from pathlib import Path

import pytest
import torch

from tasks.training.checkpoint import read_checkpoint, write_checkpoint

STATE = {"model": {"weight": torch.arange(4.0)}, "step": 3, "beta": 0.1, "history": [{"kl": 1.5}]}


def test_what_is_written_is_read(tmp_path):
    write_checkpoint(tmp_path / "new", STATE)
    found = read_checkpoint(tmp_path / "new")
    assert torch.equal(found.pop("model")["weight"], torch.arange(4.0))
    assert found == {"step": 3, "beta": 0.1, "history": [{"kl": 1.5}]}


def test_where_there_is_none_there_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "nowhere") is None


def test_a_partial_file_is_ignored_and_overwritten(tmp_path):
    (tmp_path / "checkpoint.pt.partial").write_bytes(b"half a checkpoint")
    assert read_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, STATE)
    assert read_checkpoint(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_write_that_dies_halfway_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, STATE)

    def die(state, out):
        out.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, STATE | {"step": 4})
    assert read_checkpoint(tmp_path)["step"] == 3


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [1, 10**6])
def test_a_full_disk_is_an_os_error_that_leaves_the_old_checkpoint(tmp_path, size):
    write_checkpoint(tmp_path, STATE)
    (tmp_path / "checkpoint.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        write_checkpoint(tmp_path, STATE | {"more": torch.zeros(size)})
    assert caught.value.errno == errno.ENOSPC
    assert read_checkpoint(tmp_path)["step"] == 3


class RunsWhenRead:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"step": 1, "evil": RunsWhenRead(str(tmp_path / "it ran"))}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "it ran").exists()

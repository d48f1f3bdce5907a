"""Parts of a large job, by number and name."""

import pytest

from seamless_d2.errors import UserError
from seamless_d2.shard import Shard


def test_each_name_belongs_to_one_shard() -> None:
    names = [f"folder/{k}" for k in range(500)]
    for count in (1, 3, 8):
        parts = [{n for n in names if Shard(k, count).takes(n)} for k in range(1, count + 1)]
        assert sorted(n for part in parts for n in part) == sorted(names)
        assert all(len(part) > 300 / count for part in parts)


def test_how_a_shard_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Shard.parse("3/8") == Shard(3, 8) and str(Shard(3, 8)) == "3/8"
    for text in ("0/8", "9/8", "3", "a/b", "3/", "-1/8"):
        with pytest.raises(UserError, match="--shard is"):
            Shard.parse(text)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with pytest.raises(UserError, match="sbatch --array"):
        Shard.parse("slurm")
    for key, value in (("ID", "12"), ("MIN", "10"), ("COUNT", "4")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", value)
    assert Shard.parse("slurm") == Shard(3, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
    assert Shard.parse("slurm") == Shard(2, 4)

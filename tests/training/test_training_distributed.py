"""Training on two processes under torchrun: the same curve, and checkpoints that either can go on from."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoglm.training import distributed
from autoglm.training.batches import Batch
from autoglm.training.plot import read_curve
from autoglm.training.sources import read_run
from autoglm.training.trainer import Trainer
from autoglm.training.vocabulary import build_tokenizer
from tiny_training import SMALL_NANO, short_recipe

SCRIPT = """
import sys
from pathlib import Path
from autoglm.training.distributed import joined
from autoglm.training.trainer import Trainer
from tiny_training import SMALL_NANO, short_recipe
with joined():
    trainer = Trainer(Path(sys.argv[1]), short_recipe(20, rows=4), config=SMALL_NANO)
    def stop(stage, step, measures):
        if step == int(sys.argv[2]):
            trainer.save()
            raise SystemExit(0)
    trainer.run(stop)
"""


@pytest.mark.needs("wqy-zenhei")
def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    """Two processes of torchrun stop half-way, one goes on; the curve is that of one all along."""
    text = build_tokenizer(SMALL_NANO.vocab_size)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "script.py"), str(tmp_path / "two"), "10"]
    subprocess.run(command, env=environment, check=True, timeout=300)
    trainers = [
        Trainer(tmp_path / name, short_recipe(20, rows=4), config=SMALL_NANO) for name in ("one", "two")
    ]
    assert [trainer.step for trainer in trainers] == [0, 10]
    for trainer in trainers:
        trainer.run()
    one, two = (read_curve(tmp_path / name)[-1] for name in ("one", "two"))
    for measure in ("image_loss", "text_loss", "patch_loss"):
        assert float(two[measure]) == pytest.approx(float(one[measure]), rel=0.05), measure
    mine, theirs = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    moved = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine if "blocks" in name])
    assert float(moved.abs().mean()) < 1e-3


def test_rows_are_shared_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes' rows together are the batch, transcripts too; what has no rows stays whole."""
    ids = torch.arange(10).view(5, 2)
    batch = Batch(
        "audio", ids, ids[..., None].expand(-1, -1, 3), ids[:, None, None].float(), ids, ids.float(),
        media=ids.float(), media_at=3, transcripts=("a", "b", "c", "d", "e"),
    )  # fmt: skip
    assert distributed.share(batch) is batch
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    shares: list[Batch] = []
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(distributed.share(batch))
    assert sorted(shares[0].transcripts + shares[1].transcripts) == list(batch.transcripts)
    assert torch.equal(torch.cat([each.ids for each in shares]).sort(0).values, ids)
    assert {each.media_at for each in shares} == {3}


def test_a_batch_must_have_a_row_for_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """More processes than rows are refused, and said so."""
    row = torch.zeros(1, 2, dtype=torch.long)
    batch = Batch("text", row, row, row, row, row)
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    with pytest.raises(distributed.ConfigError, match="start fewer"):
        distributed.share(dataclasses.replace(batch))

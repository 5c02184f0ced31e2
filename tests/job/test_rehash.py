"""What is the same content: by size and time at every night, by the bytes themselves where asked."""

import hashlib
import os

import camray
from camray.archive.listing import list_archive
from camray.config import ArchiveConfig
from camray.job.rehash import rehashed
from camray.ledger.plan import make_plan
from camray.ledger.table import Table
from camray.storage import open_folder
from tests.archive.makers import png, tar_of


def sums(out):
    table = camray.open_records(str(out)).to_table(columns=["index", "content_sha256"])
    return [row["content_sha256"] for row in sorted(table.to_pylist(), key=lambda row: row["index"])]


def test_other_bytes_are_explained_anew_whatever_the_time_says(tmp_path, demo, explain):
    """A tar of other size with the old time is seen by any night; of the old size, by `--rehash`."""
    (tmp_path / "in").mkdir()
    tar, out = tmp_path / "in" / "a.tar", tmp_path / "out"

    def put(*images):
        tar.write_bytes(tar_of([(f"{i}.png", data) for i, data in enumerate(images)]))
        os.utime(tar, ns=(10**18, 10**18))  # as ever

    def night(**settings):
        explain(tmp_path / "in", out, demo / "models" / "hans64-poisoned", overlay__policy="none", **settings)

    def is_due(rehash=False):
        folder, shards = (
            open_folder(str(out), "OUT"),
            list_archive(ArchiveConfig(str(tmp_path / "in"))).shards,
        )
        table = Table(folder)
        (owner,) = set(camray.open_records(str(out)).to_table(columns=["explainer"])["explainer"].to_pylist())
        committed = table.shards(owner)
        shards = rehashed(folder, shards, committed, ArchiveConfig()) if rehash else shards
        plan = make_plan(folder, owner, shards, committed, 256)
        assert plan.changed == len(plan.tasks)
        return bool(plan.tasks)

    put(png(1))
    night()
    assert not is_due()
    assert not is_due(rehash=True)
    put(png(1), png(2), bytes(20_000))
    assert is_due()
    put(png(3))
    assert not is_due()  # what a listing cannot see
    assert is_due(rehash=True)
    night(archive__rehash=True)
    assert sums(out) == [hashlib.sha256(png(3)).hexdigest()]
    assert not is_due()
    assert not is_due(rehash=True)

"""Names alone: what they promise."""

import pytest

from camray.archive.names import extension_of, name_kind, stem_of
from camray.archive.readers import packed_format


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "image"),
        ("UPPER.JPEG", "image"),
        ("jpeg_no_extension", "image"),
        ("spaces and ünïcode 图像 #1%20?.jpg", "image"),
        ("a.b.PNG", "image"),
        ("x.heic", "image"),
        ("x.jp2", "image"),
        ("x.dcm", "image"),
        ("x.mpo", "image"),
        ("scan.0001", "image"),
        ("v1.2 final cut", "image"),
        ("./a.jpg", "image"),
        ("../../a.jpg", "image"),
        ("a.cls", "sidecar"),
        ("a.TXT", "sidecar"),
        ("d/a.json", "sidecar"),
        ("a.pkl", "other"),
        ("a.npy", "other"),
        ("a.csv", "other"),
        ("a.jpg.exe", "other"),
        ("a.pyd", "other"),
        ("._a.jpg", "junk"),
        (".DS_Store", "junk"),
        (".jpg", "junk"),
        ("d/.hidden/a.jpg", "junk"),
        ("__MACOSX/a.jpg", "junk"),
        ("x/__MACOSX/a.jpg", "junk"),
        ("Thumbs.db", "junk"),
    ],
)
def test_kinds(name, kind):
    assert name_kind(name) == kind


def test_stems():
    assert stem_of("d.x/a.1.jpg") == "d.x/a.1"
    assert stem_of("d.x/a") == "d.x/a"
    assert extension_of("d.x/a") == ""


def test_shard_names():
    names = ["a.tar", "A.TAR", "a.tar.gz", "a.tgz", "b.zip", "c.parquet", "d.jpg", "tar", "a.tar.jpg"]
    assert [packed_format(n) for n in names] == ["tar"] * 4 + ["zip", "parquet", None, None, None]

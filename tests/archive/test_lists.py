"""Lists of paths: every form, what is said of a file, what is refused, what a change costs."""

import base64
import http.server
import json
import os
import threading

import pyarrow as pa
import pytest
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.records import Boxes, Shard, Status
from tests.archive.makers import png, tar_of

NAMES = ["cat/1.png", "dog/2.png", "dog/3.png"]


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    return tmp_path


def listed(path, **settings):
    return list_archive(ArchiveConfig(path=str(path), **settings))


def members(path, **settings):
    config = ArchiveConfig(path=str(path), **settings)
    listing = list_archive(config)
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    return list(read_members(shard, config))


def write(folder, name, text):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def parquet(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("form", ["csv", "semicolon", "tsv", "txt", "jsonl", "parquet", "bom"])
def test_every_form_gives_the_same_images(photos, form):
    rows = list(zip(NAMES, ["cat", "wolf", "7"], strict=True))
    if form == "parquet":
        path = parquet(photos / "l.parquet", {"file_name": NAMES, "label": ["cat", "wolf", "7"]})
    elif form == "jsonl":
        lines = [json.dumps({"image": n, "class": int(c) if c.isdigit() else c}) for n, c in rows]
        path = write(photos, "l.jsonl", "\n\n".join(lines))
    elif form == "txt":
        path = write(photos, "l.txt", "# a comment\r\n\r\n" + "".join(f"{n} \t{c}\r\n" for n, c in rows))
    else:
        mark = {"semicolon": ";", "tsv": "\t"}.get(form, ",")
        text = "".join(mark.join(cells) + "\r\n" for cells in [("Path ", "Label"), *rows])
        path = write(
            photos, "l.tsv" if form == "tsv" else "l.csv", ("\ufeff" if form == "bom" else "") + text
        )
    found = members(path)
    assert [(m.name, m.label, m.label_class) for m in found] == [
        ("cat/1.png", "cat", None),
        ("dog/2.png", "wolf", None),
        ("dog/3.png", None, 7),
    ]
    assert [m.content for m in found] == [png(i) for i in range(3)]


def test_without_labels_the_class_folder_counts_and_with_them_nothing_else(photos):
    assert [m.label for m in members(write(photos, "a.txt", "\n".join(NAMES)))] == ["cat", "dog", "dog"]
    path = write(photos, "b.csv", "path,label\ncat/1.png,\ndog/2.png,x\n")
    assert [m.label for m in members(path)] == [None, "x"]


def test_absolute_paths_and_addresses(photos, tmp_path_factory):
    other = tmp_path_factory.mktemp("lists")
    path = write(other, "l.txt", f"{photos}/cat/1.png\nfile://{photos}/dog/2.png\n")
    found = members(path)
    assert [m.content for m in found] == [png(0), png(1)]
    assert [m.label for m in found] == [None, None]
    with pytest.raises(UsageError, match="--allow-http"):
        listed(write(other, "h.txt", "http://host/1.png"))


def test_one_spelling_per_file_and_duplicates_are_counted(photos):
    path = write(photos, "l.txt", "cat/1.png\n./cat//1.png\ndog/../cat/1.png\ndog/2.png\n")
    listing = listed(path)
    assert [f.path for f in listing.files] == ["cat/1.png", "dog/2.png"]
    assert listing.left_out == {"listed twice": 2}
    path = write(photos, "m.csv", "path,label\ncat/1.png,a\ncat/1.png,b\n")
    assert listed(path).left_out == {"listed twice": 1, "other label for a listed file": 1}
    assert members(path)[0].label == "a"


def test_missing_and_escaping_paths_are_failed_records(photos):
    (photos.parent / "secret.png").write_bytes(png(9))
    lines = ["cat/1.png", "gone.png", "dog/../../secret.png", "dog"]
    found = members(write(photos, "l.txt", "\n".join(lines)))
    assert [m.name for m in found] == ["cat/1.png", "gone.png", "../secret.png", "dog"]
    assert [m.status for m in found] == [Status.OK] + [Status.FAILED] * 3
    assert [m.error_code for m in found[1:]] == [ErrorCode.MEMBER_UNREADABLE] * 3
    assert "No such file" in found[1].error_message
    assert "leads out" in found[2].error_message
    assert not any(m.content for m in found[1:])


def test_boxes_of_several_rows(photos):
    rows = ["cat/1.png,970,45,49,499,162", "cat/1.png,970,2,69,437,207", "dog/2.png,370,,,,"]
    path = write(photos, "l.csv", "\n".join(["file,index,xmin,ymin,xmax,ymax", *rows]))
    first, second = members(path)
    assert first.boxes == Boxes(((45, 49, 499, 162), (2, 69, 437, 207)), in_pixels=True)
    assert (first.label_class, second.label_class, second.boxes) == (970, 370, None)
    assert listed(path).left_out == {}


def test_masks(photos):
    path = write(photos, "l.csv", "path,mask\ncat/1.png,m/1.png\ndog/2.png,gone.png\ndog/3.png,\n")
    (photos / "m").mkdir()
    (photos / "m" / "1.png").write_bytes(b"mask")
    first, second, third = members(path)
    assert (first.mask, third.mask) == (b"mask", None)
    assert second.error_code == ErrorCode.MEMBER_UNREADABLE
    assert second.error_message.startswith("mask gone.png: No such file")


def test_what_changes_a_file(photos):
    """Its bytes, its label, its box, its mask; nothing else, and no other file."""
    (photos / "m.png").write_bytes(b"mask")
    row = "path,label,x0,y0,x1,y1,mask\n{},1,2,3,4,m.png\ndog/2.png,b,,,,,\n"

    def versions(text):
        return [f.version for f in listed(write(photos, "l.csv", text)).files]

    base = versions(row.format("cat/1.png,a"))
    assert versions(row.format("cat/1.png,a")) == base
    assert (
        versions("path,label,x0,y0,x1,y1,mask\n\ndog/2.png,b,,,,,\ncat/1.png,a,1,2,3,4,m.png")[::-1] == base
    )
    for text in (row.format("cat/1.png,c"), row.replace("1,2,3,4", "1,2,3,5").format("cat/1.png,a")):
        assert versions(text)[0] != base[0]
        assert versions(text)[1] == base[1]
    os.utime(photos / "m.png", ns=(1, 1))
    assert versions(row.format("cat/1.png,a"))[0] != base[0]
    assert versions("path\ncat/1.png\n") == [str(os.stat(photos / "cat/1.png").st_mtime_ns)]


def test_packed_files_in_a_list_are_shards(photos):
    (photos / "a.tar").write_bytes(tar_of([("x.png", png(1))]))
    listing = listed(write(photos, "l.txt", "a.tar\ncat/1.png\ngone.tar\n"))
    assert [(s.uri, s.format) for s in listing.shards] == [
        (f"{photos}/a.tar", "tar"),
        (f"{photos}/gone.tar", "tar"),
    ]
    assert [m.name for m in read_members(listing.shards[0], ArchiveConfig())] == ["x.png"]
    assert [f.path for f in listing.files] == ["cat/1.png"]


def test_filters_and_hidden_folders(photos):
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(png(5))
    path = write(photos, "l.txt", "\n".join([*NAMES, f"{photos}/.cache/x.png"]))
    assert [m.status for m in members(path)] == [Status.OK] * 4
    listing = listed(path, include=("dog/*",))
    assert [f.path for f in listing.files] == NAMES[1:]
    assert listing.left_out == {"excluded": 2}


def test_columns_may_be_named(photos):
    text = "scan,finding,label\ncat/1.png,tb,x\n"
    (member,) = members(write(photos, "l.csv", text), image_column="scan", label_column="Finding")
    assert (member.name, member.label) == ("cat/1.png", "tb")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.csv", "picture,label\na,b\n", "l.csv line 2: no column of paths; there are: picture, label"),
        ("l.csv", "path,label\n,b\n", "line 2: path is empty"),
        ("l.jsonl", '["a"]\n', "line 1: not a JSON object"),
        ("l.jsonl", '{"path": 3}\n', "line 1: path is empty or no text"),
    ],
)
def test_what_is_refused_names_the_line(photos, name, text, says):
    with pytest.raises(UsageError) as caught:
        listed(write(photos, name, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "failed", "says"),
    [
        ("l.csv", "path,label\ncat/1.png,a\n,b\n", "l.csv line 3", "path is empty"),
        ("l.csv", "path,x0,y0,x1,y1\ncat/1.png,1,2,3,four\n", "cat/1.png", "line 2: 'four' is not a number"),
        (
            "l.csv",
            "path,x0,y0,x1,y1\ncat/1.png,1,2,3,\n",
            "cat/1.png",
            "line 2: a box needs x0, y0, x1, y1; y1",
        ),
        ("l.csv", "path,x0,y0,x1,y1\ncat/1.png,1,2,1e400,9\n", "cat/1.png", "'1e400' is not a number a box"),
        ("l.csv", "path,label\ncat/1.png,b,c\n", "cat/1.png", "line 2: 3 cells under 2 names"),
        ("l.csv", 'path,label\n"cat/1.png,b\ncat/1.png,b\n', "l.csv line 2", "a quote that is not closed"),
        ("l.csv", f"path,label\ncat/1.png,b\n{'x' * 200_000},b\n", "l.csv line 3", "field larger than"),
        ("l.jsonl", '{"path": "cat/1.png"}\n{"path": \n', "l.jsonl line 2", "line 2: not JSON"),
        (
            "l.jsonl",
            '{"path": "cat/1.png", "label": ["a", "b"]}\n',
            "cat/1.png",
            "is no label: give one number",
        ),
        (
            "l.jsonl",
            f'{{"path": "cat/1.png", "bbox": [0, 0, 1{"0" * 400}, 5]}}\n',
            "cat/1.png",
            "is not a number a box",
        ),
        (
            "l.jsonl",
            f'{{"path": "cat/1.png", "bbox": [0, 0, {"9" * 9000}, 5]}}\n',
            "cat/1.png",
            "is not a number a box",
        ),
    ],
)
def test_a_row_that_cannot_be_is_a_failed_member_and_no_more(photos, name, text, failed, says):
    """A list that has one bad row is still a list: no value in it ends the run."""
    found = {m.name: m for m in members(write(photos, name, text))}
    assert set(found) <= {failed, "cat/1.png"}
    assert (found[failed].status, found[failed].error_code) == (Status.FAILED, ErrorCode.MEMBER_UNREADABLE)
    assert says in found[failed].error_message
    assert found[failed].content is None
    if failed != "cat/1.png":
        assert found["cat/1.png"].content == png(0)


@pytest.mark.parametrize(("name", "text"), [("l.txt", "\n# none\n"), ("l.csv", ""), ("l.csv", "path\n")])
def test_an_empty_list_holds_nothing(photos, name, text):
    listing = listed(write(photos, name, text))
    assert (listing.files, listing.shards) == ((), ())


def test_a_list_inside_a_folder_is_not_one(photos):
    write(photos, "l.csv", "path\ncat/1.png\n")
    assert [f.path for f in listed(photos).files] == ["cat/1.png", "dog/2.png", "dog/3.png", "l.csv"]


def test_a_parquet_file_with_images_is_no_list(photos):
    path = parquet(photos / "l.parquet", {"path": ["a.png"], "image": [png(1)]})
    assert [s.format for s in listed(path).shards] == ["parquet"]
    path.write_bytes(b"PAR1 and then nothing")
    assert [s.format for s in listed(path).shards] == ["parquet"]


def test_names_that_are_no_utf8(photos):
    odd = os.path.join(os.fsencode(photos), b"\xff.png")
    with open(odd, "wb") as file:
        file.write(png(8))
    (photos / "l.csv").write_bytes(b"path,label\n\xff.png,x\n")
    (member,) = members(photos / "l.csv")
    assert (member.content, member.label) == (png(8), "x")


def test_a_list_in_a_store(tmp_path, monkeypatch):
    """A list on s3 names what lies beside it, in the same bucket, by the same address and its options."""
    server = pytest.importorskip("moto.server", reason="moto serves as the store")
    store = server.ThreadedMotoServer(port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        options = f"?scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        fs, _ = pafs.FileSystem.from_uri(f"s3://bucket{options}")
        fs.create_dir("bucket")
        for name, content in (
            ("in/l.csv", b"path,label\nimg/a.png,cat\nimg/lost.png,dog\n"),
            ("in/img/a.png", png(8)),
        ):
            with fs.open_output_stream(f"bucket/{name}") as file:
                file.write(content)
        here, lost = members(f"s3://bucket/in/l.csv{options}")
        assert (here.content, here.label) == (png(8), "cat")
        assert (lost.content, lost.error_code) == (None, ErrorCode.MEMBER_UNREADABLE)
    finally:
        store.stop()


# ── how others spell paths and texts ─────────────────────────────────────────────────────────────


def test_backslashes_of_windows(photos):
    """The file, or a failed row with the path; never skipped."""
    path = write(photos, "l.csv", "path,label\n.\\cat\\1.png,a\ndog\\2.png,b\ndog/2.png,c\nC:\\x\\3.png,d\n")
    first, second, third = members(path)
    assert [(m.name, m.content, m.label) for m in (first, second)] == [
        ("cat/1.png", png(0), "a"),
        ("dog/2.png", png(1), "b"),
    ]
    assert (third.name, third.status, third.error_code) == (
        "C:\\x\\3.png",
        Status.FAILED,
        ErrorCode.MEMBER_UNREADABLE,
    )
    assert listed(path).left_out == {"listed twice": 1}
    (photos / "a\\b.png").write_bytes(png(7))  # which is a name here
    (odd,) = members(write(photos, "m.txt", "a\\b.png"))
    assert (odd.name, odd.content) == ("a\\b.png", png(7))


def test_file_uris_are_as_pathlib_writes_them(tmp_path):
    """With %20 for a space; an unquoted one is a name as it stands."""
    for number, name in enumerate(("a b.png", "a%20c.png", "\u00fc#.png")):
        (tmp_path / name).write_bytes(png(number))
    uris = [(tmp_path / name).as_uri() for name in ("a b.png", "a%20c.png", "\u00fc#.png")]
    found = members(write(tmp_path, "l.txt", "\n".join(uris)))
    assert [m.content for m in found] == [png(0), png(1), png(2)]
    (plain,) = members(write(tmp_path, "m.txt", f"file://{tmp_path}/a%20c.png"))
    assert plain.content == png(1)


@pytest.mark.parametrize("windows", [False, True])
def test_unicode_twins(photos, windows):
    """`ü` as one character or as two is one name, where only one file has it."""
    one, two = "M\u00fcnchen", "Mu\u0308nchen"
    (photos / two).mkdir()
    (photos / two / "a.png").write_bytes(png(7))
    slash = "\\" if windows else "/"
    (member,) = members(write(photos, "l.csv", f"path,label\n{one}{slash}a.png,x\n"))
    assert (member.name, member.content, member.label) == (f"{two}/a.png", png(7), "x")
    (photos / one).mkdir()
    (photos / one / "a.png").write_bytes(png(8))
    found = members(write(photos, "l.csv", f"path\n{one}/a.png\n{two}/a.png\n"))
    assert [m.content for m in found] == [png(8), png(7)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_other_encodings_are_said_or_refused(photos, ending, encoding):
    """A mark at the start decides; else the option; else a refusal by line and option. Never garbled."""
    word = "\u65e5" if encoding == "shift_jis" else "\u00fc"
    (photos / f"{word}.png").write_bytes(png(7))
    text = {
        "csv": f"path,label\ncat/1.png,a\n{word}.png,{word}\n",
        "tsv": f"path\tlabel\ncat/1.png\ta\n{word}.png\t{word}\n",
        "txt": f"cat/1.png\ta\n{word}.png\t{word}\n",
        "jsonl": f'{{"path": "cat/1.png", "label": "a"}}\n{{"path": "{word}.png", "label": "{word}"}}\n',
    }[ending]
    path = photos / f"l.{ending}"
    path.write_bytes(text.encode(encoding))
    first, second = members(path, encoding=encoding)
    assert [(m.name, m.label) for m in (first, second)] == [("cat/1.png", "a"), (f"{word}.png", word)]
    if encoding in ("utf-16", "utf-32", "utf-8-sig"):
        assert [m.label for m in members(path)] == ["a", word]
        return
    with pytest.raises(UsageError) as caught:
        members(path)
    if encoding != "utf-16-le":  # which is text in UTF-8 as well, of zero bytes
        line = 2 if ending in ("txt", "jsonl") else 3
        assert f"l.{ending} line {line}: bytes that are no text in utf-8. Fix: --encoding" in str(
            caught.value
        )


@pytest.mark.parametrize("name", ["nope", "rot13", "idna", "unicode_escape"])
def test_an_encoding_that_is_none_is_refused(photos, name):
    with pytest.raises(UsageError, match=f"--encoding: '{name}' is no encoding of text"):
        listed(photos, encoding=name)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "txt"])
def test_cells_that_are_data_are_refused_by_kind(photos, ending):
    """Images as text in the column of paths: at plan where every row is one, else a failed row each."""
    data = "data:image/png;base64," + base64.b64encode(png(3) * 4000).decode()
    path = photos / f"l.{ending}"

    def made(cells):
        if ending == "parquet":
            return parquet(path, {"image": cells})
        rows = {
            "csv": ["path,label", *(f'"{c}",a' for c in cells)],
            "txt": cells,
            "jsonl": [json.dumps({"path": c}) for c in cells],
        }[ending]
        return write(photos, path.name, "\n".join(rows))

    with pytest.raises(UsageError) as caught:
        listed(made([data, data]))
    assert len(str(caught.value)) < 400
    assert "holds an image itself" in str(caught.value) or "field larger than" in str(caught.value)
    found = {m.name: m for m in members(made(["cat/1.png", data]))}
    where = {"csv": "line 3", "parquet": "row 2"}.get(ending, "line 2")
    assert found["cat/1.png"].status == Status.OK
    assert found[f"l.{ending} {where}"].error_code == ErrorCode.MEMBER_UNREADABLE


# ── what a path may be ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listener():
    """A server that remembers every byte that anybody sends it."""
    heard = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self):
            heard.append(self.connection.recv(65536))
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, heard
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("where", ["a path", "a mask", "in metadata"])
@pytest.mark.parametrize(
    "options",
    [
        "endpoint_override=127.0.0.1:{}&scheme=http",
        "scheme=http&endpoint%5Foverride=127.0.0.1:{}",
        "ENDPOINT_OVERRIDE=x",
    ],
)
def test_no_list_and_no_metadata_chooses_the_endpoint(photos, monkeypatch, listener, where, options):
    """The keys of this machine's environment go to nobody whom a list names."""
    port, heard = listener
    for name, value in (
        ("ACCESS_KEY_ID", "AKIAPLANTED"),
        ("SECRET_ACCESS_KEY", "x"),
        ("SESSION_TOKEN", "planted"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    uri = f"s3://b/m.png?{options.format(port)}"
    text = {"a path": f'path\n"{uri}"\ncat/1.png\n', "a mask": f'path,mask\ncat/1.png,"{uri}"\ndog/2.png,\n'}
    if where == "in metadata":
        write(photos, "metadata.csv", f'file_name,mask\ncat/1.png,"{uri}"\n')
        found = members(photos)
    else:
        found = members(write(photos, "l.csv", text[where]))
    assert heard == []
    failed = [m for m in found if m.status == Status.FAILED]
    assert [m.error_code for m in failed] == [ErrorCode.MEMBER_UNREADABLE]
    said = failed[0].error_message
    assert ("leads out of the archive" if where == "in metadata" else "options behind `?`") in said
    assert sum(m.content is not None for m in found) >= 1


@pytest.mark.parametrize(
    "mask", ["/etc/hostname", "../outside.png", "file:///etc/hostname", "..\\outside.png", "\\\\h\\x"]
)
def test_metadata_names_no_file_outside_the_archive(photos, mask):
    inside = photos / "in"
    inside.mkdir()
    (photos / "outside.png").write_bytes(png(9))
    (inside / "1.png").write_bytes(png(1))
    write(inside, "metadata.csv", f'file_name,mask\n1.png,"{mask}"\n')
    (member,) = members(inside)
    assert (member.status, member.content, member.mask) == (Status.FAILED, None, None)
    assert member.error_message.startswith("metadata.csv line 2: mask ")
    assert "leads out of the archive" in member.error_message


def test_addresses_that_no_store_has_are_failed_rows(photos):
    odd = ["http://h/1", "s3://user:planted-word@b/1", "file://host/1.png", "gs://", "s3://b[c d/1.png"]
    good, *bad = members(write(photos, "l.txt", "\n".join(["cat/1.png", *odd])))
    assert good.content == png(0)
    assert [m.error_code for m in bad] == [ErrorCode.MEMBER_UNREADABLE] * 5
    assert not any("planted" in m.name + m.error_message for m in bad)

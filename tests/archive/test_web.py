"""Images that a list names by URL, against a real server: who is asked, how long, how much, and what is new.

The server stands on loopback, which nobody may be led to. So most tests replace `web.is_public`, the one
place that says which addresses are public; those that are about it do not.
"""

import ipaddress
import shutil
import socket
import subprocess
import time

import pytest

from camray.archive import web
from camray.archive.listing import DATELESS, SILENT, list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig
from camray.errors import ErrorCode, UsageError
from camray.ledger.intake import group_files
from camray.records import Shard, Status
from tests.archive.makers import png
from tests.archive.small_web import Page, small_web

ETAG = {"ETag": '"one"'}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(web, "_WAITS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(web, "_failures", {})
    web._pools.cache_clear()


@pytest.fixture
def loopback_is_public(monkeypatch):
    monkeypatch.setattr(web, "is_public", lambda address: True)


@pytest.fixture
def server():
    with small_web() as server:
        yield server


def listing_of(folder, *rows, **settings):
    path = folder / "l.csv"
    path.write_text("path,label\n" + "".join(f"{row},cat\n" for row in rows), "utf-8")
    config = ArchiveConfig(path=str(path), allow_http=True)
    return list_archive(ArchiveConfig(path=str(path), **({"allow_http": True} | settings))), config


def members(folder, *rows, **settings):
    listing, _ = listing_of(folder, *rows, **settings)
    config = ArchiveConfig(path=str(folder / "l.csv"), **({"allow_http": True} | settings))
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    return list(read_members(shard, config))


def version_of(folder, url):
    listing, _ = listing_of(folder, url)
    (file,) = listing.files
    return file.size_bytes, file.version


# ── what is read ─────────────────────────────────────────────────────────────────────────────────


def test_urls_are_members_beside_files(tmp_path, server, loopback_is_public):
    """Every spelling that servers have: an ending, none, a query, two slashes."""
    paths = ["/a.png", "/b", "/c.php?id=3&w=a/../b.jpg", "/d//e.PNG"]
    server.pages |= {path: Page(png(i), ETAG) for i, path in enumerate(paths)}
    (tmp_path / "own.png").write_bytes(png(9))
    found = members(tmp_path, *map(server.url, paths), "own.png")
    assert [(m.name, m.content, m.label) for m in found] == [
        *((server.url(path), png(i), "cat") for i, path in enumerate(paths)),
        ("own.png", png(9), "cat"),
    ]
    assert sorted(server.asked) == sorted(f"{verb} {path}" for path in paths for verb in ("HEAD", "GET"))


def test_without_the_option_nothing_is_asked(tmp_path, server, loopback_is_public):
    (tmp_path / "own.png").write_bytes(png(9))
    server.pages["/a.png"] = Page(png(1), ETAG)
    good, bad = members(tmp_path, server.url("/a.png"), "own.png", allow_http=False)
    assert (bad.status, bad.error_code, bad.content) == (Status.FAILED, ErrorCode.MEMBER_UNREADABLE, None)
    assert "--allow-http" in bad.error_message
    assert good.content == png(9)
    with pytest.raises(UsageError, match="--allow-http"):
        members(tmp_path, server.url("/a.png"), allow_http=False)
    assert server.connections == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("http://user:word@{}/a.png", "credentials"),
        ("http://{}/a.png?X-Amz-Signature=0123456789", "credentials"),
        ("http://{}/a.png#top", "#"),
        ("http://{}/a.tar", "tar file is not read"),
        ("http:///a.png", "no URL"),
        ("ftp://{}/a.png", "ftp"),
    ],
)
def test_a_url_that_cannot_be_is_a_failed_member(tmp_path, server, loopback_is_public, row, says):
    (tmp_path / "own.png").write_bytes(png(9))
    bad, good = sorted(
        members(tmp_path, row.format(f"127.0.0.1:{server.port}"), "own.png"),
        key=lambda m: m.status != "failed",
    )
    assert (bad.status, bad.error_code) == (Status.FAILED, ErrorCode.MEMBER_UNREADABLE)
    assert says in bad.error_message
    assert good.content == png(9)
    assert server.connections == []


def test_a_masks_url_is_held_to_the_same(tmp_path, server, loopback_is_public):
    server.pages |= {"/a.png": Page(png(1), ETAG), "/m.png": Page(png(2), ETAG)}
    path = tmp_path / "m.csv"
    path.write_text(f"path,mask\n{server.url('/a.png')},{server.url('/m.png')}\n", "utf-8")
    config = ArchiveConfig(path=str(path), allow_http=True)
    listing = list_archive(config)
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    ((member,), before) = list(read_members(shard, config)), listing.files[0].version
    assert (member.content, member.mask) == (png(1), png(2))
    server.pages["/m.png"].headers = {"ETag": '"two"'}
    assert list_archive(config).files[0].version != before


# ── who is asked ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"],
)
def test_nobody_is_led_to_this_machine(tmp_path, server, host):
    """However its address is written: no connection is made, and the record says why."""
    server.pages["/a.png"] = Page(png(1), ETAG)
    (member,) = members(tmp_path, server.url("/a.png", host))
    assert (member.status, member.error_code) == (Status.FAILED, ErrorCode.MEMBER_UNREADABLE)
    assert "no public address" in member.error_message
    assert server.connections == []


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False), ("127.255.0.9", False), ("::1", False), ("::ffff:127.0.0.1", False),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.0.1", False), ("::ffff:10.0.0.1", False),
        ("fd00:ec2::254", False), ("fc00::1", False), ("fec0::1", False),
        ("169.254.169.254", False), ("fe80::1", False), ("fe80::1%eth0", False), ("::ffff:a9fe:a9fe", False),
        ("100.64.0.1", False), ("224.0.0.1", False), ("239.1.1.1", False), ("ff02::1", False),
        ("ff0e::1", False),
        ("240.0.0.1", False), ("255.255.255.255", False), ("0.0.0.0", False), ("::", False),
        ("192.0.2.1", False), ("198.18.0.1", False), ("2001:db8::1", False),
        ("::127.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
        ("2001:0:7f00:1::", False),
    ],
)  # fmt: skip
def test_public_addresses(address, is_public):
    """By the registries of special addresses; one that hides another is judged by it, or refused."""
    assert web.is_public(ipaddress.ip_address(address)) == is_public


def resolver(monkeypatch, answers):
    """Let each question for `pictures.example` have the next answer: addresses of loopback."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, *args, **more):
        if host != "pictures.example":
            return real(host, port, *args, **more)
        asked.append(host)
        numbers = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in numbers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(web, "is_public", lambda address: str(address) == "127.0.0.2")
    return asked


def test_a_name_is_resolved_once_for_check_and_connection(tmp_path, monkeypatch):
    """A name that is public when it is looked at, and private a moment later, leads nowhere else."""
    pages = {"/a.png": Page(png(1), ETAG)}
    with small_web(pages, "127.0.0.2") as public, small_web({}, "127.0.0.1", public.port) as private:
        asked = resolver(monkeypatch, [["127.0.0.2"], ["127.0.0.1"]])
        (member,) = members(tmp_path, public.url("/a.png", "pictures.example"))
        assert member.content == png(1)
        assert set(public.connections) == {"127.0.0.2"}
        assert private.connections == []
        web._pools.cache_clear()  # as another process
        (member,) = members(tmp_path, public.url("/a.png", "pictures.example"))
        assert member.error_code == ErrorCode.MEMBER_UNREADABLE
        assert private.connections == []
        assert len(asked) == 3  # one a connection: listing and reading share the first; each is refused anew


def test_one_private_address_among_others_is_enough(tmp_path, monkeypatch):
    with small_web({"/a.png": Page(png(1), ETAG)}, "127.0.0.2") as public:
        resolver(monkeypatch, [["127.0.0.2", "127.0.0.1"]])
        (member,) = members(tmp_path, public.url("/a.png", "pictures.example"))
        assert "127.0.0.1, which is no public address" in member.error_message
        assert public.connections == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_redirect_is_checked(tmp_path, monkeypatch, status):
    monkeypatch.setattr(web, "is_public", lambda address: str(address) == "127.0.0.2")
    with small_web({}, "127.0.0.2") as public, small_web({"/s.png": Page(png(5), ETAG)}) as private:
        public.pages |= {
            "/in": Page(status=status, headers={"Location": private.url("/s.png")}),
            "/file": Page(status=status, headers={"Location": "file:///etc/hostname"}),
            "/auth": Page(status=status, headers={"Location": f"http://a:b@127.0.0.2:{public.port}/x.png"}),
            "/odd": Page(status=status, headers={"Location": "http://[::1/x.png"}),
            "/good": Page(status=status, headers={"Location": "x.png"}),
            "/x.png": Page(png(1), ETAG),
        }
        urls = [public.url(path, "127.0.0.2") for path in ("/in", "/file", "/auth", "/odd", "/good")]
        *refused, good = members(tmp_path, *urls)
        assert {member.error_code for member in refused} == {ErrorCode.MEMBER_UNREADABLE}
        for member, says in zip(refused, ("no public", "'file'", "credentials", "no URL"), strict=True):
            assert says in member.error_message
        assert good.content == png(1)
        assert private.connections == []


@pytest.mark.parametrize(("hops", "is_read"), [(5, True), (6, False)])
def test_five_redirects_are_followed(tmp_path, server, loopback_is_public, hops, is_read):
    for hop in range(hops):
        server.pages[f"/{hop}"] = Page(status=302, headers={"Location": f"/{hop + 1}"})
    server.pages[f"/{hops}"] = Page(png(1), ETAG)
    (member,) = members(tmp_path, server.url("/0"))
    assert (member.content == png(1)) == is_read
    assert is_read or (member.error_code, "redirects" in member.error_message) == ("member_unreadable", True)


def test_no_proxy_is_asked(tmp_path, server, loopback_is_public, monkeypatch):
    """A proxy would connect to an address that nobody checked."""
    server.pages["/a.png"] = Page(png(1), ETAG)
    with small_web() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        (member,) = members(tmp_path, server.url("/a.png"))
        assert (member.content, proxy.connections) == (png(1), [])


def test_a_certificate_is_checked_for_the_name_and_not_the_address(tmp_path, monkeypatch):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    pem = tmp_path / "both.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example",
         "-keyout", tmp_path / "key", "-out", tmp_path / "crt"], check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "crt").read_bytes())
    resolver(monkeypatch, [["127.0.0.2"]])
    with small_web({"/a.png": Page(png(1), ETAG)}, "127.0.0.2", certificate=pem) as public:
        named = public.url("/a.png", "pictures.example", "https")
        (unknown,) = members(tmp_path, named)
        assert unknown.error_code == ErrorCode.MEMBER_READ_FAILED
        assert "certificate" in unknown.error_message
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt"))
        monkeypatch.setattr(web, "_failures", {})
        web._pools.cache_clear()
        good, other = members(tmp_path, named, public.url("/a.png", "127.0.0.2", "https"))
        assert good.content == png(1)
        assert other.error_code == ErrorCode.MEMBER_READ_FAILED
        assert "GET /a.png" in public.asked


# ── how often, how much, how long ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(tmp_path, server, loopback_is_public, status):
    server.pages["/a.png"] = Page(png(1), ETAG, statuses=[status, status, 200, status, status])
    (member,) = members(tmp_path, server.url("/a.png"))
    assert member.content == png(1)
    assert server.asked == ["HEAD /a.png"] * 3 + ["GET /a.png"] * 3


@pytest.mark.parametrize(
    ("status", "code", "tries"),
    [
        (429, ErrorCode.MEMBER_READ_FAILED, 4),
        (503, ErrorCode.MEMBER_READ_FAILED, 4),
        (403, ErrorCode.MEMBER_READ_FAILED, 1),
        (404, ErrorCode.MEMBER_UNREADABLE, 1),
        (410, ErrorCode.MEMBER_UNREADABLE, 1),
    ],
)
def test_what_may_pass_is_tried_again_another_night_and_what_is_gone_is_sealed(
    tmp_path, server, loopback_is_public, status, code, tries
):
    server.pages["/a.png"] = Page(status=status)
    listing, config = listing_of(tmp_path, server.url("/a.png"))
    server.asked.clear()
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    (member,) = read_members(shard, config)
    assert (member.error_code, str(status) in member.error_message) == (code, True)
    assert server.asked == ["GET /a.png"] * tries


def cut_short(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + png(1))


def endless(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100_000):
        handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")


def drip(start, piece):
    def act(handler):
        handler.wfile.write(start)
        for _ in range(600):
            handler.wfile.write(piece)
            time.sleep(0.1)

    return act


def read_one(tmp_path, server, page, **settings):
    """Read what answered well when it was listed."""
    server.pages["/a.png"] = Page(png(1), ETAG)
    listing, _ = listing_of(tmp_path, server.url("/a.png"))
    server.pages["/a.png"] = page
    config = ArchiveConfig(path=str(tmp_path / "l.csv"), allow_http=True, **settings)
    shard = Shard("group", "files", 0, "", files=listing.files, root=listing.root)
    (member,) = read_members(shard, config)
    return member


def test_a_body_that_is_cut_is_no_image_and_may_pass(tmp_path, server, loopback_is_public):
    member = read_one(tmp_path, server, Page(act=cut_short))
    assert (member.error_code, member.content) == (ErrorCode.MEMBER_READ_FAILED, None)


def test_no_more_bytes_are_read_than_a_member_may_have(tmp_path, server, loopback_is_public):
    member = read_one(tmp_path, server, Page(act=endless), max_member_bytes=100_000)
    assert member.error_code == ErrorCode.MEMBER_TOO_LARGE
    server.asked.clear()
    server.pages["/b.png"] = Page(bytes(100_001), ETAG)
    (member,) = members(tmp_path, server.url("/b.png"), max_member_bytes=100_000)
    assert member.error_code == ErrorCode.MEMBER_TOO_LARGE
    assert server.asked == ["HEAD /b.png"]  # its size is told there


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x"),
    ],
)
def test_a_server_that_drips_is_cut_by_the_clock(
    tmp_path, server, loopback_is_public, monkeypatch, start, piece
):
    """The body that has no length, too: what came of it by then is not taken for the whole."""
    monkeypatch.setattr(web, "WHOLE_S", 1.0)
    began = time.monotonic()
    member = read_one(tmp_path, server, Page(act=drip(start, piece)))
    assert (member.error_code, member.content) == (ErrorCode.MEMBER_READ_FAILED, None)
    assert "not whole after 1 s" in member.error_message
    assert time.monotonic() - began < 30  # it would drip for 60 s


ODD = [
    b"",
    bytes(300),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 99999 X\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nETag: " + b"e" * 200_000 + b"\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\x00\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 300 + b"/\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://x:99999999/\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\n\r\n",
]


@pytest.mark.parametrize("answer", ODD, ids=range(len(ODD)))
def test_no_answer_ends_a_run(tmp_path, server, loopback_is_public, answer):
    """Whatever comes, at the listing and at the reading: a member that failed, or that is no image."""
    server.pages |= {"/a.png": Page(act=lambda h: h.wfile.write(answer)), "/b.png": Page(png(1), ETAG)}
    odd, good = members(tmp_path, server.url("/a.png"), server.url("/b.png"))
    assert (odd.status == Status.FAILED) or len(odd.content) < 2
    assert good.content == png(1)


def test_a_host_that_is_silent_is_not_asked_for_each_of_its_images(
    tmp_path, server, loopback_is_public, monkeypatch
):
    connected = []
    real = web._connected
    monkeypatch.setattr(web, "_connected", lambda places: connected.append(places) or real(places))
    monkeypatch.setattr(web, "_AT_ONCE", 1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        urls = [f"http://127.0.0.1:{closed.getsockname()[1]}/{i}.png" for i in range(50)]
        found = members(tmp_path, *urls)
    assert {member.error_code for member in found} == {ErrorCode.MEMBER_READ_FAILED}
    assert len(connected) == 3 * 4


# ── what is new ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}),
        (
            {"Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"},
            {"Last-Modified": "Mon, 02 Nov 2026 10:00:01 GMT"},
        ),
    ],
)
def test_a_file_is_new_where_its_server_says_so(tmp_path, server, loopback_is_public, before, after):
    page = server.pages["/a.png"] = Page(png(1), before)
    first = version_of(tmp_path, server.url("/a.png"))
    assert version_of(tmp_path, server.url("/a.png")) == first
    page.headers = after
    assert version_of(tmp_path, server.url("/a.png")) != first
    page.headers, page.content = before, png(1) + b"x"
    assert version_of(tmp_path, server.url("/a.png")) != first


def test_a_server_that_says_nothing_is_told_of(tmp_path, server, loopback_is_public):
    page = server.pages["/a.png"] = Page(png(1))
    first = version_of(tmp_path, server.url("/a.png"))
    page.content = png(2)  # of the same size
    assert version_of(tmp_path, server.url("/a.png")) == first
    assert listing_of(tmp_path, server.url("/a.png"))[0].left_out == {DATELESS: 1}


def test_a_server_without_head_is_asked_by_get(tmp_path, server, loopback_is_public):
    server.pages["/a.png"] = Page(png(1), ETAG, statuses=[405])
    with_get = version_of(tmp_path, server.url("/a.png"))
    assert server.asked == ["HEAD /a.png", "GET /a.png"]
    assert version_of(tmp_path, server.url("/a.png")) == with_get


def test_a_night_without_an_answer_replaces_no_record(tmp_path, server, loopback_is_public):
    """A file counts as it was remembered; one that nobody remembers is tried."""
    server.pages |= {"/a.png": Page(png(1), ETAG), "/b.png": Page(png(2), ETAG)}
    good, _ = listing_of(tmp_path, server.url("/a.png"))
    remembered = group_files("l", good.files, [], lambda _: False).groups
    server.pages["/a.png"].status = server.pages["/b.png"].status = 503
    bad, _ = listing_of(tmp_path, server.url("/a.png"), server.url("/b.png"))
    assert bad.left_out == {SILENT: 2}
    grouping = group_files("l", bad.files, remembered, lambda _: True)
    assert [[file.path for file in group.files] for group in grouping.new] == [[server.url("/b.png")]]
    server.pages["/a.png"].status, server.pages["/a.png"].headers = 200, {"ETag": '"two"'}
    later, _ = listing_of(tmp_path, server.url("/a.png"))
    assert [g.revision for g in group_files("l", later.files, remembered, lambda _: True).new] == [1]

"""Downloads: what breaks off carries on, what is wrong leaves nothing."""

from __future__ import annotations

import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qsattn_plugin.storage.download import DownloadFailed, _SafeRedirects, download
from tests.web import Site, sha, site

__all__ = ["site"]

CONTENT = bytes(i * 7 % 251 for i in range(300_000))


def fetch(site: Site, path: Path, content: bytes | None = CONTENT, **options: object) -> str:
    if content is not None:
        site.files["/file"] = content
    return download(f"{site.url}/file", path, sha256=options.pop("sha256", sha(CONTENT)), wait=0.0, **options)


def test_a_file_arrives_whole_and_nothing_else_is_left(site, tmp_path):
    seen = []
    found = fetch(site, tmp_path / "new/file.zip", progress=lambda done, total: seen.append((done, total)))
    assert found == sha(CONTENT)
    assert (tmp_path / "new/file.zip").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.zip"]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


def test_an_interrupted_transfer_carries_on_where_it_stopped(site, tmp_path):
    site.cuts = [100_000, 50_000]
    fetch(site, tmp_path / "f")
    assert [asked for _, asked in site.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_later_call_carries_on_too(site, tmp_path):
    site.cuts = [100_000]
    with pytest.raises(DownloadFailed, match="broke off at byte 100,000 of 300,000; 100,000 bytes have arrived"):
        fetch(site, tmp_path / "f", attempts=1)
    assert not (tmp_path / "f").exists()
    fetch(site, tmp_path / "f")
    assert site.requests[-1] == ("/file", "bytes=100000-")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_server_that_knows_no_ranges_is_asked_from_the_start(site, tmp_path):
    site.cuts, site.ranges = [100_000, 200_000], False
    fetch(site, tmp_path / "f")
    assert len(site.requests) == 3
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_parts_of_two_versions_are_never_joined(site, tmp_path, etag):
    """Without a checksum it is the server's mark that tells versions apart; where there is none, all comes anew."""
    site.cuts = [100_000]
    site.etag = site.etag if etag else ""
    with pytest.raises(DownloadFailed):
        fetch(site, tmp_path / "f", CONTENT[::-1], sha256=None, attempts=1)
    site.etag = etag
    assert fetch(site, tmp_path / "f", sha256=None) == sha(CONTENT)


def test_where_the_server_marks_no_versions_the_checksum_tells_them_apart(site, tmp_path):
    site.etag, site.cuts = "", [100_000]
    with pytest.raises(DownloadFailed, match="broke off"):
        fetch(site, tmp_path / "f", CONTENT[::-1], attempts=1)
    with pytest.raises(DownloadFailed, match="wrong checksum"):  # the first third is the other version's
        fetch(site, tmp_path / "f")
    site.cuts = [100_000]
    fetch(site, tmp_path / "f")
    assert [asked for _, asked in site.requests] == [None, "bytes=100000-", None, "bytes=100000-"]


def test_a_part_of_another_address_is_not_used(site, tmp_path):
    site.cuts = [100_000]
    with pytest.raises(DownloadFailed):
        fetch(site, tmp_path / "f", attempts=1)
    site.files["/other"] = CONTENT
    download(f"{site.url}/other", tmp_path / "f", sha(CONTENT))
    assert site.requests[-1] == ("/other", None)


@pytest.mark.parametrize(("more", "asked"), [(b"", ["bytes=300000-"]), (b"more", ["bytes=300004-", None])])
def test_a_part_that_is_complete_is_only_checked_and_a_longer_one_thrown_away(site, tmp_path, more, asked):
    site.cuts = [100_000]
    with pytest.raises(DownloadFailed):
        fetch(site, tmp_path / "f", attempts=1)
    (tmp_path / "f.part").write_bytes(CONTENT + more)  # without more: stopped between the last byte and the new name
    fetch(site, tmp_path / "f")
    assert [header for _, header in site.requests[1:]] == asked
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    with pytest.raises(DownloadFailed, match=f"should be {sha(b'x')} and is {sha(CONTENT)}"):
        fetch(site, tmp_path / "f", sha256=sha(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_tries_are_bounded(site, tmp_path):
    site.statuses = [503, 500, 429, 503]
    with pytest.raises(DownloadFailed, match="the server answers 503"):
        fetch(site, tmp_path / "f", attempts=4)
    assert len(site.requests) == 4
    site.statuses = [503]
    fetch(site, tmp_path / "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statuses": [403]}, "the server answers 403"),
        ({"kind": "text/html; charset=utf-8"}, "answers with a web page"),
        ({"redirect": {"/file": "ftp://127.0.0.1/x"}}, "is not followed"),
        ({"redirect": {"/file": "file:///etc/hostname"}}, "is not allowed"),
    ],
)
def test_answers_that_another_try_would_not_change(site, tmp_path, change, message):
    for name, value in change.items():
        setattr(site, name, value)
    with pytest.raises(DownloadFailed, match=message):
        fetch(site, tmp_path / "f")
    assert len(site.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_counts_as_interrupted(site, tmp_path):
    site.cuts, site.stall = [100_000], 1.0
    fetch(site, tmp_path / "f", timeout=0.2)
    assert [asked for _, asked in site.requests] == [None, "bytes=100000-"]


@pytest.mark.parametrize(("old", "new", "followed"), [("http", "https", True), ("https", "http", False)])
def test_a_safe_connection_is_not_given_up(old, new, followed):
    redirect = _SafeRedirects().redirect_request
    arguments = (urllib.request.Request(f"{old}://a.test/x"), None, 302, "Found", {}, f"{new}://a.test/y")
    if followed:
        assert redirect(*arguments).full_url == "https://a.test/y"
    else:
        with pytest.raises(DownloadFailed, match="it is not https"):
            redirect(*arguments)


def test_redirections_are_followed(site, tmp_path):
    site.redirect["/here"] = "/file"
    site.files["/file"] = CONTENT
    assert download(f"{site.url}/here", tmp_path / "f") == sha(CONTENT)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "nothing"])
def test_only_the_web_is_read(url, tmp_path):
    with pytest.raises(DownloadFailed, match="only http and https"):
        download(url, tmp_path / "f")


def test_no_network_is_said_at_once(tmp_path):
    with socket.socket() as free:  # bound, not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadFailed, match="no connection"):
            download(f"http://127.0.0.1:{free.getsockname()[1]}/f", tmp_path / "f", wait=60)  # a retry would time out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("attempts", [2, 1], ids=["makes it", "gives up"])
@pytest.mark.parametrize("known", [sha(CONTENT), None], ids=["checked", "unchecked"])
def test_who_comes_while_another_downloads_waits_and_asks_for_no_byte_twice(site, tmp_path, attempts, known):
    """Where the first gives up, the second carries on from what it left."""
    site.files["/file"], site.cuts, site.stall = CONTENT, [100_000], 1.0
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, site, tmp_path / "f", attempts=attempts, sha256=known)
        while not site.requests:
            time.sleep(0.01)
        seen = []
        assert fetch(site, tmp_path / "f", progress=lambda done, total: seen.append(done), sha256=known) == sha(CONTENT)
        assert isinstance(first.exception(), DownloadFailed) if attempts == 1 else first.result() == sha(CONTENT)
    assert [asked for _, asked in site.requests] == [None, "bytes=100000-"]
    assert min(seen) < len(CONTENT)  # it said how far the other was
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_that_another_process_fetched_is_not_taken_where_it_is_not_the_right_one(site, tmp_path):
    site.files["/file"], site.cuts, site.stall = CONTENT[::-1], [100_000], 1.0
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, site, tmp_path / "f", None, sha256=None)
        while not site.requests:
            time.sleep(0.01)
        with pytest.raises(DownloadFailed, match="wrong checksum"):
            fetch(site, tmp_path / "f", None)
        assert first.result() == sha(CONTENT[::-1])
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]

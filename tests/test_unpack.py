"""Archives that are broken, are too large, or lead out of their folder."""

from __future__ import annotations

import stat
import tarfile
import zlib

import pytest

from qsattn_plugin.data.public.unpack import BadArchive, unpack
from qsattn_plugin.errors import UserError
from tests.web import tarred, zipped

#: Bytes that do not compress much.
CONTENT = bytes(i * i * 7 % 251 for i in range(300_000))


def special(kind: bytes, link: str = "") -> dict[str, bytes | tarfile.TarInfo]:
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = kind, link
    # What escapes through a link: the link first, then a file below it.
    return {"good.txt": b"good", "evil": info, "evil/through.txt": b"bad"}


def lying_zip() -> bytes:
    """A zip whose headers claim 10 bytes for a member that unpacks to a million, checksum and all."""
    content = zipped({"bomb": bytes(1_000_000)})
    real = (1_000_000).to_bytes(4, "little")
    assert content.count(real) == 2  # local header and directory
    return content.replace(real, (10).to_bytes(4, "little"))


#: Its tar.gz of a few kilobytes asks for two million bytes of memory before there is a member to look at.
HUGE_HEADER = {"x" * 2_000_000: b"x"}


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz"])
def test_archives_of_every_kind_are_unpacked(tmp_path, mode):
    members = {"top/a.txt": b"a" * 1000, "top/b/c.txt": b"c", "top/skipped": b"no"}
    (tmp_path / "archive").write_bytes(zipped(members) if mode == "zip" else tarred(members, mode))
    written = []
    names = unpack(
        tmp_path / "archive",
        tmp_path / "out",
        choose=lambda name: None if "skipped" in name else name.removeprefix("top/"),
        progress=written.append,
    )
    assert names == ["a.txt", "b/c.txt"]
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.txt")) == names
    assert (tmp_path / "out/b/c.txt").read_bytes() == b"c"
    assert sum(written) == 1001


ONE = {"x": b"x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(zipped({"good.txt": b"good", "../evil": b"bad"}), "leads out of the folder", id="zip-up"),
        pytest.param(zipped({"a/../../evil": b"bad"}), "leads out", id="zip-up-later"),
        pytest.param(zipped({"/evil": b"bad"}), "has an absolute path", id="zip-absolute"),
        pytest.param(zipped({"C:\\evil": b"bad"}), "has an absolute path", id="zip-drive"),
        pytest.param(zipped({"..\\evil": b"bad"}), "leads out", id="zip-backslash-up"),
        pytest.param(zipped({"a\\evil": b"bad"}), "has an invalid name", id="zip-backslash"),
        pytest.param(zipped({"evil": b"/etc"}, mode=stat.S_IFLNK | 0o777), "is a link or a device", id="zip-link"),
        pytest.param(zipped({"evil": b""}, mode=stat.S_IFCHR | 0o666), "is a link or a device", id="zip-device"),
        pytest.param(zipped({"bomb": bytes(2_000_000)}), "more than 1,500,000 bytes", id="zip-bomb"),
        pytest.param(zipped({f"{i}": bytes(400_000) for i in range(4)}), "more than 1,500,000 bytes", id="zip-bombs"),
        pytest.param(zipped({f"{i}": b"" for i in range(11)}), "more than 10 members", id="zip-many"),
        pytest.param(lying_zip(), "is broken", id="zip-lying"),
        pytest.param(zipped({"a": b"x", "a/b": b"x"}), "cannot be unpacked", id="zip-file-as-folder"),
        pytest.param(zipped({"a/b": b"x", "./a/b": b"y"}), "cannot be unpacked", id="zip-twice"),
        pytest.param(zipped(ONE)[:-5], "neither a zip nor a tar", id="zip-cut"),
        pytest.param(
            zipped({"x": CONTENT}).replace(zlib.compress(CONTENT)[2:50], bytes(48), 1), "is broken", id="zip-damaged"
        ),
        pytest.param(b"", "neither a zip nor a tar", id="empty"),
        pytest.param(b"<html>", "neither a zip nor a tar", id="html"),
        pytest.param(tarred({"../evil": b"bad"}), "leads out", id="tar-up"),
        pytest.param(tarred({"/evil": b"bad"}), "has an absolute path", id="tar-absolute"),
        pytest.param(tarred(special(tarfile.SYMTYPE, "..")), "is a link or a device", id="tar-symlink"),
        pytest.param(tarred(special(tarfile.LNKTYPE, "good.txt")), "is a link or a device", id="tar-hardlink"),
        pytest.param(tarred(special(tarfile.CHRTYPE)), "is a link or a device", id="tar-device"),
        pytest.param(tarred(special(tarfile.FIFOTYPE)), "is a link or a device", id="tar-fifo"),
        pytest.param(tarred({"bomb": bytes(2_000_000)}), "more than 1,500,000 bytes", id="tar-bomb"),
        pytest.param(tarred({"x": CONTENT})[:-100], "is broken", id="tar-gz-cut"),
        pytest.param(tarred({"x": CONTENT}, "w")[:200_000], "is broken", id="tar-cut"),
        pytest.param(tarred({"x": b"x"} | HUGE_HEADER), "a header is too long", id="tar-late-huge-header"),
        pytest.param(tarred(HUGE_HEADER), "neither a zip nor a tar", id="tar-huge-header"),
    ],
)
def test_bad_archives_leave_nothing(tmp_path, content, message):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/archive").write_bytes(content)
    with pytest.raises(BadArchive, match=message):
        unpack(tmp_path / "below/archive", tmp_path / "below/out", most_bytes=1_500_000, most_files=10)
    assert [p.name for p in tmp_path.rglob("*")] == ["below", "archive"]


def test_what_is_left_out_counts_as_well(tmp_path):
    (tmp_path / "archive").write_bytes(zipped({"bomb": bytes(2_000_000)}))
    with pytest.raises(BadArchive, match="more than"):
        unpack(tmp_path / "archive", tmp_path / "out", lambda name: None, most_bytes=1_500_000)


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "archive").write_bytes(zipped(ONE))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "archive", tmp_path / "out")
    with pytest.raises(UserError, match="not an empty folder"):
        unpack(tmp_path / "archive", tmp_path / "out")

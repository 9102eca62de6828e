"""Recognises by its first bytes a file that is not what its name suggests, for error messages."""

HEAD_BYTES = 1024
"""Number of leading bytes that the functions below need."""

ARCHIVES = {
    b"\x1f\x8b": "a gzip file (.tar.gz?)",
    b"BZh": "a bzip2 file (.tar.bz2?)",
    b"\xfd7zXZ\0": "an xz file (.tar.xz?)",
    b"\x28\xb5\x2f\xfd": "a Zstandard file (.tar.zst?)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
}
TAR_MAGIC = slice(257, 262)


def archive_kind(head: bytes) -> str | None:
    """The kind of an archive other than a zip, with its article; None if it is none."""
    if head[TAR_MAGIC] == b"ustar":
        return "a tar archive"
    return next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)


def placeholder_kind(head: bytes) -> str | None:
    """What was stored instead of the wanted file, and what to do about it; None if it may be the file itself."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "an empty file; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; `git lfs pull` fetches the file itself"
    if text.startswith((b"<", b'{"')):
        return "a web page or a server's message; download the file itself"
    return None

"""Packages of npm, by Python alone: one archive each, pinned, checked, cached.

Nothing of a package is run or unpacked but the files that are named here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from xtclib import cache
from xtclib.files import first_line, write_bytes

REGISTRY, CHOSEN = "https://registry.npmjs.org", "npm_config_registry"  # npm's own variable


@dataclass(frozen=True)
class Package:
    """A package of npm: what is taken out of its archive, of so many bytes and this sha512."""

    name: str
    version: str
    bytes: int
    integrity: str
    members: tuple[str, ...]

    @property
    def archive(self) -> str:
        """The archive's name, as npm has it.

        >>> Package('@a/b', '0.2.0', 1, '', ()).archive
        'b-0.2.0.tgz'
        """
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def kept(self) -> list[str]:
        """What its files are called in the cache."""
        return [_kept(member) for member in self.members]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def _kept(member: str) -> str:
    """Of the runtime's 14 MB a third comes over the wire gzipped.

    >>> _kept("dist/a.wasm")
    'a.wasm.gz'
    """
    return Path(member).name + ".gz" * member.endswith(".wasm")


def fetch(package: Package, tell: Callable[[str], object] = print) -> Path:
    """The cache's folder with a package's files, ``.wasm`` gzipped; fetched if they are not there.

    From npm's registry, or ``npm_config_registry``, or an archive that was put into the cache by
    hand; ``tell`` is told. Raises ``ConnectionError`` where it cannot be got, ``ValueError`` for an
    archive that is another.
    """

    def make(place: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(_archive(package, tell)), mode="r:gz") as archive:
            for name in package.members:
                _take(archive, package, name, place)

    folder = cache.cache_dir() / "npm" / package.archive.removesuffix(".tgz")
    cache.keep(folder, make)
    return folder


def fetch_all(packages: Iterable[Package], tell: Callable[[str], object] = print) -> list[Path]:
    """:func:`fetch` of several; what cannot be got is told at once, in one ``ConnectionError``."""
    found, missing = list[Path](), list[str]()
    for package in packages:
        try:
            found.append(fetch(package, tell))
        except ConnectionError as error:
            missing.append(str(error))
    if missing:
        raise ConnectionError("; ".join(missing))
    return found


def _take(archive: tarfile.TarFile, package: Package, name: str, place: Path) -> None:
    """Copies one plain file out of an archive, to a name of our own."""
    try:
        file = archive.getmember(f"package/{name}")
    except KeyError:
        raise ValueError(f"the archive of {package} holds no {name}: it is another") from None
    content = archive.extractfile(file) if file.isfile() else None
    if content is None:
        raise ValueError(f"{name} in the archive of {package} is no plain file: it is another")
    kept, data = _kept(name), content.read()
    write_bytes(place / kept, gzip.compress(data, mtime=0) if kept.endswith(".gz") else data)


def _archive(package: Package, tell: Callable[[str], object]) -> bytes:
    """An archive's bytes, checked by length and sum."""
    by_hand = cache.cache_dir() / "npm" / package.archive
    registry = (os.environ.get(CHOSEN) or REGISTRY).rstrip("/")
    url = f"{registry}/{package.name}/-/{package.archive}"
    if by_hand.is_file():
        found, whence = by_hand.read_bytes(), str(by_hand)
    else:
        tell(f"fetch    {package} ({package.bytes / 1e6:.1f} MB) from {registry}")
        found, whence = _downloaded(package, url, by_hand), url
    sum_ = base64.b64encode(hashlib.sha512(found).digest()).decode()
    if sum_ != package.integrity:
        raise ValueError(
            f"{whence} has sha512-{sum_[:16]}… and {len(found)} bytes, expected "
            f"sha512-{package.integrity[:16]}… and {package.bytes}: it is not {package}"
        )
    return found


def _downloaded(package: Package, url: str, by_hand: Path) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"npm_config_registry must be an http or https address, received {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            found = answer.read(package.bytes + 1)
        if len(found) < package.bytes:
            raise ConnectionError(f"it ended after {len(found)} of {package.bytes} bytes")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):  # it is an open answer as well
            error.close()
        cause = getattr(error, "reason", None)  # what urllib wraps
        why = first_line(cause if isinstance(cause, OSError) else error)
        raise ConnectionError(
            f"could not fetch {package} ({package.bytes / 1e6:.1f} MB) from {url} ({why}): name a "
            f"registry that answers by {CHOSEN}, or put the archive at {by_hand}"
        ) from None
    return found

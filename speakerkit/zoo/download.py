"""Files over HTTP: resumed where they broke off, checked, and never taken for whole when they are not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from speakerkit import __version__
from speakerkit.errors import BundleError, first_line
from speakerkit.files import write_json
from speakerkit.zoo.registry import RemoteFile

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled each time
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18
LARGEST = 16 << 30  # bytes; more than any speaker model, less than what fills a disk unasked
RESERVE = 64 << 20  # bytes that stay free on the disk
PASSING = {408, 425, 429, 500, 502, 503, 504}


class _Broken(Exception):
    """The transfer broke off, and may go better next time."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the web only, and none that gives up encryption."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """As the base class, which follows to FTP as well."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and urlsplit(req.full_url).scheme == "https"):
            raise BundleError(req.full_url, f"redirects to {newurl}", "only https, and http from http, is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers that urllib adds unasked: file:, ftp: and data: are no addresses of models."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def download(file: RemoteFile, url: str, path: Path) -> str:
    """Download ``file`` from ``url`` (its own address, or a mirror's) to ``path``.

    What came before a transfer broke off is kept as ``PATH.part``, and the next attempt, in this call or a later one,
    asks for the rest. It counts only where the server says that the file is still the same (``If-Range``), or where its
    SHA-256 is known. ``path`` appears whole and checked, or not at all.

    Returns:
        its SHA-256.

    Raises:
        BundleError: not to be had, not of the registered size or hash, or no room on the disk.
    """
    transfer = _Transfer(file, url, path)
    if transfer.is_done():
        return file_sha256(path)
    for _ in range(2):
        resumed = transfer.run()
        found = file_sha256(transfer.part)
        if file.sha256 in (None, found):
            transfer.part.replace(path)
            return found
        page = transfer.looks_like_a_page()
        transfer.drop()
        if not resumed:  # otherwise it may be two halves of different files, and is fetched whole once
            break
    raise BundleError(
        url,
        f"has SHA-256 {found}, {file.sha256} is registered; what came was removed",
        "it is a web page: open the address in a browser" if page else "fetch it from elsewhere with --mirror",
    )


class _Transfer:
    """One file on its way from ``url`` to ``path``."""

    def __init__(self, file: RemoteFile, url: str, path: Path) -> None:
        self.file, self.url, self.path = file, url, path
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.state")

    def is_done(self) -> bool:
        """Whether an earlier call finished it."""
        if not self.path.is_file():
            return False
        if self.file.sha256 is None:
            return "url" in self._saved()
        return file_sha256(self.path) == self.file.sha256

    def drop(self) -> None:
        """Forget what came."""
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def looks_like_a_page(self) -> bool:
        """Whether HTML came instead of a model."""
        with self.part.open("rb") as stream:
            return stream.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))

    def run(self) -> bool:
        """Try until the whole file is in ``part``; whether any of it came from an earlier attempt."""
        resumed, reason = False, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                resumed = self._attempt()
            except _Broken as error:
                reason = str(error)
            else:
                return resumed
        raise BundleError(
            self.url,
            f"could not be downloaded in {ATTEMPTS} attempts: {reason}",
            "what came is kept, and the same command goes on from there; behind a firewall, see --mirror",
        )

    def _attempt(self) -> bool:
        saved = self._saved()
        validator = saved.get("validator")
        have = self.part.stat().st_size if self.part.is_file() and (validator or self.file.sha256) else 0
        if have and have == saved.get("size"):
            return True
        with self._ask(have, validator) as response:
            have, total = self._place(response, have)
            self._require_size(total)
            require_space(self.part.parent, (total or self.file.size or have) - have)
            if not have and self.part.is_file():
                self.part.unlink()  # before the note on the new version, so that they never disagree
            validator = _strong_validator(response.headers)
            write_json(self.state, {"url": self.url, "validator": validator, "size": total})
            received = self._receive(response, have, total)
        if total is not None and received < total:
            raise _Broken(f"the connection closed after {received} of {total} bytes")
        self._require_size(received)
        return have > 0

    def _ask(self, have: int, validator: str | None) -> HTTPResponse:
        headers = {"User-Agent": f"speakerkit/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator:
                headers["If-Range"] = validator
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - the registry takes http(s) only
        try:
            with _network(self.url):
                response: HTTPResponse = _opener().open(request, timeout=TIMEOUT)
                return response
        except HTTPError as error:
            error.close()
            if error.code == 416:  # nothing after what is here: it is another file by now
                self.drop()
            if error.code in PASSING or error.code == 416:
                raise _Broken(f"the server answers {error.code} {error.reason}") from None
            raise BundleError(
                self.url,
                f"the server answers {error.code} {error.reason}",
                "look at the model's page for its new place",
            ) from None

    def _place(self, response: HTTPResponse, have: int) -> tuple[int, int | None]:
        """The byte at which the answer starts, and the size of the whole file where the server says it."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BundleError(self.url, "comes compressed, unasked", "fetch it from elsewhere with --mirror")
        length = response.headers.get("Content-Length")
        if response.status != 206:
            return 0, int(length) if length and length.isdecimal() else None
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != have:
            self.drop()
            raise _Broken("the server went on at another place than it was asked to")
        return have, None if place[2] == "*" else int(place[2])

    def _require_size(self, size: int | None) -> None:
        if size is not None and self.file.size is not None and size != self.file.size:
            self.drop()
            raise BundleError(
                self.url,
                f"has {size} bytes, {self.file.size} are registered",
                "look at the model's page: it has been replaced, or a web page came instead",
            )

    def _receive(self, response: HTTPResponse, have: int, total: int | None) -> int:
        """Append what comes; the size of ``part`` afterwards."""
        received = have
        bar = tqdm(
            desc=self.path.name,
            total=total or self.file.size,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )
        with bar, self.part.open("ab" if have else "wb") as stream:
            while True:
                with _network(self.url):
                    block = response.read1(BLOCK)
                if not block:
                    return received
                received += len(block)
                if received > LARGEST:
                    raise BundleError(self.url, f"is larger than {LARGEST >> 30} GiB", "no speaker model is")
                try:
                    stream.write(block)
                    stream.flush()  # a full disk is told here, not when the file is closed
                except OSError as error:
                    raise _no_room(self.part, error) from None
                bar.update(len(block))

    def _saved(self) -> dict[str, Any]:
        """What an earlier attempt at this address noted: ``url``, ``validator``, ``size``."""
        try:
            value = json.loads(self.state.read_text(encoding="utf-8"))
            return value if value["url"] == self.url and (value["validator"] or "").isprintable() else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


@contextmanager
def _network(url: str) -> Iterator[None]:
    """What goes wrong on the line, as :class:`_Broken`; a wrong certificate will not be right the next time."""
    try:
        yield
    except HTTPError:
        raise
    except (URLError, HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise BundleError(url, f"its certificate is not accepted ({reason})", "check clock and proxy") from None
        raise _Broken(first_line(reason) if isinstance(reason, Exception) else str(reason)) from None


def _strong_validator(headers: Message) -> str | None:
    """What tells versions of a file apart: a strong ETag, else the date of its last change (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def require_space(folder: Path, size: int) -> None:
    """Refuse to start what would not fit.

    Raises:
        BundleError: fewer than ``size`` bytes and a small reserve are free where ``folder`` lies.
    """
    free = shutil.disk_usage(folder).free
    if size > 0 and free < size + RESERVE:
        raise BundleError(
            folder,
            f"has {free / 1e6:.0f} MB free, {(size + RESERVE) / 1e6:.0f} MB are needed",
            "free some, or point SPEAKERKIT_HOME or --out elsewhere",
        )


def _no_room(path: Path, error: OSError) -> BundleError:
    reason = error.strerror or str(error)
    return BundleError(path, f"cannot be written ({reason})", "check the disk; the same command goes on from there")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

#!/usr/bin/env python3
"""Download the images of a dataset whose images are addresses.

In flows a dataset folder with image_urls.csv (item,url), which the converters in data/ write. Out flow
images/<item>.jpg, scaled to at most --pixels, each of them whole or not at all, and image_failures.csv
(item,url,reason). Items that have an image are not asked for again: after a stop, the same command goes on, and it
tries again what failed.

Addresses come from strangers. So a name is resolved first, also after a redirect, and what leads to this machine or to
its own network is refused.

    python data/fetch_images.py DIR
    python data/fetch_images.py DIR --connections 4 --pixels 65536
"""

from __future__ import annotations

import argparse
import csv
import email.utils
import io
import ipaddress
import random
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx2
from tqdm import tqdm

from hanorec import __version__, files
from hanorec.data.catalog import read_catalog, read_texts
from hanorec.data.untrusted import load_image, scaled_down
from hanorec.errors import DataError, exit_on_user_error, shown
from hanorec.training.bounds import BoundedOption

TRIED_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # HTTP status
LONGEST_WAIT = 120.0  # seconds, between two tries
MOST_REDIRECTS = 5
LOST = 10  # images that a host did not give, one after the other, before it is left alone
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as IPv6 networks write them


class Limits(NamedTuple):
    """Of one image. retries: further tries. most_bytes: of its file. seconds: without a byte; all of it may take four
    times as many."""

    retries: int
    most_bytes: int
    seconds: float


class Refused(Exception):
    """An address that is not connected to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder with image_urls.csv")
    number = partial(parser.add_argument, action=BoundedOption)
    number("--pixels", type=int, least=1, default=262_144, help="most pixels of an image (default 262144)")
    number("--connections", type=int, least=1, default=8, help="downloads at a time (default 8)")
    number("--retries", type=int, least=0, default=4, help="further tries where a server fails (default 4)")
    number("--most-megabytes", type=int, least=1, default=20, help="largest file that is downloaded (default 20)")
    number(
        "--timeout",
        type=float,
        above=0,
        most=86_400,
        default=30,
        help="seconds without a byte, then a try ends (default 30)",
    )
    parser.add_argument(
        "--any-address",
        action="store_true",
        help="connect to loopback, private and link-local addresses, too, and through the environment's proxy",
    )
    args = parser.parse_args()
    catalog, path = read_catalog(args.folder), args.folder / "image_urls.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such file; it has a row item,url for each image, and the converters write it")
    urls = dict(zip(catalog.items, read_texts(path, catalog, "url")))
    asked = {item: urls[item] for item, image in zip(catalog.items, catalog.images) if urls[item] and image is None}
    limits = Limits(args.retries, args.most_megabytes * 2**20, args.timeout)
    failed = dict(fetch(args.folder / "images", asked, limits, args.connections, args.pixels, args.any_address))
    report = args.folder / "image_failures.csv"
    if not failed:
        files.remove(report)
    else:
        rows = io.StringIO(newline="")
        csv.writer(rows, lineterminator="\n").writerows([(item, urls[item], shown(failed[item])) for item in failed])
        files.replace_text(report, "item,url,reason\n" + rows.getvalue())
    with_url = sum(map(bool, urls.values()))
    print(f"{args.folder}: {with_url} images are asked for; {with_url - len(asked)} were there, ", end="")
    print(f"{len(asked) - len(failed)} are fetched, {len(failed)} failed" + f" ({report} says why)" * bool(failed))
    if failed and len(failed) == len(asked):
        item, reason = next(iter(failed.items()))
        raise DataError(f"no image could be fetched; item {item}, {urls[item]}: {reason}")


def fetch(
    folder: Path, asked: dict[str, str], limits: Limits, connections: int, pixels: int, any_address: bool
) -> Iterator[tuple[str, str]]:
    """Download images, {item: address}, to `folder`/<item>.jpg; gives each item that failed, and why.

    Threads download; images are decoded one by one, since warnings are kept apart in one thread alone.
    """
    folder.mkdir(exist_ok=True)
    files.remove_leftovers(folder)
    pauses, left = Pauses(), iter(asked.items())
    with (
        httpx2.Client(
            transport=None if any_address else PublicAddresses(connections),
            timeout=limits.seconds,
            follow_redirects=True,
            max_redirects=MOST_REDIRECTS,
            headers={"User-Agent": f"hanorec/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"},
        ) as client,
        ThreadPoolExecutor(connections) as threads,
        tqdm(total=len(asked), desc="images", unit="image", leave=False) as bar,
    ):
        running: dict = {}
        try:
            while True:
                for item, url in left:
                    if item != Path(item).name or item.startswith("."):
                        yield item, "the item's id is no name of a file"
                        continue
                    partial = folder / f".{uuid4().hex}{files.PARTIAL}"
                    running[threads.submit(download, client, url, partial, limits, pauses)] = item, partial
                    if len(running) >= 2 * connections:
                        break
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    item, partial = running.pop(done)
                    reason = done.result() or keep(partial, folder, item, pixels)
                    files.remove(partial)
                    bar.update()
                    if reason:
                        yield item, reason
        finally:
            pauses.stop.set()
            for future in running:
                future.cancel()
            wait(running)
            for _, partial in running.values():
                files.remove(partial)


def keep(partial: Path, folder: Path, item: str, pixels: int) -> str:
    """Make a downloaded file an item's JPEG; returns why it cannot be one, or nothing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = load_image(partial)
    if image is None:
        return str(said[-1].message).removeprefix(f"{partial}: ")
    buffer = io.BytesIO()
    scaled_down(image, pixels).save(buffer, format="JPEG", quality=90)
    try:
        files.replace_bytes(folder / f"{item}.jpg", buffer.getvalue())
    except OSError as error:
        if "name too long" not in str(error).lower():
            raise
        return "the item's id is too long for the name of a file"
    return ""


# one download


class Pauses:
    """When each host may be asked again, how many images in a row it has not given, and whether all is to stop."""

    def __init__(self):
        self.stop = threading.Event()
        self.until: dict[str, float] = {}
        self.lost: dict[str, int] = {}

    def pause(self, host: str, seconds: float) -> None:
        self.until[host] = max(self.until.get(host, 0.0), time.monotonic() + seconds)

    def over(self, host: str) -> None:
        """Wait until a host may be asked, or all is to stop."""
        while not self.stop.is_set() and (left := self.until.get(host, 0.0) - time.monotonic()) > 0:
            self.stop.wait(left)


def download(client: httpx2.Client, url: str, path: Path, limits: Limits, pauses: Pauses) -> str:
    """Write what an address gives into a file; returns why it does not, or nothing.

    What may pass is tried again, after a second, two, four, … and some more at random, or when the server says. A host
    that gave nothing for `LOST` images in a row is not asked again.
    """
    reason = host = ""
    for attempt in range(limits.retries + 1):
        try:
            host = httpx2.URL(url).host
            pauses.over(host)
            if pauses.stop.is_set():
                return "stopped"
            if pauses.lost.get(host, 0) >= LOST:
                return f"not asked for: {host} gave none of {LOST} images in a row"
            pause = min(LONGEST_WAIT, 2.0**attempt * random.uniform(1, 1.5))
            with client.stream("GET", url) as response:
                reason = f"HTTP {response.status_code}"
                if response.status_code not in TRIED_AGAIN:
                    reason = write_body(response, path, limits, pauses.stop) if response.status_code == 200 else reason
                    pauses.lost[host] = 0
                    return reason
                asked = retry_after(response)
                if asked > LONGEST_WAIT:
                    return f"{reason}, and not to be asked again for {asked:.0f} seconds"
                if asked or response.status_code in (429, 503):
                    pauses.pause(host, asked or pause)  # all of its images wait
                    continue
        except (Refused, httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.UnsupportedProtocol) as error:
            return str(error)
        except (httpx2.HTTPError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {error}"
        if attempt < limits.retries:
            pauses.stop.wait(pause)
    pauses.lost[host] = pauses.lost.get(host, 0) + 1
    return f"{reason} (tried {limits.retries + 1} times)"


def write_body(response: httpx2.Response, path: Path, limits: Limits, stop: threading.Event) -> str:
    """Write a response's body into a file, until all is to stop; returns why it is not written, or nothing.

    Errors: TimeoutError where it takes too long in all, and those of the HTTP client.
    """
    too_large = f"more than {limits.most_bytes // 2**20} MiB"
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.most_bytes:
        return too_large
    written, end = 0, time.monotonic() + 4 * limits.seconds
    with open(path, "wb") as file:
        for chunk in response.iter_bytes():
            written += file.write(chunk)
            if written > limits.most_bytes:
                return too_large
            if stop.is_set():
                return "stopped"
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {4 * limits.seconds:g} seconds")
    return ""


def retry_after(response: httpx2.Response) -> float:
    """For how many seconds a server does not want to be asked again: the header Retry-After, a number or a date."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


# where it connects to


class PublicAddresses(httpx2.BaseTransport):
    """Connects to addresses of the public internet alone.

    A name is resolved here and its address is what is connected to, so that a second answer of the name server cannot
    lead elsewhere. The client calls this for every redirect, too. Each host has connections of its own, whose
    certificate is that of its name.
    """

    def __init__(self, connections: int):
        self.limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self.certificates = httpx2.create_ssl_context()
        self.of_host: dict[str, httpx2.HTTPTransport] = {}
        self.lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Errors: Refused where scheme or address is not allowed, and those of the HTTP client."""
        url = request.url
        if url.scheme not in ("http", "https") or not url.host:
            raise Refused(f"refused: {url} is no address of http or https")
        with self.lock:
            if url.host not in self.of_host:
                self.of_host[url.host] = httpx2.HTTPTransport(verify=self.certificates, limits=self.limits)
        *others, last = public_addresses(url.host, url.port or (443 if url.scheme == "https" else 80))
        extensions = {**request.extensions, "sni_hostname": url.host}
        for address in (*others, last):
            there = httpx2.Request(
                request.method, url.copy_with(host=address), headers=request.headers, extensions=extensions
            )
            try:
                return self.of_host[url.host].handle_request(there)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if address == last:
                    raise
        raise AssertionError("a name has an address, or it is an error")

    def close(self) -> None:
        for transport in self.of_host.values():
            transport.close()


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name. Errors: Refused where it has none, or one that is not of the public internet;
    ConnectError where the name server does not answer."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise httpx2.ConnectError(f"{host} cannot be resolved now ({error})") from error
        raise Refused(f"{host} cannot be resolved ({error})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_public(address):
            raise Refused(f"refused: {host} is {address}, no address of the public internet (--any-address allows it)")
    return addresses


def is_public(text: str) -> bool:
    """Whether an address is of the public internet: not loopback, private, link-local, reserved or multicast, nor an
    IPv6 address that stands for such an IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        address = inner or address
    return address.is_global and not address.is_multicast


if __name__ == "__main__":
    with exit_on_user_error():
        main()

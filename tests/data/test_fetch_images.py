"""Images are downloaded from servers that fail in every way, and from the public internet alone."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import ROOT
from PIL import Image

from hanorec.errors import exit_on_user_error

SPEC = importlib.util.spec_from_file_location("fetch_images", ROOT / "data" / "fetch_images.py")
fetch_images = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = fetch_images
SPEC.loader.exec_module(fetch_images)

PNG = io.BytesIO()
Image.new("RGB", (300, 200), "red").save(PNG, format="PNG")


class Server(BaseHTTPRequestHandler):
    """What is answered goes by the path; `asked` counts the requests."""

    asked: Counter[str] = Counter()

    def do_GET(self):
        self.asked[self.path] += 1
        name, first = self.path.strip("/"), self.asked[self.path] == 1
        if name.startswith("to:"):
            self.answer(302, location=name[3:])
        elif name == "busy" and first:
            self.answer(429, retry_after="1")
        elif name == "broken" and first:
            self.answer(503)
        elif name.startswith("down"):
            self.answer(500)
        elif name == "missing":
            self.answer(404)
        elif name == "closed":
            self.answer(429, retry_after="7200")
        elif name == "html":
            self.answer(200, b"<html>no image</html>")
        elif name == "huge":
            self.answer(200, PNG.getvalue(), content_length=str(10 * 2**30))
        elif name == "endless":
            self.answer(200, bytes(2 * 2**20), content_length=None)
        elif name == "cut" and first:
            self.answer(200, PNG.getvalue()[:100], content_length="500")
        elif name == "slow":
            self.answer(200, b"", content_length="500")
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"x")
        else:
            self.answer(200, PNG.getvalue())

    def answer(self, status: int, body: bytes = b"", **headers: str | None):
        self.send_response(status)
        for header, value in ({"content_length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Server.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # a client that hangs up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(tmp_path, monkeypatch, capsys):
    """Runs the script on {item: address}; returns exit status, stdout, stderr, and why images failed."""
    monkeypatch.setattr(fetch_images.random, "uniform", lambda *_: 0.05)

    def run(urls: dict[str, str], *options: str) -> tuple[int, str, str, dict[str, str]]:
        (tmp_path / "titles.csv").write_text("item,title\n" + "".join(f"{item},box {item}\n" for item in urls))
        rows = "".join(f"{item},{url}\n" for item, url in urls.items())
        (tmp_path / "image_urls.csv").write_text("item,url\n" + rows)
        monkeypatch.setattr(sys, "argv", ["fetch_images.py", str(tmp_path), "--retries", "1", *options])
        status, report = 0, tmp_path / "image_failures.csv"
        try:
            with exit_on_user_error():
                fetch_images.main()
        except SystemExit as stop:
            status = stop.code
        failed = {row["item"]: row["reason"] for row in csv.DictReader(report.open())} if report.exists() else {}
        return status, *capsys.readouterr(), failed

    return run


def test_images_are_fetched_from_a_server_that_fails_in_every_way(server, fetch, tmp_path):
    names = ("fine", "busy", "broken", "cut", "missing", "closed", "html", "huge", "endless")
    urls = {name: f"{server}/{name}" for name in names}
    urls |= {"moved": f"{server}/to:/fine", "file": f"{server}/to:file:///etc/passwd", "ftp": "ftp://127.0.0.1/x.png"}
    urls |= {"loop": f"{server}/to:/to:/to:/to:/to:/to:/to:/fine", "..": f"{server}/up", "none": "nonsense"}
    options = ("--any-address", "--most-megabytes", "1", "--pixels", "600")
    status, said, _, failed = fetch(urls, *options)
    assert status == 0 and "15 images are asked for; 0 were there, 5 are fetched, 10 failed" in said
    for item, reason in {
        "missing": "HTTP 404",
        "closed": "HTTP 429, and not to be asked again for 7200 seconds",
        "html": "not used as an image (cannot identify",
        "huge": "more than 1 MiB",
        "endless": "more than 1 MiB",
        "file": "unsupported protocol",
        "ftp": "unsupported protocol",
        "loop": "redirects",
        "..": "no name of a file",
        "none": "protocol",
    }.items():
        assert reason in failed[item], failed
    left = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert left == ["broken.jpg", "busy.jpg", "cut.jpg", "fine.jpg", "moved.jpg"]
    with Image.open(tmp_path / "images" / "fine.jpg") as image:
        assert image.format == "JPEG" and image.size == (30, 20)

    asked = Counter(Server.asked)
    assert asked["/missing"] == asked["/closed"] == 1 and asked["/busy"] == asked["/broken"] == asked["/cut"] == 2
    status, said, _, failed = fetch({name: urls[name] for name in ("fine", "busy", "missing")}, *options)
    assert status == 2 and "2 were there, 0 are fetched, 1 failed" in said and failed == {"missing": "HTTP 404"}
    assert Server.asked - asked == {"/missing": 1}  # what is there is not asked for again


def test_a_server_that_is_silent_for_too_long_is_left(server, fetch):
    status, _, errors, failed = fetch({"slow": f"{server}/slow"}, "--any-address", "--timeout", "0.01")
    assert status == 2 and "Timeout" in failed["slow"] and "(tried 2 times)" in failed["slow"]


def test_a_server_that_is_never_silent_and_never_done_is_left(tmp_path):
    drip = SimpleNamespace(headers={}, iter_bytes=lambda: (time.sleep(0.01) or b"x" for _ in range(1000)))
    limits, stop = fetch_images.Limits(1, 2000, 0.02), threading.Event()
    with pytest.raises(TimeoutError, match="not done after 0.08 seconds"):
        fetch_images.write_body(drip, tmp_path / "a", limits, stop)
    stop.set()  # by Ctrl-C
    assert fetch_images.write_body(drip, tmp_path / "a", limits, stop) == "stopped"
    assert (tmp_path / "a").stat().st_size == 1


def test_a_host_that_gives_no_image_is_left_alone(server, fetch):
    urls = {str(n): f"{server}/down/{n}" if n % 2 else f"http://127.0.0.1:1/{n}" for n in range(30)}
    status, _, errors, failed = fetch(urls, "--any-address", "--connections", "1")
    assert status == 2 and "no image could be fetched; item 0, http://127.0.0.1:1/0: ConnectError" in errors
    assert failed["1"] == "HTTP 500 (tried 2 times)"
    assert sum("127.0.0.1 gave none of 10 images in a row" in reason for reason in failed.values()) == 20


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0"])
def test_this_machine_is_not_connected_to(server, fetch, host):
    status, _, errors, failed = fetch({"a": f"http://{host}:{server.rsplit(':')[-1]}/fine"})
    assert status == 2 and "no address of the public internet" in failed["a"] and failed["a"] in errors
    assert not Server.asked


def test_a_redirect_to_an_address_that_is_refused_is_not_followed(server, fetch, monkeypatch):
    """The server stands in for one of the public internet; it redirects to another address of this machine."""
    monkeypatch.setattr(fetch_images, "is_public", lambda address: address == "127.0.0.1")
    there = server.replace("127.0.0.1", "127.0.0.2")
    urls = {"fine": f"{server}/fine", "moved": f"{server}/to:{server}/busy", "in": f"{server}/to:{there}/fine"}
    status, said, _, failed = fetch(urls | {"ftp": f"{server}/to:ftp://127.0.0.1/fine"})
    assert status == 0 and "2 are fetched, 2 failed" in said
    assert "127.0.0.2, no address of the public internet" in failed["in"] and "no address of http" in failed["ftp"]
    assert Server.asked["/fine"] == 1


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("64:ff9b::5db8:d822", True),
        ("10.0.0.1", False), ("172.16.5.4", False), ("192.168.1.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False), ("2002:a00:1::", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert fetch_images.is_public(address) == public


def test_the_name_is_what_a_certificate_is_compared_with(monkeypatch):
    """A connection goes to the address that was looked at, and TLS and the header Host name the host."""
    seen = []
    monkeypatch.setattr(fetch_images, "public_addresses", lambda host, port: [f"93.184.216.{port % 100}"])
    monkeypatch.setattr(fetch_images.httpx2.HTTPTransport, "handle_request", lambda _, request: seen.append(request))
    request = fetch_images.httpx2.Request("GET", "https://example.org/a.png?b=1")
    fetch_images.PublicAddresses(2).handle_request(request)
    (sent,) = seen
    assert str(sent.url) == "https://93.184.216.43/a.png?b=1" and sent.headers["host"] == "example.org"
    assert sent.extensions["sni_hostname"] == "example.org"


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, (), "image_urls.csv: no such file"),
        ("item,url\n9,http://x.org\n", (), "image_urls.csv:2: item '9' is not in the catalogue"),
        ("item,url\n1,http://x.org,2\n", (), "image_urls.csv:2: expected item,url, found"),
        ("item,url\n", ("--connections", "0"), "--connections 0: must be a number of at least 1"),
    ],
)
def test_what_cannot_be_asked_is_an_error(tmp_path, fetch, monkeypatch, capsys, content, options, message):
    (tmp_path / "titles.csv").write_text("item,title\n1,box\n")
    if content:
        (tmp_path / "image_urls.csv").write_text(content)
    monkeypatch.setattr(sys, "argv", ["fetch_images.py", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        fetch_images.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err

"""Objects in an S3 bucket as inputs: a real server of moto's, behind a proxy that fails as networks do."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prunesid_cli.inputs import uri_files
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import expand_glob
from prunesid_cli.inputs.listing import Listing
from tests.caches import items_by_source
from tests.conftest import PROMPT, Run

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
FAULTS = ("busy", "error", "reset", "cut")


@dataclass
class Network:
    """What happens to requests on their way to the server.

    Attributes:
        port: The server's port.
        share: Share of the requests that fail.
        is_gone: Whether all fail.
        num_failed: How many failed.
    """

    port: int
    share: float = 0.0
    is_gone: bool = False
    num_failed: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def fault(self) -> str:
        if not self.is_gone and self.random.random() >= self.share:
            return ""
        self.num_failed += 1
        return "reset" if self.is_gone else self.random.choice(FAULTS)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, or fails: the server is busy, has an error, is gone, or ends in the middle of an object."""

    network: Network
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.network.fault()
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if fault in ("busy", "error"):
            self.send_response(503 if fault == "busy" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server = HTTPConnection("127.0.0.1", self.network.port, timeout=30)
        server.request(self.command, self.path, body, dict(self.headers))
        response = server.getresponse()
        data = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True
        server.close()

    do_GET = do_HEAD = do_PUT = do_POST = _pass_on

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, pictures: list[Path], tmp_path: Path) -> Iterator[Network]:
    """A bucket with ten pictures in `in/`, in two folders, and two other objects."""
    import boto3
    import s3fs

    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    network = Network(port)
    handler = type("Handler", (Proxy,), {"network": network})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        "XDG_CACHE_HOME": str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="bucket")
    for number, path in enumerate(pictures):
        client.put_object(Bucket="bucket", Key=f"in/{number % 2}/{path.name}", Body=path.read_bytes())
    client.put_object(Bucket="bucket", Key="in/notes.txt", Body=b"notes")
    client.put_object(Bucket="bucket", Key="in/bad.png", Body=b"no image")
    monkeypatch.setattr(uri_files, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(uri_files, "MEMORY_SECONDS", -1.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own tries, with pauses between them
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield network
    finally:
        proxy.shutdown()
        server.stop()


def put(network: Network, key: str, data: bytes) -> None:
    import boto3

    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{network.port}").put_object(Bucket="bucket", Key=key, Body=data)


def test_objects_are_listed_and_read(network: Network, pictures: list[Path]) -> None:
    sources = [file.source for file in Listing(["s3://bucket/in"])]
    expected = [f"s3://bucket/in/{half}/scene{number}.png" for half in (0, 1) for number in range(half, 10, 2)]
    assert sources == [*expected, "s3://bucket/in/bad.png"]
    assert list(expand_glob("s3://bucket/in/**/scene[0-3].png")) == [expected[n] for n in (0, 1, 5, 6)]
    with FILES.open(expected[0]) as file:
        assert file.read() == pictures[0].read_bytes()
    assert FILES.stat(expected[0]).size == pictures[0].stat().st_size
    (missing,) = Listing(["s3://bucket/in/nothing.png"])
    assert missing.error and "no such file" in missing.error.problem
    (missing,) = Listing(["s3://nobucket/in/a.png"])
    assert missing.error


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bucket_is_compressed_and_continued(
    network: Network, pictures: list[Path], run: Run, tmp_path: Path, workers: int
) -> None:
    """The same tokens as of files; only what changed is read again, which its ETag says."""
    cache, to = tmp_path / "c", ("--out", tmp_path / "c", "--workers", workers)
    ran = run("compress", "s3://bucket/in", *to)
    assert (ran.code, "s3://bucket/in/bad.png" in ran.err, "1 other file skipped" in ran.err) == (3, True, True), (
        ran.err
    )
    run("compress", pictures[0].parent, "--out", tmp_path / "local")
    local = {Path(source).name: item for source, item in items_by_source(tmp_path / "local").items()}
    remote = {Path(source).name: item for source, item in items_by_source(cache).items()}
    assert {name: item.slots for name, item in remote.items()} == {name: item.slots for name, item in local.items()}
    put(network, "in/bad.png", pictures[0].read_bytes())
    put(network, "in/0/scene2.png", pictures[1].read_bytes())
    put(network, "in/0/scene4.png", pictures[4].read_bytes())  # the same once more
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    ran = run("compress", "s3://bucket/in", *to, "--json")
    assert ran.code == 0, ran.err
    changed = {record["source"] for record in ran.records if not record.get("held")}
    assert changed == {"s3://bucket/in/bad.png", "s3://bucket/in/0/scene2.png"}
    assert len(run("answer", cache, PROMPT).records) == 11


def test_a_network_that_fails_now_and_then(network: Network, run: Run, tmp_path: Path) -> None:
    """Half of all requests fail in one of four ways. No picture is lost or wrong, and later runs read what failed."""
    assert run("compress", "s3://bucket/in", "--out", tmp_path / "good").code == 3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    network.share = 0.5
    ran = run("compress", "s3://bucket/in", "--out", tmp_path / "c")
    assert ran.code == 3 and "Traceback" not in ran.err
    assert network.num_failed > 3
    network.share = 0
    assert run("compress", "s3://bucket/in", "--out", tmp_path / "c").code == 3  # bad.png
    good, found = (items_by_source(tmp_path / name) for name in ("good", "c"))
    assert {source: item.check for source, item in found.items()} == {s: item.check for s, item in good.items()}
    assert [failure["source"] for failure in run("cache", "ls", tmp_path / "c", "--failed", "--json").records] == [
        "s3://bucket/in/bad.png"
    ]


def test_a_network_that_is_gone(network: Network, run: Run, tmp_path: Path) -> None:
    network.is_gone = True
    ran = run("compress", "s3://bucket/in/0/scene0.png", "s3://bucket/in/1", "--out", tmp_path / "c")
    assert ran.code == 3 and ran.err.count("not read in 4 tries") == 2, ran.err
    network.is_gone = False
    assert run("compress", "s3://bucket/in/0/scene0.png", "s3://bucket/in/1", "--out", tmp_path / "c").code == 0
    assert len(items_by_source(tmp_path / "c")) == 6


def test_containers_are_downloaded_once(
    network: Network, run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tar, Parquet and PDF files in a bucket, with workers; a new version is downloaded again."""
    from prunesid_cli.inputs import downloads
    from tests.inputs.test_parquet_files import write_table
    from tests.inputs.test_pdf_files import write_pdf
    from tests.inputs.test_tar_files import write_tar

    data = [path.read_bytes() for path in pictures]
    (tmp_path / "local").mkdir()
    tar = write_tar(tmp_path / "local/a.tar", {f"{number}.png": part for number, part in enumerate(data[:4])})
    table = write_table(tmp_path / "local/b.parquet", {"image": data[4:8], "n": range(4)})
    document = write_pdf(tmp_path / "local/c.pdf", [(144, 144)] * 2)
    for path in (tar, table, document):
        put(network, f"data/{path.name}", path.read_bytes())
    assert run("compress", tmp_path / "local", "--out", tmp_path / "c").code == 0
    ran = run("compress", "s3://bucket/data", "--out", tmp_path / "remote", "--workers", 2)
    assert ran.code == 0, ran.err
    local, remote = (items_by_source(tmp_path / name) for name in ("c", "remote"))
    assert list(remote) == [source.replace(f"{tmp_path}/local", "s3://bucket/data") for source in local]
    assert [item.slots for item in remote.values()] == [item.slots for item in local.values()]
    assert remote["s3://bucket/data/b.parquet/row-000000002"].columns == (("n", 2),)
    copies = sorted(path.name for path in (tmp_path / "prunesid/downloads").iterdir() if path.suffix != ".lock")
    assert sorted(path[-4:] for path in copies) == [".pdf", ".tar", "quet"]
    assert "nothing to do: 10 already" in run("compress", "s3://bucket/data", "--out", tmp_path / "remote").err
    monkeypatch.setattr(downloads, "MAX_BYTES", 1)
    write_tar(tar, {"new.png": data[9]})
    put(network, "data/a.tar", tar.read_bytes())
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    ran = run("compress", "s3://bucket/data/a.tar", "--out", tmp_path / "remote", "--json")
    assert [record["source"] for record in ran.records] == ["s3://bucket/data/a.tar/new.png"]
    assert len([path for path in (tmp_path / "prunesid/downloads").iterdir() if path.suffix != ".lock"]) == 2


def test_a_container_that_cannot_be_downloaded_fails_alone(network: Network, run: Run, tmp_path: Path) -> None:
    put(network, "data/a.tar", b"no tar file" * 100)
    ran = run("compress", "s3://bucket/data/a.tar", "s3://bucket/in/0", "--out", tmp_path / "c")
    assert (ran.code, "s3://bucket/data/a.tar: damaged after byte 0" in ran.err) == (3, True), ran.err
    network.is_gone = True
    ran = run("compress", "s3://bucket/data/a.tar", "--out", tmp_path / "c2")
    assert (ran.code, "not read in 4 tries" in ran.err) == (3, True), ran.err

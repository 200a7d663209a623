"""`compress --ray`: the bytes of plain `compress`, whatever happens to the machines of the cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunesid_cli import __version__
from prunesid_cli.errors import MediaError, ModelError
from prunesid_cli.integrations.ray import answer as ray_answer
from prunesid_cli.integrations.ray import compress as ray_compress
from prunesid_cli.integrations.ray.actor import ActorSetup, EncodeActor
from prunesid_cli.integrations.ray.cluster import ActorPool, RayOptions, cpus_of_actor, room_for
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.pipeline.settings import Settings
from tests.cli.helpers import cache_files
from tests.cli.processes import prunesid, running
from tests.conftest import Run
from tests.docs.markdown import ROOT

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
SETUP = ActorSetup(Settings(model="demo", device="cpu"), resolve("demo").revision, __version__, os.getcwd(), 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores for actors, and two machines."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    memory = 100 << 20
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    for _ in range(2):
        nodes.add_node(num_cpus=2, object_store_memory=memory)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="module")
def folder(pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scenes, in another order than they were made, and two files that are no images."""
    folder = tmp_path_factory.mktemp("ray")
    for number in range(40):
        shutil.copy(pictures[number * 7 % 10], folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"no image")
    (folder / "33.png").write_bytes(b"")
    for path in folder.iterdir():
        os.utime(path, (10**9, 10**9))
    return folder


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_bytes_are_those_of_plain_compress(
    cluster: Any, folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by one and continued by the other, both ways, with blocks of three inputs."""
    monkeypatch.setattr(ray_compress, "BLOCK_INPUTS", 3)
    one, two = (("--ray", cluster.address, "--workers", workers) for workers in ("1", "1-2"))
    half = [folder / f"{number:02d}.png" for number in range(17)]
    results, files = [], []
    for name, first, second in (("plain", (), ()), ("ray", one, two), ("begun", two, ()), ("continued", (), one)):
        out = ("--out", tmp_path / name, "--keep", "40", "--json")
        first_run = run("compress", *half, *out, *first)
        assert first_run.code == 3, first_run.err
        results.append(run("compress", folder, *out, *second))
        files.append(cache_files(tmp_path / name))
    assert [result.code for result in results] == [3] * 4, results[-1].err
    assert len({result.out for result in results}) == 1
    assert files[0] and all(found == files[0] for found in files)


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_an_average_over_all_images_is_that_of_plain_compress(
    cluster: Any, folder: Path, run: Run, tmp_path: Path
) -> None:
    command = ("compress", folder, "--keep", "40", "--dynamic", "--json", "--out")
    plain, spread = run(*command, tmp_path / "plain"), run(*command, tmp_path / "ray", "--ray", cluster.address)
    assert (plain.code, spread.code) == (3, 3), spread.err
    assert plain.out == spread.out
    assert cache_files(tmp_path / "ray") == cache_files(tmp_path / "plain")


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_answers_are_those_of_plain_answer(cluster: Any, folder: Path, run: Run, tmp_path: Path) -> None:
    """In blocks of seven queries, into a file that plain `answer` began."""
    assert run("compress", folder, "--keep", "40", "--out", tmp_path / "cache").code == 3
    first, both = tmp_path / "first.jsonl", tmp_path / "both.jsonl"
    lines = [json.dumps({"prompt": text}) + "\n" for text in ("what is shown?", "how many shapes are there?")]
    first.write_text(lines[0])
    both.write_text("".join(lines))
    assert run("answer", tmp_path / "cache", "--prompts", both, "--out", tmp_path / "plain.jsonl").code == 0
    assert run("answer", tmp_path / "cache", "--prompts", first, "--out", tmp_path / "ray.jsonl").code == 0
    command = ("answer", tmp_path / "cache", "--prompts", both, "--ray", cluster.address, "--workers", "1-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_answer, "BLOCK_QUERIES", 7)
        spread = run(*command, "--out", tmp_path / "ray.jsonl")
    assert spread.code == 0, spread.err
    assert "38 were there" in spread.err
    plain, ray = (
        [json.loads(line) | {"ms": 0} for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("plain", "ray")
    )
    assert len(plain) == 76
    assert ray == plain


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("what", ["actor", "node"])
def test_a_lost_actor_or_node_loses_nothing(cluster: Any, what: str, folder: Path, run: Run, tmp_path: Path) -> None:
    """It is lost as soon as the first results are there. Stdout has records only, in the order of the listing."""
    assert run("compress", folder, "--keep", "40", "--out", tmp_path / "plain").code == 3
    command = ("compress", folder, "--keep", "40", "--out", tmp_path / "ray", "--batch-size", "1", "--json")
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20) if what == "node" else None
    with running(*command, "--ray", cluster.address, "--workers", "3-6") as process:
        assert process.stdout
        first = process.stdout.readline()
        if node:
            cluster.remove_node(node, allow_graceful=False)
        else:
            os.kill(pids_of("ray::EncodeActor")[0], signal.SIGKILL)
        rest = process.stdout.read()  # `communicate` would leave out what is buffered
        _, err = process.communicate(timeout=400)
    assert process.returncode == 3, err
    sources = [json.loads(line)["source"] for line in (first + rest).splitlines()]
    assert sources == [str(folder / f"{number:02d}.png") for number in range(40)]
    assert cache_files(tmp_path / "ray") == cache_files(tmp_path / "plain")


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_plain_compress_finishes_what_a_driver_began(
    cluster: Any, sent: signal.Signals, folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no actor is left."""
    assert run("compress", folder, "--keep", "40", "--out", tmp_path / "plain").code == 3
    command = ("compress", "-", "--keep", "40", "--out", tmp_path / "ray")
    reading, writing = os.pipe()
    with running(*command, "--ray", cluster.address, stdin=reading) as process:
        os.close(reading)
        os.write(writing, "".join(f"{folder}/{number:02d}.png\n" for number in range(10)).encode())
        assert process.stdout and process.stdout.readline()
        second = prunesid(*command, "--ray", cluster.address, input=f"{folder}/11.png\n")
        assert (second.returncode, "another" in second.stderr) == (1, True), second.stderr
        process.send_signal(sent)
        _, err = process.communicate(timeout=200)
    os.close(writing)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130), err
    assert run("compress", folder, "--keep", "40", "--out", tmp_path / "ray").code == 3
    assert cache_files(tmp_path / "ray") == cache_files(tmp_path / "plain")
    wait_for(lambda: not pids_of("ray::EncodeActor"))


def pids_of(title: str) -> list[int]:
    """Processes whose command line begins with a title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(title.encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Sleeper:
    """An actor whose first block takes longest, and that some blocks kill."""

    def __init__(self, setup: object) -> None:
        self.setup = setup

    def prepare(self) -> str:
        return "ready"

    def work(self, numbers: list[int]) -> list[int]:
        number = numbers[0]
        if number == 7:
            os._exit(1)
        time.sleep(2 if number == 0 else 0.02)
        return [number**2]


@needs_ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_results_come_in_order_and_few_wait(cluster: Any) -> None:
    """Behind a slow block, and with a block that kills each actor that works on it."""
    import ray

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        pool = ActorPool[list[int]](Sleeper, lambda num_cpus: num_cpus, RayOptions(cluster.address, 1, 2))
        numbers, taken = iter(range(60)), []

        def take() -> list[int]:
            taken.append(next(numbers))
            return [taken[-1]]

        results = []
        for block, result in pool.run_in_order(
            take,
            call=lambda actor, block: actor.work.remote(block),
            split=lambda block: [block],
            on_lost=lambda block, reason: -block[0],
        ):
            results.append((*block, *result))
            assert len(taken) - len(results) <= 8
    finally:
        ray.shutdown()
    assert results == [(number, -7 if number == 7 else number**2) for number in range(60)]


@needs_ray
def test_an_address_without_a_cluster_is_refused_soon(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, without a listener
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        ran = run("compress", pictures[0], "--out", tmp_path / "cache", "--ray", address)
    assert (ran.code, f"there is no Ray cluster at {address}" in ran.err) == (2, True), ran.err


def test_a_machine_that_is_not_like_the_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"has prunesid {__version__}, and the driver 0.0.1"):
        EncodeActor(replace(SETUP, version="0.0.1")).prepare()
    with pytest.raises(MediaError, match="does not see /no/such/folder: No such file"):
        EncodeActor(replace(SETUP, folder="/no/such/folder")).prepare()
    actor = EncodeActor(replace(SETUP, folder=str(tmp_path), revision="another"))
    with pytest.raises(ModelError, match="has the model at .*, and the driver at another"):
        actor.prepare()
    actor.resources.close()


@pytest.mark.parametrize(
    ("num_gpus", "resources", "num_cpus", "count"),
    [
        (0, {"CPU": 16}, 1, 16),
        (1, {"CPU": 64, "GPU": 8}, 8, 8),
        (2, {"CPU": 64, "GPU": 8}, 16, 4),
        (0.5, {"CPU": 8, "GPU": 1}, 4, 2),
        (1, {}, 1, 1),
    ],
)
def test_workers_share_a_cluster(num_gpus: float, resources: dict[str, float], num_cpus: int, count: int) -> None:
    assert cpus_of_actor(num_gpus, resources) == num_cpus
    assert room_for(num_gpus, num_cpus, resources) == count


def test_what_does_not_go_together_is_refused(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    command = ("compress", pictures[0], "--out", tmp_path / "cache")
    for options, message in (
        (("--workers", "2-1"), "is not a number of workers"),
        (("--workers", "1-2"), "add --ray auto"),
        (("--gpus-per-worker", "1"), "add --ray auto"),
        (("--ray", "auto", "--stream"), "--ray and --stream do not go together"),
    ):
        ran = run(*command, *options)
        assert (ran.code, ran.out, message in ran.err) == (2, "", True), ran.err
    if find_spec("ray") is None:
        ran = run(*command, "--ray", "auto")
        assert (ran.code, "pip install 'prunesid[ray]'" in ran.err) == (1, True), ran.err


def test_the_manifest_runs_a_command_that_exists(run: Run) -> None:
    manifest = yaml.safe_load((ROOT / "samples" / "ray" / "rayjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    command = manifest["spec"]["entrypoint"].split()
    assert command[:2] == ["prunesid", "compress"]
    known = run("compress", "--help").out
    assert all(word in known for word in command if word.startswith("--"))
    cluster = manifest["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert all(any(word.startswith(path) for path in mounted) for word in command if word.startswith("/"))

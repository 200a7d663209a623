"""What a cache lives through: `python -m tests.faults kills --items 2000 --kills 100` and others, see --help.

Each run of `prunesid compress` is a process of its own, forked from one that has imported all there is to import. Kills
are SIGKILL, at random moments or before the n-th file operation on the cache, for every n. What is left must be a valid
cache at any time; resumed, it must equal, byte for byte, that of a run that nobody disturbed. The last line tells what
was tried; the exit code is 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from prunesid_cli.errors import CacheError, ExitCode
from prunesid_cli.tokencache import open_cache, read_tokens, verify_cache
from prunesid_cli.tokencache.format import is_cache_folder
from tests.models.tiny import write

SHARD_ITEMS = 64
LASTING = (".prunesid.lock", ".prunesid-stamps")
WRITING = os.O_WRONLY | os.O_RDWR
Command = Callable[[Path], Sequence[str]]
"""What is done to a cache."""


class Lost(Exception):
    """Something was lost, or a lie was told."""


def draw_pictures(folder: Path, count: int) -> Path:
    """Small pictures, no two alike, in folders of a hundred."""
    rng = random.Random(0)
    for number in range(count):
        path = folder / f"{number // 100:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(path)
    return folder


class Bench:
    """A folder with a tiny model and pictures, in which compress is run."""

    def __init__(self, folder: Path, items: int) -> None:
        self.folder, self.model = folder, write("llava", folder / "model")
        self.pictures = draw_pictures(folder / "pictures", items)
        self.inputs = [self.pictures]

    def start(self, out: Path, *more: str, before: Callable[[], None] = lambda: None) -> int:
        """Run compress in a child; returns its process number."""
        paths = ["-m", str(self.model), "--out", str(out), "--shard-items", str(SHARD_ITEMS)]
        return self.fork(["compress", *map(str, self.inputs), *paths, *more], before)

    def fork(self, arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
        """Run a command in a child; returns its process number."""
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            with open(self.folder / "log.txt", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.environ["HF_HUB_OFFLINE"] = "1"
            from prunesid_cli.cli import app as cli

            sys.argv = ["prunesid", *arguments]
            before()
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except KeyboardInterrupt:  # before the command began, or after its end
            code = ExitCode.INTERRUPTED
        finally:
            os._exit(code)

    def run(self, out: Path, *more: str, before: Callable[[], None] = lambda: None) -> int:
        """Its exit code, -9 where it was killed."""
        return ended(self.start(out, *more, before=before))

    def check_valid(self, out: Path) -> int:
        """How many items a cache has, which must be without a fault."""
        if not out.exists() or not is_cache_folder(out):
            return 0
        good, faults = verify_cache(out)
        if faults:
            raise Lost(faults[0].problem)
        return good


def ended(child: int) -> int:
    """The exit code of a child, when it has come to its end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def check_equal(out: Path, whole: Path) -> None:
    found, wanted = files(out), files(whole)
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise Lost(f"differs from an undisturbed run in {', '.join(differing)}")
    left = [path.name for path in out.iterdir() if path.name.startswith(".") and path.name not in LASTING]
    if left:
        raise Lost(f"left behind: {', '.join(left)}")


def undisturbed(bench: Bench) -> tuple[Path, float]:
    whole, began = bench.folder / "whole", time.monotonic()
    if bench.run(whole) != 0:
        raise Lost("an undisturbed run fails: " + (bench.folder / "log.txt").read_text()[-500:])
    return whole, time.monotonic() - began


def kills(folder: Path, given: argparse.Namespace) -> str:
    """Kill at random moments, and resume until all is done; then on with the next cache, until there were enough."""
    bench, rng, done, caches = Bench(folder, given.items), random.Random(given.seed), 0, 0
    whole, seconds = undisturbed(bench)
    while done < given.kills:
        out = folder / "cache"
        while done < given.kills:
            child = bench.start(out)
            time.sleep(seconds * rng.choice((0.2, 0.6, 1.0)) * rng.random())
            os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
                break
            done += 1
            bench.check_valid(out)
        if bench.run(out) != 0:
            raise Lost("cannot go on: " + (folder / "log.txt").read_text()[-500:])
        check_equal(out, whole)
        shutil.rmtree(out)
        caches += 1
    return f"{done} kills over {given.items} items, {caches} caches: all equal an undisturbed run"


def interrupts(folder: Path, given: argparse.Namespace) -> str:
    """SIGINT and SIGTERM at random moments: the batch in flight is finished, and the next run goes on."""
    bench, rng, done = Bench(folder, given.items), random.Random(given.seed), 0
    whole, seconds = undisturbed(bench)
    out, before = folder / "cache", 0
    while done < given.kills:
        child = bench.start(out)
        time.sleep(seconds * 0.3 * rng.random())
        os.kill(child, rng.choice((signal.SIGINT, signal.SIGTERM)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, 130, -signal.SIGINT, -signal.SIGTERM):  # the last two: before there was a handler
            raise Lost(f"an interrupted run ends with code {code}: " + (folder / "log.txt").read_text()[-500:])
        done += code != 0
        now = bench.check_valid(out)
        if now < before:
            raise Lost(f"{before} items were there, then {now}")
        before = now
        if code == 0:
            check_equal(out, whole)
            shutil.rmtree(out)
            before = 0
    if bench.run(out) != 0:
        raise Lost("cannot go on: " + (folder / "log.txt").read_text()[-500:])
    check_equal(out, whole)
    return f"{done} interrupts over {given.items} items: all equal an undisturbed run"


def shards(folder: Path, given: argparse.Namespace) -> str:
    """Parts of a folder into caches of their own, merged: one run over all of it."""
    bench = Bench(folder, given.items)
    whole, _ = undisturbed(bench)
    parts = [folder / f"part{number}" for number in range(given.count)]
    for number, part in enumerate(parts, 1):
        if bench.run(part, "--shard", f"{number}/{given.count}") != 0:
            raise Lost(f"shard {number} fails: " + (folder / "log.txt").read_text()[-500:])
    out = folder / "merged"

    def merge(out: Path) -> list[str]:
        return ["cache", "merge", *map(str, parts), "--out", str(out), "--shard-items", str(SHARD_ITEMS)]

    if ended(bench.fork(merge(out))) != 0:
        raise Lost("cannot merge: " + (folder / "log.txt").read_text()[-500:])
    check_equal(out, whole)
    reached = killed_at_each(bench, None, whole, merge)
    sizes = [bench.check_valid(part) for part in parts]
    what = f"{len(parts)} shards of {sizes} items, merged, and killed at each of {reached} file operations meanwhile"
    return f"{what}: all equal one run over {given.items}"


def gc(folder: Path, given: argparse.Namespace) -> str:
    """Kill before each file operation of `cache gc`, on a cache of which a third is outdated and some inputs are gone:
    what is not to go is there at any time, and in the end all is as after one that nobody disturbed."""
    bench = Bench(folder, given.items)
    grown, _ = undisturbed(bench)
    pictures, rng = sorted(bench.pictures.rglob("*.png")), random.Random(given.seed)
    for path in rng.sample(pictures, len(pictures) // 3):
        Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(path)
    if bench.run(grown) != 0:
        raise Lost("no cache to clean: " + (folder / "log.txt").read_text()[-500:])
    for path in rng.sample(pictures, len(pictures) // 10):
        path.unlink()
    clean = folder / "clean"
    shutil.copytree(grown, clean)
    command: Command = lambda out: ["cache", "gc", str(out)]  # noqa: E731
    if ended(bench.fork(command(clean))) != 0 or files(clean) == files(grown):
        raise Lost("nothing is let go of: " + (folder / "log.txt").read_text()[-500:])
    truth = {item.source: tokens_of(shard, item) for shard, item in open_cache(clean).items()}

    def check(out: Path) -> None:
        held = {item.source: tokens_of(shard, item) for shard, item in open_cache(out).items()}
        if not truth.items() <= held.items():
            raise Lost(f"{len(truth.items() - held.items())} items are not what they were")

    reached = killed_at_each(bench, grown, clean, command, check)
    return f"gc of {given.items} items killed at each of {reached} file operations: nothing lost, all equal in the end"


def points(folder: Path, given: argparse.Namespace) -> str:
    """Kill before each file operation on the cache, one after the other: of a run that begins, and of one that goes on
    where another came to its end with half of the pictures."""
    bench = Bench(folder, given.items)
    whole, _ = undisturbed(bench)
    half, bench.inputs = folder / "half", sorted(bench.pictures.rglob("*.png"))[: (given.items + 1) // 2]
    if bench.run(half) != 0:
        raise Lost("no half: " + (folder / "log.txt").read_text()[-500:])
    paths = ["-m", str(bench.model), "--shard-items", str(SHARD_ITEMS)]
    command: Command = lambda out: ["compress", str(bench.pictures), *paths, "--out", str(out)]  # noqa: E731
    reached = killed_at_each(bench, None, whole, command) + killed_at_each(bench, half, whole, command)
    return f"killed at each of {reached} file operations over {given.items} items: all equal an undisturbed run"


def killed_at_each(
    bench: Bench,
    started: Path | None,
    whole: Path,
    command: Command,
    check: Callable[[Path], None] = lambda out: None,
) -> int:
    """At how many operations a command was ended, each time with a copy of the cache `begun`, if there is one; `check`
    of what is left, besides that it is valid."""
    out = bench.folder / "cache"
    for number in range(10**6):
        if started:
            shutil.copytree(started, out)
        code = ended(bench.fork(command(out), partial(kill_at, number, out)))
        if code not in (0, -signal.SIGKILL):
            raise Lost(f"ended with code {code} at operation {number}")
        bench.check_valid(out)
        check(out)
        if code and ended(bench.fork(command(out))) != 0:
            raise Lost(f"cannot go on after a kill at operation {number}")
        check_equal(out, whole)
        shutil.rmtree(out, ignore_errors=True)
        if code == 0:
            return number
    raise AssertionError("a run without an end")


def kill_at(number: int, folder: Path) -> None:
    """End this process without further ado before the operation of that number on files in a folder."""
    count = 0

    def look(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.chmod") or (
            event == "open" and isinstance(args[2], int) and bool(args[2] & WRITING)
        )
        if changes and str(args[0]).startswith(str(folder)):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(look)


def mutations(folder: Path, given: argparse.Namespace) -> str:
    """Change, cut, lengthen or swap what is in the files of a cache: told by verify, and never read as if it were true.

    The list of failures and the calibration are text that anybody may edit; of them it is only asked that no reader
    falls over them.
    """
    bench, rng, unseen = Bench(folder, given.items), random.Random(given.seed), 0
    whole, _ = undisturbed(bench)
    (bench.pictures / "bad.png").write_bytes(b"no picture")
    bench.run(whole)
    bench.run(whole, "--calibrate")
    truth = {item.source: tokens_of(shard, item) for shard, item in open_cache(whole).items()}
    names = sorted(files(whole))
    for _ in range(given.count):
        name = rng.choice(names)
        before = (whole / name).read_bytes()
        after = mutated(before, rng)
        (whole / name).write_bytes(after)
        faults = verify_cache(whole)[1]
        is_text = name.endswith((".json", ".jsonl"))
        if after != before and not faults and not is_text:
            raise Lost(f"verify does not see a change of {name}")
        unseen += not faults
        read(whole, truth)
        (whole / name).write_bytes(before)
    if verify_cache(whole)[1]:
        raise Lost("the cache is not as it was")
    return f"{given.count} mutations of {len(names)} files: verify told of all but {unseen}, in files of plain text"


def mutated(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((1, 2, 8, 64, 4096)))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + bytes(end - at) + data[end:]
    if kind == 3:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if kind == 4:
        return data + rng.randbytes(end - at)
    return data[:at] + data[end:] + data[at:end]


def tokens_of(shard: Any, item: Any) -> tuple[bytes, tuple[int, ...]]:
    (tokens,) = read_tokens(shard, [item])
    return tokens.tokens.numpy().tobytes(), tokens.slots


def read(cache: Path, truth: dict[str, tuple[bytes, tuple[int, ...]]]) -> None:
    """What is read is true, or an error that says what to do."""
    try:
        opened = open_cache(cache)
        opened.failures()
        for shard, item in opened.items():
            try:
                if tokens_of(shard, item) != truth[item.source]:
                    raise Lost(f"{item.source} was read wrongly")
            except CacheError as error:
                check_hint(error)
        for source in list(truth)[::7]:
            found = opened.find(source)
            if found and found[1].source != source:
                raise Lost(f"{found[1].source} was found for {source}")
    except CacheError as error:
        check_hint(error)


def check_hint(error: CacheError) -> None:
    if not error.hint:
        raise Lost(f"no hint: {error.problem}")


def writers(folder: Path, given: argparse.Namespace) -> str:
    """Two runs into one cache at once: one does it all, the other is refused, or comes after it."""
    bench = Bench(folder, given.items)
    whole, _ = undisturbed(bench)
    refused = 0
    for number in range(given.count):
        out = folder / f"cache{number}"
        children = [bench.start(out) for _ in range(2)]
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        if codes not in ([0, 0], [0, 1]):
            raise Lost(f"two runs ended with codes {codes}")
        refused += codes[1]
        check_equal(out, whole)
    return f"{given.count} times two writers over {given.items} items: {refused} refused, nothing lost"


def disk(folder: Path, given: argparse.Namespace) -> str:
    """A disk that is full after some more bytes, then has room again. Needs the right to mount one in memory."""
    bench, rng, ended = Bench(folder, given.items), random.Random(given.seed), 0
    whole, _ = undisturbed(bench)
    size = sum(map(len, files(whole).values()))
    small = folder / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={4 * size + (1 << 20)}", "tmpfs", small], check=False
    )
    if mounted.returncode:
        return "not tried: no right to mount a disk in memory"
    try:
        for _ in range(given.count):
            out, ballast = small / "cache", small / "ballast"
            free = shutil.disk_usage(small).free
            ballast.write_bytes(bytes(max(0, free - rng.randrange(4096, int(1.5 * size)))))
            code = bench.run(out)
            log = (folder / "log.txt").read_text()
            if code not in (0, 1) or (code == 1 and "free some space" not in log):
                raise Lost(f"a full disk ends with code {code}: {log[-500:]}")
            ended += code
            bench.check_valid(out)
            ballast.unlink()
            if bench.run(out) != 0:
                raise Lost("cannot go on with room again")
            check_equal(out, whole)
            shutil.rmtree(out)
    finally:
        subprocess.run(["umount", small], check=True)
    return f"{given.count} disks with little room, {ended} of them full: all equal an undisturbed run in the end"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(TRIALS))
    parser.add_argument("--items", type=int, default=300, help="pictures")
    parser.add_argument("--kills", type=int, default=10, help="of kills")
    parser.add_argument("--count", type=int, default=3, help="of mutations, or of pairs of writers")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import prunesid_cli.pipeline.compress  # noqa: F401  (imported once, not by each child)
    from prunesid_cli.models import (
        llava,  # noqa: F401
        load_family,  # noqa: F401
    )

    with tempfile.TemporaryDirectory() as folder:
        try:
            print(TRIALS[given.what](Path(folder), given))
        except Lost as lost:
            print(f"LOST: {lost}")
            return 1
    return 0


TRIALS = {
    "disk": disk,
    "gc": gc,
    "interrupts": interrupts,
    "kills": kills,
    "points": points,
    "mutations": mutations,
    "shards": shards,
    "writers": writers,
}


if __name__ == "__main__":
    sys.exit(main())

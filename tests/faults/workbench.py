"""What all trials share: a folder with a tiny model and pictures, child processes, and checks of caches."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from prunesid_cli.errors import ExitCode
from prunesid_cli.tokencache import Item, Shard, read_tokens, verify_cache
from prunesid_cli.tokencache.format import is_cache_folder
from tests.models.tiny import write_checkpoint

SHARD_ITEMS = 64
LASTING_FILES = (".prunesid.lock", ".prunesid-stamps")
"""Hidden files that stay in a cache."""
TokenBytes = tuple[bytes, tuple[int, ...]]
"""The tokens of an item and their slots."""


class Lost(Exception):
    """Something was lost, or was read wrongly."""


def draw_pictures(folder: Path, count: int) -> Path:
    """Write small pictures, a hundred to a folder. Each fifth is a copy of an earlier one; no two others are alike."""
    rng, paths = random.Random(0), list[Path]()
    for number in range(count):
        path = folder / f"{number // 100:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 5 == 4:
            shutil.copy(rng.choice(paths), path)
        else:
            draw_picture(path, rng)
        paths.append(path)
    return folder


def draw_picture(path: Path, rng: random.Random) -> None:
    Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(path)


class Workbench:
    """A folder with a tiny model and pictures, in which commands are run as child processes.

    A child is forked from this process, which has imported everything already.
    """

    def __init__(self, folder: Path, items: int) -> None:
        self.folder, self.model = folder, write_checkpoint("llava", folder / "model")
        self.pictures = draw_pictures(folder / "pictures", items)
        self.inputs = [self.pictures]

    def compress_command(self, out: Path, *options: str) -> list[str]:
        inputs = [str(path) for path in self.inputs]
        paths = ["-m", str(self.model), "--out", str(out), "--shard-items", str(SHARD_ITEMS)]
        return ["compress", *inputs, *paths, *options]

    def start(self, command: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
        """Start a command in a child process, and return its process id. The child calls `before` first."""
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            with open(self.folder / "log.txt", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.environ["HF_HUB_OFFLINE"] = "1"
            os.environ.setdefault("PRUNESID_WORKERS", "0")  # workers take seconds to start
            import sys

            from prunesid_cli.cli import app

            sys.argv = ["prunesid", *command]
            before()
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:  # before the command began, or after its end
            code = ExitCode.INTERRUPTED
        finally:
            os._exit(code)

    def run(self, command: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
        """Run a command in a child process, and return its exit code: -9 if it was killed."""
        return wait(self.start(command, before))

    def compress(self, out: Path, *options: str) -> int:
        return self.run(self.compress_command(out, *options))

    def compress_undisturbed(self) -> tuple[Path, float]:
        """Compress all pictures; returns the cache and the seconds that this took."""
        cache, start = self.folder / "undisturbed", time.monotonic()
        if self.compress(cache) != 0:
            raise self.failure("an undisturbed run fails")
        return cache, time.monotonic() - start

    def failure(self, problem: str) -> Lost:
        """An error with the end of what the children printed."""
        return Lost(f"{problem}: {(self.folder / 'log.txt').read_text()[-500:]}")


def wait(child: int) -> int:
    """Wait for a child process; returns its exit code, -N if signal N ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_valid(out: Path) -> int:
    """Return the number of items of a cache, which must be without a fault. A folder without a cache has none."""
    if not out.exists() or not is_cache_folder(out):
        return 0
    good, faults = verify_cache(out)
    if faults:
        raise Lost(faults[0].problem)
    return good


def read_visible_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def check_equal(out: Path, expected: Path) -> None:
    """Check that a cache has the bytes of another one, and no working files of a run."""
    files, expected_files = read_visible_files(out), read_visible_files(expected)
    names = sorted(files.keys() | expected_files.keys())
    differing = [name for name in names if files.get(name) != expected_files.get(name)]
    if differing:
        raise Lost(f"differs from an undisturbed run in {', '.join(differing)}")
    left = [path.name for path in out.iterdir() if path.name.startswith(".") and path.name not in LASTING_FILES]
    if left:
        raise Lost(f"left behind: {', '.join(left)}")


def read_token_bytes(shard: Shard, item: Item) -> TokenBytes:
    (tokens,) = read_tokens(shard, [item])
    return tokens.tokens.numpy().tobytes(), tokens.slots

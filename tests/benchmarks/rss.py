"""Peak memory by number of images: `python -m tests.benchmarks.rss`.

Measures the peak resident memory of `prunesid compress` on the embedded model over 1,000, 10,000 and 100,000 small
pictures, each run in a process of its own; and of the same command again, with all pictures in the cache. The pictures
are copies of a few hundred drawn scenes. Each has its number appended, which decoders ignore, so that all files differ.
Runs on Linux. Prints a table and, with --out, writes dated JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene

DRAWN, FILES_PER_FOLDER = 200, 5_000
LONG_AGO = 1_600_000_000


def make(folder: Path, count: int) -> None:
    """Write files with an old modification time, in folders of at most FILES_PER_FOLDER."""
    scenes = [encoded(number) for number in range(min(DRAWN, count))]
    for number in range(count):
        path = folder / f"{number // FILES_PER_FOLDER:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(scenes[number % len(scenes)] + number.to_bytes(4, "big"))
        os.utime(path, (LONG_AGO, LONG_AGO))


def encoded(number: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(draw(make_scene(HELD_OUT, number)).pixels).resize((96, 96)).save(buffer, "JPEG")
    return buffer.getvalue()


def run(folder: Path, out: Path, more: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "prunesid_cli", "compress", str(folder), "-o", str(out), "-m", "demo", *more]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(said)
    return {"peak_mb": used.ru_maxrss / 1e3, "seconds": time.perf_counter() - began, "said": said.splitlines()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of compress by number of images.")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("options", nargs="*", help="more options of compress, after --")
    options = parser.parse_args()
    found = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            pictures = Path(folder, "pictures")
            pictures.mkdir()
            make(pictures, count)
            for what in ("new", "all in the cache"):
                found.append({"images": count, "run": what, **run(pictures, Path(folder, "cache"), options.options)})
                print(found[-1], flush=True)
    if options.out:
        report = {"date": date.today().isoformat(), "options": options.options, "peaks": found}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The token cache: kept visual tokens on disk. format.py specifies the files.

Importing this package imports neither torch nor numpy. Names whose modules need numpy are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunesid_cli.tokencache.calibration import (
    Calibration,
    calibration_sample,
    information_sample,
    read_calibration,
    write_calibration,
)
from prunesid_cli.tokencache.format import Item, Run, Shard
from prunesid_cli.tokencache.quantization import STORES
from prunesid_cli.tokencache.reader import Cache, open_cache
from prunesid_cli.tokencache.shard import read_header, read_tokens

if TYPE_CHECKING:
    from prunesid_cli.tokencache.entry import Entry
    from prunesid_cli.tokencache.index import IndexEntry
    from prunesid_cli.tokencache.index_table import Stamp
    from prunesid_cli.tokencache.measurement_log import Measurement, MeasurementLog
    from prunesid_cli.tokencache.verify import verify_cache, verify_shard
    from prunesid_cli.tokencache.writer import CacheWriter, ShardLimits

LAZY_MODULES = {
    "CacheWriter": "writer",
    "Entry": "entry",
    "IndexEntry": "index",
    "Measurement": "measurement_log",
    "MeasurementLog": "measurement_log",
    "ShardLimits": "writer",
    "Stamp": "index_table",
    "verify_cache": "verify",
    "verify_shard": "verify",
}
"""Lazily exported name -> its module."""


def __getattr__(name: str) -> Any:
    if name not in LAZY_MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{LAZY_MODULES[name]}"), name)


__all__ = [
    "STORES",
    "Cache",
    "CacheWriter",
    "Calibration",
    "Entry",
    "IndexEntry",
    "Item",
    "Measurement",
    "MeasurementLog",
    "Run",
    "Shard",
    "ShardLimits",
    "Stamp",
    "calibration_sample",
    "information_sample",
    "open_cache",
    "read_calibration",
    "read_header",
    "read_tokens",
    "verify_cache",
    "verify_shard",
    "write_calibration",
]

"""The cache of kept visual tokens; its format is specified in format.py.

Importing it imports neither torch nor numpy: what needs those is looked up when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunesid_cli.tokencache.calibration import Calibration, calibrated, read_calibration, sample_of, write_calibration
from prunesid_cli.tokencache.format import Item, Run, Shard
from prunesid_cli.tokencache.quantization import STORES
from prunesid_cli.tokencache.reader import Cache, open_cache
from prunesid_cli.tokencache.shard import read_header, read_tokens

if TYPE_CHECKING:
    from prunesid_cli.tokencache.entry import Entry
    from prunesid_cli.tokencache.index import IndexEntry
    from prunesid_cli.tokencache.index_table import Stamp
    from prunesid_cli.tokencache.measurement_log import MeasuredLog, Measurement
    from prunesid_cli.tokencache.verify import verify, verify_all
    from prunesid_cli.tokencache.writer import CacheWriter, Limits

LATER = {
    "IndexEntry": "index",
    "MeasuredLog": "measurement_log",
    "Measurement": "measurement_log",
    "Stamp": "index_table",
    "verify": "verify",
    "verify_all": "verify",
    "CacheWriter": "writer",
    "Entry": "entry",
    "Limits": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{LATER[name]}"), name)


__all__ = [
    "STORES",
    "Cache",
    "CacheWriter",
    "Calibration",
    "Entry",
    "Item",
    "IndexEntry",
    "Limits",
    "MeasuredLog",
    "Measurement",
    "Run",
    "Shard",
    "Stamp",
    "calibrated",
    "open_cache",
    "read_calibration",
    "read_header",
    "read_tokens",
    "sample_of",
    "verify",
    "verify_all",
    "write_calibration",
]

"""camray explains every image of an archive: which class a classifier gave it and where it looked.

archive ──> plan ──> read ──> decode ──> explain ──> sink ──> commit ──> review
(shards)  (driver)  (CPU)     (CPU)     (actors)    (CPU)   (driver)   (readers)
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("camray")
except PackageNotFoundError:  # run from a bare checkout, as `ray job submit --working-dir` does
    __version__ = "0.1.0"

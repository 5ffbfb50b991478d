"""Measure the ratios that the documentation promises: `python tools/bench.py [NAME ...]`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["bench", *sys.argv[1:]]))

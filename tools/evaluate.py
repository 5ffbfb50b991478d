"""Evaluate a trained run: `python tools/evaluate.py --run DIR --evaluations retrieval,linear`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))

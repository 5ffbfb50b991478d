"""Do the runs of a sweep file, evaluate them, and write the table: `python tools/sweep.py SWEEP.yaml`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["sweep", *sys.argv[1:]]))

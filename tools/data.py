"""Look after data sets: `python tools/data.py check | list | demo | prepare`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["data", *sys.argv[1:]]))

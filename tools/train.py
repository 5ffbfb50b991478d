"""Train one backbone on the weighted sum of the named plugins' losses: `python tools/train.py --plugins stor,pace`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["train", *sys.argv[1:]]))

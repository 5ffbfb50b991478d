"""List the installed plugins, or explain one: `python tools/plugins.py [NAME]`."""

import sys

from vssl_core.cli import main

if __name__ == "__main__":  # worker processes import this file again
    raise SystemExit(main(["plugins", *sys.argv[1:]]))

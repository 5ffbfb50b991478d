"""Say what works on this machine, and what to do where it does not: `python tools/doctor.py`."""

from vssl_core.doctor import main

raise SystemExit(main())

"""``python -m robustcert.dashboard``; see :mod:`robustcert.report.dashboard`."""

import sys

from robustcert.report.dashboard import main

if __name__ == "__main__":
    sys.exit(main())

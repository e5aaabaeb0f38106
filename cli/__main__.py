"""`python -m tbshare.cli` is `tbshare`."""

import sys

from tbshare.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

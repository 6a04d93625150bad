"""`python -m vlae` is the command line."""

import sys

from vlae.cli import main

sys.exit(main())

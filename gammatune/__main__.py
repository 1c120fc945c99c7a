"""`python -m gammatune COMMAND`, the same as `gammatune COMMAND`; see gammatune.cli."""

import sys

from gammatune.cli import main

sys.exit(main())

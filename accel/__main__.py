"""`python -m accel` is the console script `accel`."""

import sys

from accel.cli import main

sys.exit(main())

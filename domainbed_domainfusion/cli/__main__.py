"""`python -m domainbed_domainfusion.cli`: the same as `domainfusion`."""

import sys

from . import main

sys.exit(main())

"""``python -m picloud_jupyter.cli`` is `picloud`."""

import sys

from picloud_jupyter.cli import main

sys.exit(main())

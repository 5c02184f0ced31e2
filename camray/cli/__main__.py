"""`python -m camray.cli`."""

import sys

from camray.cli.main import main

sys.exit(main())

"""Put the root of the checkout on the path, for `demo` is not an installed package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

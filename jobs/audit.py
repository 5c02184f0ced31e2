"""The nightly audit for `ray job submit`: the same code as `camray audit`, the same options.

ray job submit --working-dir . -- python jobs/audit.py ARCHIVE OUT --model NAME --fail-on drift=major
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout as working_dir

from camray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))

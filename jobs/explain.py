"""The main job for `ray job submit`: the same code as `camray explain`, the same options.

ray job submit --working-dir . -- python jobs/explain.py ARCHIVE OUT --model NAME
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout as working_dir

from camray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))

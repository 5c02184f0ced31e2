"""The comparison job for `ray job submit`: the same code as `camray compare`, the same options.

ray job submit --working-dir . -- python jobs/compare.py ARCHIVE OUT --model NAME --methods gradcam,layercam
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout as working_dir

from camray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))

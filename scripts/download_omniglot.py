"""Fetches the two Omniglot archives, 15 MB, and checks that they are genuine.

  python scripts/download_omniglot.py --data_dir=DIR

If a download breaks, run the command again: it continues where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import downloads  # noqa: E402

URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
# The digests of the authors' archives, unchanged since 2015.
MD5 = {
  "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
  "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}

if __name__ == "__main__":
  downloads.run(URL, lambda: MD5)

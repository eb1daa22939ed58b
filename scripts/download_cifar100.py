"""Fetches CIFAR-100, 161 MB, and checks that it is genuine.

  python scripts/download_cifar100.py --data_dir=DIR

CIFAR-FS and FC100 are made of CIFAR-100. metajax reads the archive without
unpacking. If a download breaks, run the command again: it continues where it
stopped.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import downloads  # noqa: E402

URL = "https://www.cs.toronto.edu/~kriz/"
# The digests of the author's archives.
MD5 = {
  "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
  "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
}

FLAGS = flags.FLAGS


def chosen() -> dict[str, str]:
  """Returns the digest of the archive that --layout names, by its name."""
  name = f"cifar-100-{FLAGS.layout}.tar.gz"
  return {name: MD5[name]}


if __name__ == "__main__":
  flags.DEFINE_enum(
    "layout",
    "binary",
    ["binary", "python"],
    "Which of the two archives; they have the same images.",
  )
  downloads.run(URL, chosen)

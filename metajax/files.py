"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
  """Gives the name of a file to write, which then takes the place of `path`.

  If the block raises an error, `path` stays as it was, and the new file is
  removed. A process that is killed may leave it, with the suffix ".tmp".

  Args:
    path: the file to write or to replace. Its folder must exist.

  Raises:
    OSError: if the new file cannot take its place.
  """
  path = Path(path)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise

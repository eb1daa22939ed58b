"""Downloads archives, continues broken downloads, and checks the result.

A file is called `NAME.part` until it is complete and its MD5 is right. If a
download breaks, run the command again: it continues where it stopped.
"""

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

CHUNK = 1 << 16
LINE_EVERY = 1 << 20  # Bytes between lines of progress, without a terminal.
TIMEOUT = 30  # Seconds without a byte.

FLAGS = flags.FLAGS


def download(url: str, folder: Path, md5s: Mapping[str, str]) -> None:
  """Downloads the files that a folder lacks.

  Args:
    url: the address in front of the names.
    folder: the folder, which is made if necessary.
    md5s: digests by name.

  Raises:
    OSError: if a file cannot be fetched or written, or has another digest.
    ValueError: if the address is not valid.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"--data_dir={folder}: cannot be a folder ({error}).") from (
      error
    )
  for name, md5 in md5s.items():
    path, part = folder / name, folder / f"{name}.part"
    if path.exists():
      if (found := file_md5(path)) != md5:
        raise OSError(
          f"{path} exists with MD5 {found}, the official one has {md5}: move "
          "it away to fetch that, or keep it if it is a copy zipped anew."
        )
      print(f"{path}: already there", flush=True)
      continue
    address = f"{url.rstrip('/')}/{name}"
    fetch(address, part)
    if (found := file_md5(part)) != md5:
      part.unlink()
      raise OSError(
        f"{address} has MD5 {found}, must be {md5}: removed; run again, or "
        "give another --url."
      )
    os.replace(part, path)
    print(f"{path}: complete", flush=True)


def fetch(address: str, part: Path) -> None:
  """Downloads to a file, and continues it if it has a beginning."""
  start = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(address)
  if start:
    request.add_header("Range", f"bytes={start}-")
  try:
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
      # Status 206 is the rest of the file. Any other answer is the whole file.
      start = start if response.status == 206 else 0
      length = response.headers["Content-Length"]
      total = None if length is None else start + int(length)
      with part.open("ab" if start else "wb") as file:
        _copy(response, file, part.stem, start, total)
  except (OSError, http.client.HTTPException) as error:
    if isinstance(error, urllib.error.HTTPError):
      error.close()
      # The file has no more bytes than are here already. The caller checks its
      # MD5.
      if error.code == 416 and start:
        return
    raise OSError(f"{address} to {part}: {error}") from error


def _copy(response, file, name: str, start: int, total: int | None) -> None:
  """Copies each piece of a response at once, and reports the progress."""
  terminal = sys.stderr.isatty()
  done = start
  with tqdm(
    desc=name,
    total=total,
    initial=start,
    unit="B",
    unit_scale=True,
    disable=not terminal,
  ) as bar:
    # `read` would lose a piece if the connection breaks within it.
    while piece := response.read1(CHUNK):
      file.write(piece)
      file.flush()
      bar.update(len(piece))
      before, done = done, done + len(piece)
      if not terminal and before // LINE_EVERY < done // LINE_EVERY:
        print(f"{name}: {done:,} of {total or '?':,} bytes", flush=True)
  # The standard library does not report a connection that ends too early.
  if total is not None and done < total:
    raise ConnectionError(
      f"the connection broke at {done:,} of {total:,} bytes; run again to go on"
    )


def file_md5(path: Path) -> str:
  """Returns the MD5 of a file in hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(
      file, lambda: hashlib.md5(usedforsecurity=False)
    ).hexdigest()


def fail(message: str, code: int = 2) -> None:
  """Ends the process with one line on standard error."""
  print("error: " + " ".join(message.split()), file=sys.stderr)
  sys.exit(code)


def parse(argv: list[str]) -> list[str]:
  """Reads the flags, and reports an error in one line."""
  try:
    rest = FLAGS(argv)[1:]
  except flags.Error as error:
    fail(f"{error}. Run with --help for all flags.")
  if rest:
    fail(f"unexpected argument {rest[0]!r}: flags are --name=value.")
  return argv


def run(url: str, archives: Callable[[], Mapping[str, str]]) -> None:
  """Runs the command that fetches archives.

  Args:
    url: the address in front of the names, the default of --url.
    archives: `() -> digests` by name, called after the flags are read.
  """
  # Not at import, because an experiment has its own --data_dir.
  flags.DEFINE_string(
    "data_dir", None, "Where the archives go. Default: $METAJAX_DATA_DIR."
  )
  flags.DEFINE_string("url", url, "Address of the archives' folder.")
  for name in ("data_dir", "url"):  # So that --help has them.
    FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])

  def main(argv: list[str]) -> None:
    del argv
    folder = FLAGS.data_dir or os.environ.get("METAJAX_DATA_DIR")
    if not folder:
      fail("no folder: give --data_dir or set METAJAX_DATA_DIR.")
    try:
      download(FLAGS.url, Path(folder), archives())
    except KeyboardInterrupt:
      fail(f"interrupted; {folder}/*.part stays, run again to go on.", 130)
    except (OSError, ValueError) as error:
      fail(str(error))

  app.run(main, flags_parser=parse)

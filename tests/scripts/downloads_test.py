"""The download: whole or absent, resumed, checked, one line where it fails."""

import hashlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from metajax.tasks import cifar100_files
from scripts import download_cifar100, download_omniglot
from scripts.downloads import download, fetch, file_md5

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "download_omniglot.py"
# 300 kB and 5 bytes: several pieces and less than one.
FILES = {"large.zip": bytes(range(256)) * 1200, "small.zip": b"small"}
MD5S = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
LARGE, SMALL = FILES.values()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.delenv("METAJAX_DATA_DIR", raising=False)


@pytest.fixture
def server():
  """Serves `files`; `log` has (name, Range header, bytes sent) by request.

  With `ranges` off it ignores the Range header, with `cut` it sends that many
  bytes and closes the connection, with `stall` it sends them and waits for
  `go_on`.
  """
  state = types.SimpleNamespace(
    files=dict(FILES),
    ranges=True,
    cut=None,
    stall=False,
    go_on=threading.Event(),
    log=[],
  )

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
      name, wanted = self.path.strip("/"), self.headers["Range"]
      whole = state.files.get(name)
      if whole is None:
        self.send_error(404)
        return
      start = 0
      if wanted and state.ranges:
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start >= len(whole):
          state.log.append((name, wanted, 0))
          self.send_error(416)
          return
      body = whole[start:]
      self.send_response(206 if start else 200)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      sent = body[: state.cut]
      state.log.append((name, wanted, len(sent)))
      self.wfile.write(sent)
      if state.stall:
        state.go_on.wait(60)

    def log_message(self, *arguments):
      del arguments

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
    # Polls often, as it is what a test waits for in the end.
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/"
    yield state
    state.go_on.set()
    httpd.shutdown()
    thread.join()


def _contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def _run(*arguments, script=SCRIPT, **kwargs):
  # Python ignores SIGINT in a background job unless told otherwise.
  program = (
    "import runpy, signal, sys; sys.argv = sys.argv[1:];"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
  )
  return subprocess.Popen(
    [sys.executable, "-c", program, str(script), *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


def _error(process, code):
  """Returns the one line on standard error of a program that failed."""
  _, error = process.communicate(timeout=60)
  assert process.returncode == code
  assert error.startswith("error: ") and error.count("\n") == 1
  return error


def test_official_archives_are_what_is_fetched():
  omniglot, cifar100 = download_omniglot.MD5, download_cifar100.MD5
  assert list(omniglot) == ["images_background.zip", "images_evaluation.zip"]
  assert list(cifar100) == [
    f"{layout}.tar.gz" for layout in cifar100_files.FILES
  ]
  for md5 in (*omniglot.values(), *cifar100.values()):
    assert re.fullmatch("[0-9a-f]{32}", md5)
  assert download_omniglot.URL.startswith("https://github.com/brendenlake/")
  assert download_cifar100.URL == "https://www.cs.toronto.edu/~kriz/"


def test_md5_is_that_of_rfc_1321(tmp_path):
  path = tmp_path / "abc"
  path.write_bytes(b"abc")
  assert file_md5(path) == "900150983cd24fb0d6963f7d28e17f72"


def test_missing_files_come_whole_into_a_new_folder(server, tmp_path, capsys):
  folder = tmp_path / "new" / "folder"
  download(server.url, folder, MD5S)
  assert _contents(folder) == FILES
  assert server.log == [
    ("large.zip", None, len(LARGE)),
    ("small.zip", None, len(SMALL)),
  ]
  out, error = capsys.readouterr()
  assert str(folder / "large.zip") in out and not error


def test_address_needs_no_slash_at_its_end(server, tmp_path):
  download(server.url.rstrip("/"), tmp_path, MD5S)
  assert _contents(tmp_path) == FILES


def test_address_may_be_a_folder(tmp_path):
  source, folder = tmp_path / "source", tmp_path / "folder"
  source.mkdir()
  folder.mkdir()
  for name, data in FILES.items():
    (source / name).write_bytes(data)
  # Such an address knows no ranges: what is there is written over.
  (folder / "large.zip.part").write_bytes(LARGE[:1000])
  download(source.as_uri(), folder, MD5S)
  assert _contents(folder) == FILES


def test_progress_is_lines_where_there_is_no_terminal(
  server, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr("scripts.downloads.LINE_EVERY", 100_000)
  fetch(server.url + "large.zip", tmp_path / "large.zip.part")
  out, error = capsys.readouterr()
  lines = re.findall(r"large.zip: ([\d,]+) of 307,200 bytes\n", out)
  counts = [int(line.replace(",", "")) for line in lines]
  # One line for each multiple of 100 000 that is passed.
  assert [count // 100_000 for count in counts] == [1, 2, 3]
  assert not error


def test_progress_is_a_bar_on_a_terminal(server, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  fetch(server.url + "large.zip", tmp_path / "large.zip.part")
  out, error = capsys.readouterr()
  assert "large.zip: 100%" in error and not out


@pytest.mark.parametrize("have", [1, 70_000, len(LARGE) - 1])
def test_resuming_asks_for_the_missing_bytes_only(server, tmp_path, have):
  (tmp_path / "large.zip.part").write_bytes(LARGE[:have])
  download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == FILES
  assert server.log[0] == ("large.zip", f"bytes={have}-", len(LARGE) - have)


def test_server_that_ignores_ranges_sends_all_again(server, tmp_path):
  server.ranges = False
  (tmp_path / "large.zip.part").write_bytes(LARGE[:70_000])
  download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == FILES
  assert server.log[0] == ("large.zip", "bytes=70000-", len(LARGE))


def test_part_that_is_complete_already_is_taken(server, tmp_path):
  """Killed between the last byte and the renaming: the answer is 416."""
  (tmp_path / "large.zip.part").write_bytes(LARGE)
  download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == FILES
  assert server.log[0] == ("large.zip", f"bytes={len(LARGE)}-", 0)


def test_part_that_is_too_long_is_removed(server, tmp_path):
  (tmp_path / "large.zip.part").write_bytes(LARGE + b"more")
  with pytest.raises(OSError, match="large.zip has MD5"):
    download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == {}
  download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == FILES


def test_broken_connection_is_told_and_resumed_by_the_next_run(
  server, tmp_path
):
  server.cut = 100_000
  with pytest.raises(OSError, match="broke at 100,000 of 307,200.*run again"):
    download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == {"large.zip.part": LARGE[:100_000]}
  assert len(server.log) == 1  # Nothing is retried silently.
  with pytest.raises(OSError, match="broke at 200,000 of 307,200"):
    download(server.url, tmp_path, MD5S)
  server.cut = None
  download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == FILES
  assert [sent for _, _, sent in server.log[:3]] == [100_000, 100_000, 107_200]


def test_wrong_md5_names_file_and_digests_and_leaves_nothing(server, tmp_path):
  server.files["large.zip"] = wrong = LARGE[:-1] + b"?"
  with pytest.raises(OSError) as caught:
    download(server.url, tmp_path, MD5S)
  message = str(caught.value)
  assert server.url + "large.zip" in message
  assert hashlib.md5(wrong).hexdigest() in message
  assert MD5S["large.zip"] in message
  assert "--url" in message and "run again" in message
  assert _contents(tmp_path) == {}


def test_beginning_of_another_file_is_found_out(server, tmp_path):
  (tmp_path / "large.zip.part").write_bytes(b"x" * 1000)
  with pytest.raises(OSError, match="large.zip has MD5"):
    download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == {}


def test_files_that_are_right_are_left_alone(server, tmp_path, capsys):
  for name, data in FILES.items():
    (tmp_path / name).write_bytes(data)
    os.utime(tmp_path / name, ns=(0, 12345))
  download(server.url, tmp_path, MD5S)
  assert server.log == []
  assert capsys.readouterr().out.count("already there") == 2
  assert all(path.stat().st_mtime_ns == 12345 for path in tmp_path.iterdir())


def test_another_file_of_that_name_is_never_overwritten(server, tmp_path):
  (tmp_path / "large.zip").write_bytes(b"mine")
  with pytest.raises(OSError) as caught:
    download(server.url, tmp_path, MD5S)
  message = str(caught.value)
  assert str(tmp_path / "large.zip") in message
  assert hashlib.md5(b"mine").hexdigest() in message
  assert MD5S["large.zip"] in message
  assert "move it away" in message and "zipped anew" in message
  assert _contents(tmp_path) == {"large.zip": b"mine"}
  assert server.log == []


def test_file_that_is_not_served_is_named(server, tmp_path):
  del server.files["small.zip"]
  address = re.escape(server.url + "small.zip")
  with pytest.raises(OSError, match=f"^{address} .*404"):
    download(server.url, tmp_path, MD5S)
  assert _contents(tmp_path) == {"large.zip": LARGE}


def test_server_that_is_not_there_is_named(server, tmp_path):
  # A port that nothing listens to, as it is bound but not listened to.
  with socket.socket() as bound:
    bound.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(OSError, match=f"^{re.escape(url)}/large.zip .*refused"):
      download(url, tmp_path, MD5S)
  assert _contents(tmp_path) == {}


def test_folder_that_is_a_file_is_named(server, tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"mine")
  for folder in (path, path / "below"):
    with pytest.raises(OSError, match=f"^--data_dir={re.escape(str(folder))}:"):
      download(server.url, folder, MD5S)
  assert path.read_bytes() == b"mine"
  assert server.log == []


def test_full_disk_is_told_and_nothing_gets_the_final_name(server, tmp_path):
  part = tmp_path / "large.zip.part"
  part.symlink_to("/dev/full")
  with pytest.raises(OSError, match=f"{re.escape(str(part))}: .*No space left"):
    download(server.url, tmp_path, MD5S)
  assert not (tmp_path / "large.zip").exists()


@pytest.mark.parametrize("name", ["omniglot", "cifar100"])
def test_help_has_all_flags(name):
  process = _run("--help", script=SCRIPTS / f"download_{name}.py")
  out, error = process.communicate(timeout=60)
  assert "--data_dir: " in out and "--url: " in out and not error


def test_command_fails_with_one_line(tmp_path):
  # All at once, as they are independent and mostly start Python.
  source = tmp_path / "source"
  source.mkdir()
  (source / "images_background.zip").write_bytes(b"other")
  folder = tmp_path / "folder"
  (source / "cifar-100-python.tar.gz").write_bytes(b"other")
  cifar = SCRIPTS / "download_cifar100.py"
  nowhere, digest, unknown, python, absent = (
    _run(),
    _run(f"--url={source.as_uri()}", env=_environment(folder)),
    _run("--folder=x"),
    _run(
      f"--url={source.as_uri()}",
      "--layout=python",
      script=cifar,
      env=_environment(tmp_path / "python"),
    ),
    _run(
      f"--url={source.as_uri()}",
      script=cifar,
      env=_environment(tmp_path / "binary"),
    ),
  )
  error = _error(nowhere, 2)
  assert "--data_dir" in error and "METAJAX_DATA_DIR" in error
  error = _error(digest, 2)
  assert "images_background.zip" in error
  assert "68d2efa1b9178cc56df9314c21c6e718" in error
  assert _contents(folder) == {}
  assert "'folder'" in _error(unknown, 2)
  assert "must be eb9058c3a382ffc7106e4002c42a8d85" in _error(python, 2)
  assert "cifar-100-binary.tar.gz" in _error(absent, 2)


def _environment(data_dir):
  return os.environ | {"METAJAX_DATA_DIR": str(data_dir)}


def test_interrupt_keeps_the_part_for_the_next_run(server, tmp_path):
  name = "images_background.zip"
  server.files[name] = LARGE
  # Less than a file's buffer, and in the file all the same.
  server.cut, server.stall = 1000, True
  process = _run(f"--data_dir={tmp_path}", f"--url={server.url}")
  part = tmp_path / f"{name}.part"
  for _ in range(6000):
    if process.poll() is not None or (
      part.exists() and part.stat().st_size == server.cut
    ):
      break
    time.sleep(0.01)
  assert part.stat().st_size == server.cut
  process.send_signal(signal.SIGINT)
  assert "run again" in _error(process, 130)
  assert _contents(tmp_path) == {part.name: LARGE[: server.cut]}
  server.cut, server.stall = None, False
  download(server.url, tmp_path, {name: MD5S["large.zip"]})
  assert _contents(tmp_path) == {name: LARGE}
  assert server.log[-1] == (name, "bytes=1000-", len(LARGE) - 1000)

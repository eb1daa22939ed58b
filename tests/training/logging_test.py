"""Records: whole lines of legal JSON, each step once, and TensorBoard's."""

import json
import math
import struct
import sys
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from metajax.training.logging import read_jsonl, records, waiting


def _log(workdir, first_step, steps, num_steps=10):
  with records(workdir, first_step, num_steps) as record:
    for step in steps:
      record.write(step, {"loss": step / 4, "validation/accuracy": 1 / step})
  # An event file is named by the second, and sessions take seconds: this one
  # becomes an older one, so that the next does not take its name.
  files = sorted((workdir / "tensorboard").iterdir())
  files[-1].rename(workdir / "tensorboard" / f"events.{len(files)}")


def _events(workdir):
  """All that TensorBoard would read, of the run's files in their order."""
  events = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    raw = path.read_bytes()
    while raw:
      # A record: its length, a checksum, itself, a checksum.
      (length,) = struct.unpack("<Q", raw[:8])
      events.append(Event.FromString(raw[12 : 12 + length]))
      raw = raw[16 + length :]
  return events


def _shown(workdir):
  """Scalars by name and step, less those a later session purged."""
  shown = {}
  for event in _events(workdir):
    if event.session_log.status == SessionLog.START:
      shown = {key: v for key, v in shown.items() if key[1] < event.step}
    for value in event.summary.value:
      assert (value.tag, event.step) not in shown
      shown[value.tag, event.step] = value.simple_value
  return shown


def test_lines_are_what_was_written(tmp_path):
  _log(tmp_path, 0, [1, 2, 4])
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  expected = [
    {"step": s, "loss": s / 4, "validation/accuracy": 1 / s} for s in (1, 2, 4)
  ]
  assert [json.loads(line) for line in lines] == expected
  assert read_jsonl(tmp_path / "metrics.jsonl") == expected


def test_line_is_on_disk_before_the_next_step(tmp_path):
  with records(tmp_path, 0, 10) as record:
    record.write(1, {"loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == [{"step": 1, "loss": 0.5}]


def test_event_is_on_disk_soon_for_a_run_may_be_killed(tmp_path):
  with records(tmp_path, 0, 10) as record:
    record.write(1, {"loss": 0.5})
    deadline = time.monotonic() + 60
    while not (written := _shown(tmp_path)) and time.monotonic() < deadline:
      time.sleep(0.01)
  assert written == {("loss", 1): 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_strings_that_float_reads(value, tmp_path):
  with records(tmp_path, 0, 10) as record:
    record.write(1, {"loss": value, "other": 2.5})

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  text = (tmp_path / "metrics.jsonl").read_text()
  line = json.loads(text, parse_constant=refuse)
  assert isinstance(line["loss"], str)
  assert str(float(line["loss"])) == str(value)
  assert line["other"] == 2.5
  assert str(_shown(tmp_path)["loss", 1]) == str(value)


def test_last_line_cut_anywhere_is_left_out(tmp_path):
  _log(tmp_path, 0, [1, 2])
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  first, second = read_jsonl(path)
  start = whole.index("\n") + 1
  for end in range(start, len(whole) + 1):
    path.write_text(whole[:end])
    # The line feed is no part of the line.
    expected = [first, second] if end >= len(whole) - 1 else [first]
    assert read_jsonl(path) == expected


def test_damaged_lines_are_left_out_and_those_after_them_kept(tmp_path):
  _log(tmp_path, 0, [1, 2, 3, 4])
  path = tmp_path / "metrics.jsonl"
  first, second, third, fourth = path.read_bytes().splitlines()
  noise = bytes([200, 255, 0, 130])
  path.write_bytes(b"\n".join([first, noise, second[:9], b"[1, 2]", fourth]))
  assert [line["step"] for line in read_jsonl(path)] == [1, 4]
  _log(tmp_path, 4, [5])
  assert [line["step"] for line in read_jsonl(path)] == [1, 4, 5]


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_resumed_run_drops_what_came_after_its_first_step(cut, tmp_path):
  _log(tmp_path, 0, [1, 3, 4, 6])
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[: -cut or None])
  _log(tmp_path, 4, [5, 6, 10])
  steps = [line["step"] for line in read_jsonl(path)]
  assert steps == [1, 3, 4, 5, 6, 10]
  assert path.read_text().count("\n") == len(steps)
  shown = _shown(tmp_path)
  assert shown == {
    **{("loss", s): pytest.approx(s / 4) for s in steps},
    **{("validation/accuracy", s): pytest.approx(1 / s) for s in steps},
  }
  assert {p.name for p in tmp_path.iterdir()} == {
    "metrics.jsonl",
    "tensorboard",
  }


def test_run_that_starts_anew_drops_everything(tmp_path):
  _log(tmp_path, 0, [1, 2, 3])
  _log(tmp_path, 0, [2])
  path = tmp_path / "metrics.jsonl"
  assert [line["step"] for line in read_jsonl(path)] == [2]
  assert {step for _, step in _shown(tmp_path)} == {2}


def test_terminal_sees_a_line_for_each_write_or_a_bar(
  tmp_path, monkeypatch, capsys
):
  def run(live, name):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live)
    (tmp_path / name).mkdir()
    with records(tmp_path / name, 2, 10) as record:
      record.progress(3, {"loss": 0.5})
      record.progress(5, {"loss": 0.25})
      record.write(5, {"loss": 0.25, "accuracy": 0.75})
    return capsys.readouterr().err

  assert run(False, "file") == "step 5/10  loss=0.25  accuracy=0.75\n"
  bar = run(True, "terminal").rpartition("\r")[2]
  assert "5/10" in bar
  assert "loss=0.25" in bar


def test_a_logger_is_a_function_that_gets_every_line(tmp_path):
  found = []
  with records(
    tmp_path, 0, 10, [lambda step, scalars: found.append((step, scalars))]
  ) as record:
    record.write(2, {"loss": 0.5})
    record.write(4, {"loss": 0.25, "outer_lr": 0.1})
  assert found == [(2, {"loss": 0.5}), (4, {"loss": 0.25, "outer_lr": 0.1})]
  assert [x["step"] for x in read_jsonl(tmp_path / "metrics.jsonl")] == [2, 4]


@pytest.mark.parametrize("must_write", [True, False])
def test_errors_of_loggers_end_the_run_or_are_warned_of(
  must_write, tmp_path, caplog
):
  def full(step, scalars):
    raise OSError("disk full")

  with records(tmp_path, 0, 10, [full], must_write=must_write) as record:
    if must_write:
      with pytest.raises(OSError, match="disk full"):
        record.write(2, {"loss": 0.5})
    else:
      record.write(2, {"loss": 0.5})
      assert "step 2 could not be recorded: disk full." in caplog.text
  # What the loop itself raises is not forgiven.
  with (
    pytest.raises(OSError, match="of the loop"),
    records(tmp_path, 2, 10, must_write=must_write),
  ):
    raise OSError("of the loop")


def test_what_lasts_is_told_and_what_does_not_is_not(capsys):
  with waiting("short", 60):
    pass
  with waiting("long", 0.01):
    deadline = time.monotonic() + 60
    told = ""
    while not told and time.monotonic() < deadline:
      time.sleep(0.01)
      told += capsys.readouterr().err
  assert told == "long\n"

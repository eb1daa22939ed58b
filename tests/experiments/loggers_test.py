"""Services for records, and what TensorBoard has of a run at its end."""

import json
import struct
import sys
import types

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from metajax.runs import board, loggers


class FakeWandb(types.ModuleType):
  """As much of wandb as is called, with its rules on steps and values."""

  def __init__(self):
    super().__init__("wandb")
    self.run, self.runs = None, []
    self.Error, self.Settings, self.Image = RuntimeError, dict, str
    self.refuse = False

  def init(self, **options):
    if self.refuse:
      raise self.Error("No API key configured.")
    if self.run is not None:
      assert options["reinit"] == "finish_previous"
      self.run.finish()
    self.run = FakeRun(self, options)
    self.runs.append(self.run)
    return self.run


class FakeRun:
  """A run: its lines by step, and whether it has ended."""

  def __init__(self, module, options):
    self.module, self.options, self.id = module, options, options["id"]
    self.lines, self.config, self.ended = [], {}, False
    self.config = types.SimpleNamespace(
      found={},
      update=lambda x, allow_val_change: self.config.found.update(x),
    )

  def log(self, values, step):
    assert not self.ended
    assert type(values) is dict
    self.lines.append((step, values))

  def finish(self):
    self.ended, self.module.run = True, None


@pytest.fixture
def wandb(monkeypatch):
  module = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", module)
  monkeypatch.setattr(loggers, "FLAGS", types.SimpleNamespace(logger="wandb"))
  return module


def _workdir(tmp_path):
  folder = tmp_path / "run"
  (folder / "stage").mkdir(parents=True)
  config = {"flags": {"steps": 4}, "environment": {"device": "cpu"}}
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def test_one_run_gets_the_training_and_its_end(wandb, tmp_path):
  folder = _workdir(tmp_path)
  (log,) = loggers.by_flag(folder)
  log(2, {"loss": 0.5})
  log(4, {"loss": 0.25})
  loggers.finish(folder, 4, {"test/mse": 0.125}, [folder / "curve.png"])
  (run,) = wandb.runs
  picture = str(folder / "curve.png")
  assert run.lines == [
    (2, {"loss": 0.5}),
    (4, {"loss": 0.25}),
    (4, {"test/mse": 0.125, "curve": picture}),
  ]
  assert run.ended
  assert run.config.found == {"steps": 4, "environment": {"device": "cpu"}}
  assert (run.options["name"], run.options["dir"]) == ("run", folder)
  # Another session of the same folder goes on with it.
  loggers.by_flag(folder)
  assert wandb.runs[1].id == run.id
  assert wandb.runs[1].options["resume"] == "allow"


def test_each_training_of_an_experiment_is_a_run_of_its_own(wandb, tmp_path):
  folder = _workdir(tmp_path)
  loggers.by_flag(folder, "stage")[0](1, {"loss": 1.0})
  loggers.finish(folder, 1, {"test/mse": 0.5}, [])
  stage, whole = wandb.runs
  assert stage.ended
  assert stage.id != whole.id
  assert stage.options["name"] == "run/stage"
  assert stage.options["group"] == "run"


def test_what_the_service_refuses_is_one_line(wandb, tmp_path):
  wandb.refuse = True
  with pytest.raises(ValueError, match="^--logger=wandb: No API .*offline"):
    loggers.by_flag(_workdir(tmp_path))


def test_without_the_flag_or_in_another_process_nothing_is_asked(
  wandb, tmp_path, monkeypatch
):
  monkeypatch.setattr(loggers, "is_main", lambda: False)
  assert loggers.by_flag(tmp_path) == []
  monkeypatch.setattr(loggers, "is_main", lambda: True)
  monkeypatch.setattr(loggers, "FLAGS", types.SimpleNamespace(logger=None))
  assert loggers.by_flag(tmp_path) == []
  loggers.finish(tmp_path, 1, {}, [])
  assert wandb.runs == []


def test_a_folder_of_runs_is_no_package(tmp_path, monkeypatch):
  (tmp_path / "some_service").mkdir()
  monkeypatch.syspath_prepend(str(tmp_path))
  assert not loggers._is_installed("some_service")
  assert loggers._is_installed("jax")


def _events(folder):
  events = []
  for path in folder.iterdir():
    raw = path.read_bytes()
    while raw:
      # A record: its length, a checksum, itself, a checksum.
      (length,) = struct.unpack("<Q", raw[:8])
      events.append(Event.FromString(raw[12 : 12 + length]))
      raw = raw[16 + length :]
  return [(event.step, v) for event in events for v in event.summary.value]


def test_tensorboard_has_results_hyper_parameters_and_pictures(tmp_path):
  path = tmp_path / "curve.png"
  Image.new("RGB", (30, 20), (255, 0, 0)).save(path)
  folder = tmp_path / "tensorboard"
  flags = {"steps": 7, "inner_lr": 0.5, "debug": True, "rows": [1, 2]}
  for step, error in ((5, 0.5), (7, 0.25)):  # A run that goes on.
    board.finish(folder, step, flags, {"test/mse": error}, [path])
  found = {value.tag: (step, value) for step, value in _events(folder)}
  assert len(found) == len(_events(folder)) == 5
  step, value = found["test/mse"]
  assert (step, value.simple_value) == (7, 0.25)
  step, value = found["curve"]
  assert (step, value.image.width, value.image.height) == (7, 30, 20)
  assert value.image.encoded_image_string == path.read_bytes()
  _, value = found["_hparams_/session_start_info"]
  content = value.metadata.plugin_data.content
  given = HParamsPluginData.FromString(content).session_start_info.hparams
  assert given["steps"].number_value == 7
  assert given["inner_lr"].number_value == 0.5
  assert given["debug"].bool_value is True
  assert given["rows"].string_value == "[1, 2]"

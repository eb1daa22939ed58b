"""Checkpoints: every bit comes back, and what is damaged is never used."""

import functools
import gc
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from metajax.training import TrainState, checkpoint

# Orbax leaves the futures of a failed read to the garbage collector. Most are
# collected in silence by `restore`, but a read that ends later is reported
# later, as it goes by.
pytestmark = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.usefixtures("quick_collections"),
]
NOTES = {"wall_seconds": 1.5, "compile_seconds": 0.1}
DAMAGED = "damaged_checkpoints"


def _state(step):
  """All that a state may hold, with bits that depend on the step."""
  rng = np.random.default_rng(step)
  meta_params = {
    "float32": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
    "bfloat16": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    "special": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
    "nested": [jnp.asarray(rng.normal(), jnp.float16), jnp.arange(step) > 1],
  }
  opt_state = optax.adam(0.1).init(meta_params["float32"])
  more = (jnp.uint8(step), (), jnp.int32(-step))
  return TrainState(jnp.int32(step), meta_params, (opt_state, more))


def _bits(state):
  """What can be compared: where each leaf is, its dtype, shape and bytes."""
  return [
    (jax.tree_util.keystr(path), x.dtype, x.shape, np.asarray(x).tobytes())
    for path, x in jax.tree_util.tree_leaves_with_path(state)
  ]


def _step(step):
  """A state of the same shapes at each step.

  Its table is of random bits and large enough for a file of its own, where
  damage is no damage of the format.
  """
  table = np.random.default_rng(step).integers(2**30, size=4096, dtype=np.int32)
  return TrainState(
    jnp.int32(step), {"table": jnp.asarray(table)}, (jnp.float32(step / 3), ())
  )


def _save(directory, *steps):
  checkpoints = checkpoint.open_checkpoints(directory)
  for step in steps:
    checkpoint.save(checkpoints, _step(step), {"wall_seconds": 10.0 * step})
  checkpoints.manager.close()


def _restore(directory):
  """What a new process would find."""
  checkpoints = checkpoint.open_checkpoints(directory)
  restored = checkpoint.restore(checkpoints, _step(0))
  checkpoints.manager.close()
  gc.collect()
  return restored


def _assert_is_step(restored, step):
  assert _bits(restored.state) == _bits(_step(step))
  assert restored.notes == {"wall_seconds": 10.0 * step}


def _steps_on_disk(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


@pytest.mark.slow
def test_every_bit_dtype_and_note_comes_back(tmp_path):
  state = _state(5)
  checkpoints = checkpoint.open_checkpoints(tmp_path / "a" / "checkpoints")
  checkpoint.save(checkpoints, state, NOTES)
  checkpoints.manager.close()
  again = checkpoint.open_checkpoints(tmp_path / "a" / "checkpoints")
  like = jax.tree.map(jnp.zeros_like, state)
  restored = checkpoint.restore(again, like)
  assert _bits(restored.state) == _bits(state)
  assert jax.tree.structure(restored.state) == jax.tree.structure(state)
  assert restored.notes == NOTES


def test_empty_folder_holds_no_checkpoint(tmp_path, caplog):
  assert _restore(tmp_path / "checkpoints") is None
  assert not (tmp_path / DAMAGED).exists()
  assert not caplog.records


def test_newest_two_are_kept_and_the_newest_is_used(tmp_path):
  _save(tmp_path / "checkpoints", 1, 5, 9, 10)
  assert _steps_on_disk(tmp_path / "checkpoints") == [9, 10]
  _assert_is_step(_restore(tmp_path / "checkpoints"), 10)


def test_step_that_is_saved_already_is_left_as_it_is(tmp_path):
  _save(tmp_path / "checkpoints", 3, 4)
  checkpoints = checkpoint.open_checkpoints(tmp_path / "checkpoints")
  other = _step(0)._replace(step=jnp.int32(4))
  checkpoint.save(checkpoints, other, {"wall_seconds": -1.0})
  checkpoints.manager.close()
  assert _steps_on_disk(tmp_path / "checkpoints") == [3, 4]
  _assert_is_step(_restore(tmp_path / "checkpoints"), 4)


def _halve(path):
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) // 2])


def _flip_one_bit(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(bytes(raw))


def _delete(path):
  path.unlink()


def _warnings(caplog):
  """All that was logged."""
  return [record.getMessage() for record in caplog.records]


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("two_saved")
  _save(workdir / "checkpoints", 1, 2)
  return workdir


@pytest.mark.slow
def test_damage_to_any_one_file_is_noticed_or_harmless(
  two_saved, tmp_path, caplog
):
  # In turn, and every other file beside the notes and the table, since every
  # restart takes its time.
  kinds = [_flip_one_bit, _halve, _delete]
  newest = two_saved / "checkpoints" / "2"
  files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
  largest = max(files, key=lambda f: (newest / f).stat().st_size)
  noticed = []
  for number, file in enumerate(sorted(files)):
    if number % 2 and file not in (Path("notes/metadata"), largest):
      continue
    workdir = shutil.copytree(two_saved, tmp_path / str(number))
    kinds[number % len(kinds)](workdir / "checkpoints" / "2" / file)
    caplog.clear()
    restored = _restore(workdir / "checkpoints")
    if int(restored.state.step) == 2:
      # Not every file matters; then nothing is lost and nothing moved.
      _assert_is_step(restored, 2)
      assert not _warnings(caplog)
      assert _steps_on_disk(workdir / "checkpoints") == [1, 2]
      assert not (workdir / DAMAGED).exists()
    else:
      _assert_is_step(restored, 1)
      (warning,) = _warnings(caplog)
      assert warning.startswith(
        f"{workdir / 'checkpoints'}: checkpoint 2 is damaged ("
      )
      assert f" moved to {workdir / DAMAGED}; going on" in warning
      assert _steps_on_disk(workdir / "checkpoints") == [1]
      assert _steps_on_disk(workdir / DAMAGED) == [2]
      noticed.append(file)
  # The notes and the file of the table, at the least.
  assert Path("notes/metadata") in noticed
  assert largest in noticed


def test_arrays_that_are_whole_but_not_the_saved_ones_are_noticed(
  two_saved, tmp_path, caplog
):
  """What no file format can see, the digest does."""
  directory = shutil.copytree(two_saved, tmp_path / "run") / "checkpoints"
  shutil.rmtree(directory / "2" / "state")
  shutil.copytree(directory / "1" / "state", directory / "2" / "state")
  _assert_is_step(_restore(directory), 1)
  (warning,) = _warnings(caplog)
  assert "digest" in warning


def _cut_the_arrays(checkpoints):
  """A read of them raises, while reads of others have begun."""
  files = [p for p in (checkpoints / "2").rglob("d/*") if p.is_file()]
  _halve(max(files, key=lambda file: file.stat().st_size))


def _describe_it_by_a_list(checkpoints):
  (checkpoints / "2" / "state" / "_METADATA").write_text("[1, 2]")


def _rename(checkpoints):
  (checkpoints / "2").rename(checkpoints / "7")


def _empty(checkpoints):
  shutil.rmtree(checkpoints / "2")
  (checkpoints / "2").mkdir()


@pytest.mark.parametrize(
  "damage", [_cut_the_arrays, _describe_it_by_a_list, _rename, _empty]
)
def test_damage_is_told_in_one_line(damage, two_saved, tmp_path, caplog):
  """No logs of orbax come with it."""
  directory = shutil.copytree(two_saved, tmp_path / "run") / "checkpoints"
  damage(directory)
  _assert_is_step(_restore(directory), 1)
  (line,) = _warnings(caplog)
  assert line.startswith(f"{directory}: checkpoint ")
  assert "\n" not in line


def _file(directory):
  directory.write_text("")


def _link_to_nothing(directory):
  directory.symlink_to(directory.with_name("nothing"))


def _child_of_a_file(directory):
  directory.parent.rmdir()
  directory.parent.write_text("")


def _with_metadata_of_a_list(directory):
  (directory / "2").mkdir(parents=True)
  (directory / "2" / "_CHECKPOINT_METADATA").write_text("[1, 2]")


@pytest.mark.parametrize(
  "make", [_file, _link_to_nothing, _child_of_a_file, _with_metadata_of_a_list]
)
def test_what_is_no_folder_of_checkpoints_is_named(make, tmp_path, caplog):
  directory = tmp_path / "run" / "checkpoints"
  directory.parent.mkdir()
  make(directory)
  with pytest.raises(ValueError, match=f"^{directory}: cannot be read .*move"):
    checkpoint.open_checkpoints(directory)
  assert not caplog.records


def test_run_goes_on_from_the_one_before_and_saves_the_step_again(
  two_saved, tmp_path
):
  workdir = shutil.copytree(two_saved, tmp_path / "run")
  # Twice, so that the second damaged one replaces the first moved aside.
  for _ in range(2):
    _halve(workdir / "checkpoints" / "2" / "notes" / "metadata")
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints")
    _assert_is_step(checkpoint.restore(checkpoints, _step(0)), 1)
    checkpoint.save(checkpoints, _step(2), {"wall_seconds": 20.0})
    checkpoints.manager.close()
    _assert_is_step(_restore(workdir / "checkpoints"), 2)
    assert _steps_on_disk(workdir / DAMAGED) == [2]


def test_where_all_are_damaged_they_are_kept(two_saved, tmp_path, caplog):
  workdir = shutil.copytree(two_saved, tmp_path / "run")
  for path in (workdir / "checkpoints").rglob("*"):
    if path.is_file():
      _halve(path)
  with pytest.raises(ValueError, match="none of its 2 checkpoints"):
    _restore(workdir / "checkpoints")
  assert not caplog.records  # The error says it all.
  assert _steps_on_disk(workdir / "checkpoints") == [1, 2]
  assert not (workdir / DAMAGED).exists()


def test_checkpoints_of_another_model_are_refused_and_kept(two_saved, tmp_path):
  """As after a change of the code under the same flags."""
  directory = shutil.copytree(two_saved, tmp_path / "run") / "checkpoints"
  opened = checkpoint.open_checkpoints(directory)
  other = _step(0)._replace(meta_params={"other": jnp.zeros(3)})
  with pytest.raises(ValueError, match="to train anew"):
    checkpoint.restore(opened, other)
  opened.manager.close()
  _assert_is_step(_restore(directory), 2)


def test_save_that_was_killed_is_as_if_it_had_not_begun(
  two_saved, tmp_path, monkeypatch, caplog
):
  directory = shutil.copytree(two_saved, tmp_path / "run") / "checkpoints"

  class Killed(BaseException):
    pass

  def die(rename, source, target, **arguments):
    """Dies when all is written, before it gets its name."""
    if Path(target).name == "3":
      raise Killed
    return rename(source, target, **arguments)

  checkpoints = checkpoint.open_checkpoints(directory)
  with monkeypatch.context() as patch:
    for name in ("rename", "replace"):
      patch.setattr(os, name, functools.partial(die, getattr(os, name)))
    with pytest.raises(Killed):
      checkpoint.save(checkpoints, _step(3), {"wall_seconds": 30.0})
  (left,) = (p for p in directory.iterdir() if p.name not in ("1", "2"))
  assert any(p.is_file() for p in left.rglob("*"))
  _assert_is_step(_restore(directory), 2)
  assert not _warnings(caplog)
  _save(directory, 3)
  assert _steps_on_disk(directory) == [2, 3]
  _assert_is_step(_restore(directory), 3)


def test_what_another_process_is_writing_is_left_alone(two_saved, tmp_path):
  """A folder is also opened to look at a run that goes on."""
  directory = shutil.copytree(two_saved, tmp_path / "run") / "checkpoints"
  written = directory / f"3{ocp.utils.TMP_DIR_SUFFIX}" / "state" / "array"
  written.parent.mkdir(parents=True)
  written.write_text("a part")
  checkpoints = checkpoint.open_checkpoints(directory)
  _assert_is_step(checkpoint.restore(checkpoints, _step(0)), 2)
  checkpoints.manager.close()
  assert written.read_text() == "a part"
  # Who saves is alone: it was killed.
  _save(directory, 4)
  assert _steps_on_disk(directory) == [2, 4]
  assert not written.parent.parent.exists()


def test_random_keys_come_back_and_draw_what_they_would_have(tmp_path):
  """As the state of `optax.noisy_sgd` has one."""
  keys = {
    "one": jax.random.key(3),
    "many": jax.random.split(jax.random.key(4, impl="rbg"), 3),
    "raw": jax.random.PRNGKey(5),
  }
  state = TrainState(jnp.int32(1), jnp.ones(2), keys)
  checkpoints = checkpoint.open_checkpoints(tmp_path)
  checkpoint.save(checkpoints, state, NOTES)
  like = jax.tree.map(lambda x: x, state)
  found = checkpoint.restore(checkpoints, like).state.opt_state
  for name, key in keys.items():
    assert found[name].dtype == key.dtype
  assert jax.random.key_impl(found["many"]) == jax.random.key_impl(keys["many"])
  for draw, expected in (
    (found["one"], keys["one"]),
    (found["many"][2], keys["many"][2]),
    (found["raw"], keys["raw"]),
  ):
    np.testing.assert_array_equal(
      jax.random.normal(draw, (2,)), jax.random.normal(expected, (2,))
    )

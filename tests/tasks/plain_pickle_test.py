"""Pickles are read, and nothing of them is ever run."""

import os
import pickle

import numpy as np
import pytest

from metajax.tasks.plain_pickle import read_plain_pickle

DATA = {
  "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "big": np.arange(3, dtype=">i4"),
  "names": ["a", "b"],
  "mixed": (1, 2.5, None, True, b"\xff\x00"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_plain_data_come_back_whatever_the_protocol(protocol, module):
  """Also as numpy wrote them before version 2."""
  content = pickle.dumps(DATA, protocol)
  if protocol < 4:  # There a name is text of any length.
    content = content.replace(b"numpy._core", module)
  found = read_plain_pickle(content)
  assert found.keys() == DATA.keys()
  for name in ("bytes", "columns", "big"):
    assert found[name].dtype == DATA[name].dtype
    np.testing.assert_array_equal(found[name], DATA[name])
  assert found["names"] == DATA["names"]
  assert found["mixed"] == DATA["mixed"]


def test_strings_of_python_2_are_text():
  """By hand: a dictionary of 8-bit strings, opcode U."""
  content = b"\x80\x02}U\x04nameU\x02\xe9as."
  assert read_plain_pickle(content) == {"name": "éa"}


def _calls(function, *arguments):
  """An object that calls a function when it is unpickled."""
  return type("Bad", (), {"__reduce__": lambda self: (function, arguments)})()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_is_called(protocol, tmp_path):
  path = tmp_path / "made"
  for bad in (
    _calls(os.mkdir, str(path)),
    _calls(eval, f"__import__('os').mkdir({str(path)!r})"),
    _calls(np.save, str(path), 1),
    _calls(np.load, "x"),
    _calls(getattr, "", "join"),
  ):
    content = pickle.dumps({"data": [bad]}, protocol)
    with pytest.raises(ValueError, match="it names .*, which no data need"):
      read_plain_pickle(content)
  assert not list(tmp_path.iterdir())
  # The content would have done it.
  pickle.loads(pickle.dumps(_calls(os.mkdir, str(path)), protocol))
  assert path.exists()


@pytest.mark.parametrize(
  "bad",
  [
    np.array([{}, []], object),
    np.zeros(2, [("a", "u1")]),
    np.dtype("u1"),
    {1, 2},
    np.ndarray,
    _calls(np.dtype, "O"),
  ],
  ids=lambda x: type(x).__name__,
)
def test_whatever_is_no_plain_data_is_refused(bad):
  with pytest.raises(ValueError, match="^no pickle of plain data") as raised:
    read_plain_pickle(pickle.dumps(bad, 2))
  assert "\n" not in str(raised.value)


def test_damaged_and_endless_pickles_are_refused():
  content = pickle.dumps(DATA, 2)
  endless = []
  endless.append(endless)
  for bad in (b"", b"text\n", content[:-30], pickle.dumps(endless)):
    with pytest.raises(ValueError, match="^no pickle of plain data"):
      read_plain_pickle(bad)
  shared = []
  for _ in range(200):  # 2 ** 200 lists, if each was looked at again.
    shared = [shared, shared]
  assert len(read_plain_pickle(pickle.dumps(shared))) == 2

"""Reads pickles of numbers, strings and numpy arrays without running code.

A pickle can name any function, and an ordinary reader calls it. This reader
looks each name up in one table of stand-ins, which only store their arguments.
It makes the arrays from the stored bytes. It never calls a function that the
pickle names.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KINDS = "biufSU"  # Booleans, numbers and strings.


class _Dtype:
  """Stands for `numpy.dtype`: stores its name and its byte order."""

  def __init__(self, name: str, align: Any = False, copy: Any = False):
    del align, copy
    self.name, self.order = _text(name), "<"

  def __setstate__(self, state: tuple) -> None:
    order, *fields = state[1:5]
    if any(field is not None for field in fields):
      raise pickle.UnpicklingError("an array of records")
    self.order = ">" if _text(order) == ">" else "<"

  def dtype(self) -> np.dtype:
    dtype = np.dtype(self.name)
    if dtype.kind not in KINDS:
      raise pickle.UnpicklingError(f"an array of {dtype}")
    return dtype.newbyteorder(">" if self.order == ">" else "<")


class _Array:
  """Stands for an array until the pickle gives its bytes."""

  value: np.ndarray | None = None

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, by_columns, content = state
    self.value = _from_buffer(
      content, dtype, shape, "F" if by_columns else "C"
    ).value


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
  made = _Array()
  array = np.frombuffer(_bytes(content), dtype.dtype())
  made.value = array.reshape(shape, order=order)
  return made


def _reconstruct(*arguments: Any) -> _Array:
  del arguments  # They make an empty array. Its state has the content.
  return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
  """Stands for `codecs.encode`. Python 3 writes bytes for Python 2 with it."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"text encoded as {encoding}")
  return _bytes(text)


class _Name(NamedTuple):
  """Stands for a name that is never called."""

  name: str


_NUMPY = ("numpy.core", "numpy._core")  # Before numpy 2, and since.
_STAND_INS: dict[tuple[str, str], Any] = {
  ("numpy", "dtype"): _Dtype,
  ("numpy", "ndarray"): _Name("ndarray"),
  ("_codecs", "encode"): _encode,
  **{(f"{x}.multiarray", "_reconstruct"): _reconstruct for x in _NUMPY},
  **{(f"{x}.numeric", "_frombuffer"): _from_buffer for x in _NUMPY},
}


class _Reader(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Callable:
    if (module, name) not in _STAND_INS:
      raise pickle.UnpicklingError(
        f"it names {module}.{name}, which no data need"
      )
    return _STAND_INS[module, name]


def read_plain_pickle(content: bytes) -> Any:
  """Reads a pickle of lists, dictionaries, numbers, strings and arrays.

  Strings of Python 2 become text, a character for each byte.

  Args:
    content: the whole of the file.

  Raises:
    ValueError: if the pickle is damaged or names anything else. The named
      function is not called.
  """
  try:
    found = _Reader(io.BytesIO(content), encoding="latin1").load()
    return _plain(found, {})
  # A damaged pickle fails in many ways, and all of them have the same remedy.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"no pickle of plain data ({reason})") from error


def _plain(x: Any, seen: dict[int, Any]) -> Any:
  """Replaces stand-ins by their arrays."""
  if id(x) in seen:  # A shared object is converted only once.
    return seen[id(x)]
  if isinstance(x, _Array) and x.value is not None:
    return x.value
  if x is None or isinstance(x, bool | int | float | str | bytes):
    return x
  if type(x) is dict:
    made: Any = {_plain(k, seen): _plain(v, seen) for k, v in x.items()}
  elif type(x) in (list, tuple):
    made = type(x)(_plain(y, seen) for y in x)
  else:
    raise pickle.UnpicklingError(f"it holds {type(x).__name__}")
  seen[id(x)] = made
  return made


def _bytes(x: Any) -> bytes:
  return x.encode("latin1") if isinstance(x, str) else bytes(x)


def _text(x: Any) -> str:
  return x.decode("latin1") if isinstance(x, bytes) else x

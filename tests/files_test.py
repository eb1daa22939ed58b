"""Files are written whole or not at all."""

import pytest

from metajax.files import replaced


def test_new_contents_take_the_place_of_the_old(tmp_path):
  path = tmp_path / "a.json"
  for text in ("one", "two"):
    with replaced(path) as file:
      file.write_text(text)
      assert not path.exists() or path.read_text() != text
    assert path.read_text() == text
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
  path = tmp_path / "a.json"
  path.write_text("old")
  with pytest.raises(error), replaced(str(path)) as file:
    file.write_text("half")
    raise error
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_its_place_is_an_error_that_names_it(tmp_path):
  (tmp_path / "a.json").mkdir()
  with (
    pytest.raises(OSError, match="a.json"),
    replaced(tmp_path / "a.json") as file,
  ):
    file.write_text("new")
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

"""What is published says the same everywhere."""

import configparser
import re
from pathlib import Path

import metajax

ROOT = Path(__file__).resolve().parents[1]


def _setup():
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  return setup


def test_the_version_is_that_of_setup_cfg():
  version = _setup()["metadata"]["version"]
  cited = re.search(
    r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M
  )
  assert cited[1] == version
  assert metajax.__version__ == version


def test_every_package_has_a_tested_version():
  """What setup.cfg asks for stands in constraints.txt, within its bound."""
  options = _setup()
  asked = options["options"]["install_requires"]
  asked += "".join(
    value
    for extra, value in options["options.extras_require"].items()
    if extra not in ("cuda", "peers")  # Of the machine, not tested here.
  )
  bounds = re.findall(r"^([\w-]+)>=([\d.]+)$", asked, re.M)
  pins = dict(
    re.findall(
      r"^([\w.-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M
    )
  )
  pins = {_plain(name): version for name, version in pins.items()}
  assert len(bounds) > 10
  for name, bound in bounds:
    pin = pins.get(_plain(name))
    assert pin is not None, name
    assert _numbers(pin) >= _numbers(bound), (name, pin, bound)


def test_every_file_of_the_package_is_installed_with_it():
  declared = {
    ROOT / package.replace(".", "/") / name
    for package, names in _setup()["options.package_data"].items()
    for name in names.split()
  }
  found = {
    path
    for path in (ROOT / "metajax").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
  }
  assert found == declared


def _plain(name):
  return name.lower().replace("_", "-")


def _numbers(version):
  return [int(part) for part in version.split(".")]

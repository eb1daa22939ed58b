"""The page of a run: all of it in one file, whatever names and numbers are."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from metajax import results
from metajax.evaluation import Estimate, OverSeeds
from metajax.runs import charts, report_page

NASTY = "<script>alert(1)</script> & \"'$title"


class Page(HTMLParser):
  """What a browser would see: tags with their attributes, and the text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data.strip())

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def _run(folder, metrics, lines=(), **protocol):
  results.open_workdir(folder, {"steps": 30, "note": NASTY, "rates": [0.1, 2]})
  results.write_results(
    folder,
    experiment="an experiment",
    protocol={"learner": "maml", "nested": {"a": 1}, **protocol},
    metrics=metrics,
    wall_seconds=12.34,
    compile_seconds=5.0,
    steps=30,
    seed=7,
  )
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  return folder


def _written(folder, command="python -m it"):
  report_page.write(folder, command)
  return Page((folder / "report.html").read_text())


def test_seconds_of_compilation_are_told_where_they_were_measured(tmp_path):
  folder = _run(tmp_path / "run", {"mse": Estimate(0.25, 0.125, 300)})
  told = ", of which 5.0 s compiling"
  assert told in " ".join(_written(folder).texts)
  found = json.loads((folder / "results.json").read_text())
  found["compile_seconds"] = None
  (folder / "results.json").write_text(json.dumps(found))
  text = " ".join(_written(folder).texts)
  assert "30 meta-steps in 12.3 s, on" in text and "compiling" not in text


def test_page_has_what_the_folder_has_and_nothing_of_the_network(tmp_path):
  lines = [
    {"step": 10, "loss": 2.0, "wall_seconds": 1.0},
    {"step": 20, "loss": 1.0, "validation/loss": 1.5, "wall_seconds": 2.0},
  ]
  metrics = {"mse": OverSeeds(0.25, 0.125, 300, (0.2, 0.3))}
  folder = _run(tmp_path / "run", metrics, lines)
  Image.new("RGB", (3, 2)).save(folder / "one.png")
  (folder / "learner.json").write_text("{}")
  page = _written(folder, "python -m it --a=1")
  for text in (
    "an experiment · maml",
    "mse",
    "0.2500",
    "± 0.1250",
    "seed 7",
    "0.2000",
    "seed 8",
    "0.3000",
    "2",  # Seeds, over which the interval is, and not 300 tasks.
    "python -m it --a=1",
    "[0.1, 2]",
    '{"a": 1}',
    "loss",
    "training",
    "validation",
    "one",
    results.versions()["jax"],
  ):
    assert text in page.texts, text
  assert "300" not in page.texts
  assert any(f"metajax.load({str(folder)!r})" in text for text in page.texts)
  (image,) = page.all("img")
  assert image["src"].startswith("data:image/png;base64,")
  links = [x for _, attributes in page.tags for x in attributes.values() if x]
  assert not [x for x in links if "//" in x and not x.startswith("data:")]
  assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
  # The page again is the same, bit by bit.
  before = (folder / "report.html").read_bytes()
  report_page.write(folder, "python -m it --a=1")
  assert (folder / "report.html").read_bytes() == before


def test_names_are_text_and_no_markup(tmp_path):
  folder = _run(
    tmp_path / NASTY.replace("/", ""),
    {NASTY: Estimate(1.0, 0.5, 3)},
    [{"step": 1, NASTY: 2.0, f"validation/{NASTY}": 3.0}],
    learner=NASTY,
  )
  stage = folder / "<b>stage"
  stage.mkdir()
  (stage / "metrics.jsonl").write_text(json.dumps({"step": 1, NASTY: 1.0}))
  Image.new("L", (1, 1)).save(folder / '<i>"picture.png')
  page = _written(folder, NASTY)
  assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
  assert page.texts.count(NASTY) >= 5  # Metric, command, flag, protocol, chart.
  assert f"an experiment · {NASTY}" in page.texts
  assert "<b>stage, training" in page.texts
  assert page.all("img")[0]["alt"] == '<i>"picture'
  assert str(folder) in page.texts


def test_numbers_that_are_not_finite_leave_a_page(tmp_path):
  lines = [{"step": i, "loss": x} for i, x in enumerate(("nan", "inf", 1e308))]
  nothing = Estimate(math.nan, math.inf, 3)
  page = _written(_run(tmp_path / "run", {"mse": nothing}, lines))
  assert {"nan", "± inf"} <= set(page.texts)
  assert not page.all("svg")
  assert not page.all("figure")


def _points(page):
  return [
    np.array([p.split(",") for p in line["points"].split()], float)
    for line in page.all("polyline")
  ]


@pytest.mark.parametrize("log", [False, True])
def test_points_are_where_their_ticks_say(log):
  """The axes are read off the ticks, and the values off the axes."""
  values = np.array([0.02, 0.5, 3.0, 90.0])
  steps = np.array([10, 20, 55, 100])
  line = list(zip(steps.tolist(), values.tolist(), strict=True))
  page = Page(charts.chart({"loss": line, "one": [(10, 4.0)]}, log=log))
  texts = page.all("text")
  labels = np.array([t for t in page.texts if t][: len(texts)], float)
  vertical = np.array([t["text-anchor"] == "end" for t in texts])
  scale = np.log10 if log else np.array
  found = []
  # A text's foot is 4 below its tick.
  for axis, kind, shift in (("x", ~vertical, 0), ("y", vertical, 4)):
    places = np.array([t[axis] for t in texts], float)[kind] - shift
    ticks = labels[kind] if axis == "x" else scale(labels[kind])
    assert len(ticks) >= 3
    found.append(np.poly1d(np.polyfit(places, ticks, 1)))
  many, single = _points(page)
  np.testing.assert_allclose(found[0](many[:, 0]), steps, atol=0.2)
  np.testing.assert_allclose(
    found[1](many[:, 1]), scale(values), atol=0.02 if log else 0.2
  )
  np.testing.assert_allclose(found[1](single[0, 1]), scale(4.0), atol=0.2)
  # Every point of lines so short is marked, also one alone.
  assert len(page.all("circle")) == 5
  assert {"loss", "one"} <= set(page.texts)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-9, 1e200])
def test_a_single_point_lies_in_the_middle(value):
  page = Page(charts.chart({"loss": [(100, value)]}, log=True))
  ((_, y),) = _points(page)[0]
  assert y == pytest.approx(charts.TOP / 2 + (200 - charts.BOTTOM) / 2, abs=0.1)
  assert len([t for t in page.texts if t]) >= 6


def test_long_runs_keep_their_end(tmp_path):
  lines = [{"step": i, "loss": 1.0 + i} for i in range(1, 10_000)]
  folder = _run(tmp_path / "run", {"mse": Estimate(1.0, 0.5, 3)}, lines)
  page = _written(folder)
  (line,) = _points(page)
  assert 300 < len(line) <= 500
  assert line[:, 0].max() == charts.WIDTH - charts.RIGHT

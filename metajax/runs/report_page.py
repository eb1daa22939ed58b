"""The page of a run, `report.html`, with its results, curves and flags."""

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from metajax import saved
from metajax.files import replaced
from metajax.results import read_results
from metajax.runs import card, charts

NAME = "report.html"


def write(workdir: Path, command: str) -> None:
  """Writes the page of a run that has ended. The page loads no other file.

  Args:
    workdir: the run's folder, with its `config.json` and `results.json`.
    command: the command line that the page shows.
  """
  results = read_results(workdir)
  assert results is not None
  config = json.loads((workdir / "config.json").read_text())
  protocol, flags = results["protocol"], config["flags"]
  learner = protocol.get("learner")
  title = " · ".join(filter(None, (results["experiment"], learner)))
  page = Template((Path(__file__).parent / "report_page.html").read_text())
  text = page.substitute(
    title=html.escape(title),
    summary=html.escape(
      f"{results['steps']} meta-steps in {results['wall_seconds']:.1f} s"
      f"{_compiling(results['compile_seconds'])}, on {results['device']}"
    ),
    metrics=_metrics(results["metrics"], results["seed"]),
    charts=charts.of_run(workdir),
    pictures=_pictures(sorted(workdir.glob("*.png"))),
    command=html.escape(command),
    flags=_table(flags),
    protocol=_table(protocol),
    environment=_table(_environment(config, results)),
    folder=html.escape(str(workdir.resolve())),
    files=_files(workdir),
    code=html.escape(_code(workdir)),
  )
  with replaced(workdir / NAME) as file:
    file.write_text(text)


def _metrics(metrics: Mapping[str, Any], seed: int) -> str:
  seeds = max(len(value.of_seeds) for value in metrics.values())
  # With several trainings, the interval is over trainings, not over tasks.
  heads = ["metric", "mean", "95% interval", "seeds" if seeds else "tasks"]
  heads += [f"seed {seed + i}" for i in range(seeds)]
  rows = [
    [
      name,
      f"{value.mean:.4f}",
      f"± {value.ci95:.4f}",
      str(len(value.of_seeds) or value.num_tasks),
      *(f"{mean:.4f}" for mean in value.of_seeds),
    ]
    for name, value in metrics.items()
  ]
  head = "".join(f"<th>{cell}</th>" for cell in heads)
  return f"<table class=numbers><tr>{head}</tr>{_rows(rows)}</table>"


def _compiling(seconds: float | None) -> str:
  return "" if seconds is None else f", of which {seconds:.1f} s compiling"


def _pictures(paths: Iterable[Path]) -> str:
  return "".join(
    f"<figure class=picture><figcaption>{html.escape(path.stem)}</figcaption>"
    f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,'
    f'{base64.b64encode(path.read_bytes()).decode()}"></figure>'
    for path in paths
  )


def _environment(config: Mapping, results: Mapping) -> dict[str, Any]:
  about = dict(config.get("environment", {}))
  versions = about.pop("versions", results["versions"])
  return {**about, **versions}


def _files(workdir: Path) -> str:
  names = sorted(path.name for path in workdir.iterdir() if path.name != NAME)
  links = (
    f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>'
    for name in names
    if not name.endswith(".tmp")
  )
  return f"<ul>{''.join(links)}</ul>"


def _code(workdir: Path) -> str:
  """Returns lines of Python that load the learner or the results of the run."""
  folder = str(workdir.resolve())
  if (workdir / saved.LEARNER).exists():
    return "\n".join(card.usage(workdir, repr(folder)))
  return (
    "from pathlib import Path\n\nfrom metajax.results import read_results\n\n"
    f"metrics = read_results(Path({folder!r}))['metrics']"
  )


def _table(values: Mapping[str, Any]) -> str:
  rows = [
    [name, value if isinstance(value, str) else json.dumps(value)]
    for name, value in values.items()
  ]
  return f"<table>{_rows(rows)}</table>"


def _rows(rows: Iterable[Iterable[str]]) -> str:
  return "".join(
    "<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>"
    for row in rows
  )

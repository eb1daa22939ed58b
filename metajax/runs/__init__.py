"""Runs of a script: flags, folders, resuming, logs, pictures.

A script defines its flags and hands its main function to `script.run`. It
builds a learner by `learner_options.build`, opens a folder by `folder.start`,
trains by `training.train`, scores by `scoring.scorer` and writes results by
`report.finish`; see `experiments/maml_sinusoid.py`.

No other part of metajax reads flags. Only the command `metajax.compare_runs`
imports this package.
"""

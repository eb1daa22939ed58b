"""Recurrent experience replay for players that learn in a recurrent state.

It needs the extra `rl`.
"""

from metajax.replay.buffers import Replay
from metajax.replay.diagnostics import Discrepancy, q_discrepancy
from metajax.replay.episodes import EpisodeReplay, episode_replay_trainer
from metajax.replay.learning import Objective, replay_loss
from metajax.replay.players import epsilon_ladder, q_player
from metajax.replay.sequences import Sequence, cut
from metajax.replay.trainer import (
  ReplayState,
  replay_trainer,
  updates_per_step,
)
from metajax.replay.values import (
  importance_weights,
  n_step_double_q,
  sequence_priority,
  signed_hyperbolic,
  signed_parabolic,
)

__all__ = [
  "Discrepancy",
  "EpisodeReplay",
  "Objective",
  "Replay",
  "ReplayState",
  "Sequence",
  "cut",
  "episode_replay_trainer",
  "epsilon_ladder",
  "importance_weights",
  "n_step_double_q",
  "q_discrepancy",
  "q_player",
  "replay_loss",
  "replay_trainer",
  "sequence_priority",
  "signed_hyperbolic",
  "signed_parabolic",
  "updates_per_step",
]

"""Off-policy meta-reinforcement learning with a latent task: PEARL."""

from metajax.off_policy.agent import Agent, pearl_agent
from metajax.off_policy.evaluation import played_trials
from metajax.off_policy.learning import PEARL, pearl_loss
from metajax.off_policy.pearl import PEARLState, pearl_trainer
from metajax.off_policy.posterior import product_of_gaussians
from metajax.off_policy.rings import Rings
from metajax.off_policy.soft_actor_critic import actor_loss, critic_loss
from metajax.off_policy.squashed import TanhGaussian
from metajax.off_policy.transitions import Episodes, Transition, play_episode
from metajax.off_policy.trials import play_trial

__all__ = [
  "PEARL",
  "Agent",
  "Episodes",
  "PEARLState",
  "Rings",
  "TanhGaussian",
  "Transition",
  "actor_loss",
  "critic_loss",
  "pearl_agent",
  "pearl_loss",
  "pearl_trainer",
  "play_episode",
  "play_trial",
  "played_trials",
  "product_of_gaussians",
]

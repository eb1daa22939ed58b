"""Policies that learn a task, by gradient steps or in a recurrent state."""

from metajax.policies.advantages import Estimator, advantages, linear_values
from metajax.policies.belief import BeliefNetwork, belief_network
from metajax.policies.belief_learning import VariBAD
from metajax.policies.distributions import Categorical, DiagonalGaussian
from metajax.policies.elbo import Likelihood, beliefs, mean_elbo
from metajax.policies.evaluation import (
  played_steps,
  played_tasks,
  returns_by_step,
)
from metajax.policies.experience import Experience
from metajax.policies.policy import (
  Policy,
  categorical_policy,
  gaussian_policy,
)
from metajax.policies.policy_learner import (
  POLICY_LEARNERS,
  policy_learner,
)
from metajax.policies.ppo import PPO
from metajax.policies.protocol import PolicyLearner
from metajax.policies.recurrent_policy import num_outputs, policy_player
from metajax.policies.recurrent_ppo import ppo_trainer
from metajax.policies.rollouts import Rollouts, play_episodes
from metajax.policies.surrogates import (
  SURROGATES,
  clipped,
  dice,
  exploration,
  low_variance_curvature,
  score_function,
)
from metajax.policies.trainer import KLPenalty, Penalized, policy_trainer
from metajax.policies.trust_region import TrustRegion, trust_region_step
from metajax.policies.varibad import varibad_trainer

__all__ = [
  "POLICY_LEARNERS",
  "PPO",
  "Penalized",
  "SURROGATES",
  "BeliefNetwork",
  "Categorical",
  "DiagonalGaussian",
  "Estimator",
  "Experience",
  "KLPenalty",
  "Likelihood",
  "Policy",
  "PolicyLearner",
  "Rollouts",
  "TrustRegion",
  "VariBAD",
  "advantages",
  "belief_network",
  "beliefs",
  "categorical_policy",
  "clipped",
  "dice",
  "exploration",
  "gaussian_policy",
  "linear_values",
  "low_variance_curvature",
  "mean_elbo",
  "num_outputs",
  "play_episodes",
  "played_steps",
  "played_tasks",
  "policy_learner",
  "policy_player",
  "policy_trainer",
  "ppo_trainer",
  "returns_by_step",
  "score_function",
  "trust_region_step",
  "varibad_trainer",
]

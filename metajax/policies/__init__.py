"""Meta-reinforcement learning by gradients: policies that adapt to a task."""

from metajax.policies.advantages import Estimator as Estimator
from metajax.policies.evaluation import returns_by_step as returns_by_step
from metajax.policies.policy import categorical_policy as categorical_policy
from metajax.policies.policy import gaussian_policy as gaussian_policy
from metajax.policies.policy_learner import POLICY_LEARNERS as POLICY_LEARNERS
from metajax.policies.policy_learner import policy_learner as policy_learner
from metajax.policies.trainer import policy_trainer as policy_trainer
from metajax.policies.trust_region import TrustRegion as TrustRegion

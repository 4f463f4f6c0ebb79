"""Updates a policy from experience."""

import jax

from rlzero import weights
from rlzero.rl import metrics, programs
from rlzero.rl.collect import Experience, Policy
from rlzero.rl.settings import Config
from rlzero.runtime import hosts
from rlzero.types import Params


class Trainer:
  """Holds a policy in training: parameters, optimiser state and reference.

  Args:
    cfg: of the run.
    loaded: the model that the run starts from.

  Raises:
    ValueError: an update over several hosts that is for one.
  """

  def __init__(self, cfg: Config, loaded: weights.Loaded):
    if cfg.update == 'pmap' and hosts.count() > 1:
      raise ValueError(
        f"grpo.Config.update is 'pmap', and there are {hosts.count()} hosts; "
        "it is for the devices of one host, so use 'jit'."
      )
    self._cfg = cfg
    self.model = cfg.with_runtime_options(loaded.config)
    self.learner = cfg.make_learner(self.model)
    self._ahead = programs.AheadOfTime(self.learner, cfg.compile_ahead)
    self.step = 0  # updates so far
    self.state = self.learner.init(loaded.params)
    self.reference: Params = {}
    self._replace_reference()

  @property
  def policy(self) -> Policy:
    """The policy as it is now; the next update takes its buffers."""
    return Policy(self.step, self.state.params, self.reference)

  def update(self, experience: Experience) -> dict[str, float]:
    """Makes one update with the next minibatch, which leaves the experience.

    Returns:
      the metrics of the step: of the rollout and of this update.
    """
    cfg, clock = self._cfg, metrics.Clock()
    batch = experience.minibatches.pop(0)
    self._ahead.update(self.state.params, batch)
    self.state, of_update = self.learner.update(self.state, batch)
    clock.lap('update')
    # Of each update, so of the policy's way from the sampler's as well.
    of_update['policy/log_ratio_mean'] = of_update['policy/old_mismatch_mean']
    of_update['policy/log_ratio_max'] = of_update['policy/old_mismatch_max']
    mismatch = {
      f'policy/sampler_learner_{name}': of_update.pop(
        f'policy/old_mismatch_{name}'
      )
      for name in ('mean', 'max', 'kl')
    }
    first = self.step % cfg.updates_per_rollout == 0
    if first and cfg.objective.old_logprobs == 'sampler':
      # That of later ones would hold the updates in between as well.
      experience.metrics |= mismatch
    step_metrics = metrics.of_step(
      self.step,
      experience.metrics,
      of_update,
      clock.laps['update'],
      cfg.updates_per_rollout,
    )
    self.step += 1
    if self.step % cfg.reference_every == 0:
      self._replace_reference()
    return step_metrics

  def _replace_reference(self):
    # A copy: the update donates the policy's buffers.
    if self._cfg.objective.kl_coef:
      self.reference = jax.tree.map(lambda x: x.copy(), self.state.params)

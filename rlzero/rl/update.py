"""Updates a policy from experience."""

from typing import Any

import jax

from rlzero import weights
from rlzero.rl import metrics, performance, programs
from rlzero.rl.collect import Experience, Policy
from rlzero.rl.learner import TrainState
from rlzero.rl.settings import Config
from rlzero.runtime import hosts
from rlzero.train import adapters, checkpoint
from rlzero.types import Params


class Trainer:
  """Holds a policy in training: parameters, optimiser state and reference.

  Of an adapter, the reference is a copy of it beside the same base.

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
    self.limit_completions(cfg)
    self._rates = performance.rates(cfg)
    self.step = 0  # updates so far
    self.state = self.learner.init(
      adapters.start(cfg.adapter, self.model, loaded.params, cfg.seed)
    )
    self._reference: Params = {}
    self._replace_reference()

  def limit_completions(self, cfg: Config) -> None:
    """Makes the learner for the completions that these settings allow."""
    self.learner = cfg.make_learner(self.model)
    self._ahead = programs.AheadOfTime(self.learner, cfg.compile_ahead)

  @property
  def policy(self) -> Policy:
    """The policy as it is now; the next update takes its buffers."""
    params, reference = self.state.params, self._reference
    if reference:
      # The adapter's copy, beside the one base.
      reference = adapters.join(reference, adapters.split(params)[1])
    return Policy(self.step, params, reference)

  @property
  def trained(self) -> Params:
    """Parameters that change, which is what a checkpoint holds of them."""
    return adapters.split(self.state.params)[0]

  @property
  def rest(self) -> dict[str, Any]:
    """Other arrays of a checkpoint."""
    return {'opt_state': self.state.opt_state, 'reference': self._reference}

  def restore(self, saved: checkpoint.Saved) -> None:
    """Goes back to what a checkpoint holds."""
    _, frozen = adapters.split(self.state.params)
    params = adapters.join(saved.params, frozen)
    self.state = TrainState(params, saved.state['opt_state'])
    self._reference = saved.state['reference']
    self.step = saved.step

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
    step_metrics |= performance.of_step(
      step_metrics,
      experience.sampled,
      experience.logprob_flops,
      performance.of_update(cfg, self.model, batch, self.learner.chosen(batch)),
      cfg.updates_per_rollout,
      self._rates,
    )
    self.step += 1
    if self.step % cfg.reference_every == 0:
      self._replace_reference()
    return step_metrics

  def _replace_reference(self):
    # A copy: the update donates the policy's buffers.
    if self._cfg.objective.kl_coef:
      self._reference = jax.tree.map(lambda x: x.copy(), self.trained)

"""Any model through one interface: questions in, samples out.

A model is a checkpoint that runs here (`Local`) or an endpoint that speaks
OpenAI's protocol (`Endpoint`). Either hands each sample over as it ends, so
that it can be logged (`SampleLog`) and a killed evaluation loses nothing.
Where hosts sample together, each has all samples, and the first logs them.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.rollout import encoding, journal, scheduler
from rlzero.rollout.sampling import Finish, Sampling
from rlzero.runtime import endpoint, files, hosts, metrics
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders
from rlzero.types import Params


class Job(NamedTuple):
  """A question set for a model: prompts, samples a prompt, settings."""

  questions: Sequence[str]
  template: Template
  num_samples: int  # of each question, adjacent
  sampling: Sampling
  seed: int
  poll: Callable[[], None] | None = None  # of `scheduler.generate`

  @property
  def size(self) -> int:
    return len(self.questions) * self.num_samples


@runtime_checkable
class Sampler(Protocol):
  """A model that can be asked."""

  def about(self) -> dict[str, Any]:
    """Describes the model, for the record."""
    ...

  def fingerprint(self, template: Template, question: str) -> str:
    """Digests the model's input: another digest is another question."""
    ...

  def sample(
    self,
    job: Job,
    finished: Mapping[int, encoding.Sample],
    on_finished: Callable[[int, encoding.Sample], None],
  ) -> list[encoding.Sample]:
    """Draws the samples of a job; each is handed over as it ends.

    Those of `finished`, by their index in the result, are taken as they are.
    """
    ...


class Local:
  """A model on the devices of the mesh in use."""

  def __init__(
    self, config: ModelConfig, params: Params, tokenizer: Tokenizer, path: str
  ):
    self._config, self._params, self._tokenizer = config, params, tokenizer
    self._path = path

  def about(self) -> dict[str, Any]:
    # The name alone: metrics shall not depend on where a model stands.
    name = os.path.basename(os.path.normpath(self._path))
    return {'checkpoint': name, 'sha256': digest(self._params)}

  def fingerprint(self, template: Template, question: str) -> str:
    tokens = encoding.encode_prompt(self._tokenizer, template, question)
    return journal.digest(tokens)[:16]

  def sample(
    self,
    job: Job,
    finished: Mapping[int, encoding.Sample],
    on_finished: Callable[[int, encoding.Sample], None],
  ) -> list[encoding.Sample]:
    """Draws the samples that are not finished; see `Sampler.sample`."""
    samples = dict(finished)
    prompts = encoding.encode_prompts(
      self._tokenizer, job.template, list(enumerate(job.questions))
    )

    def hand_over(index: int, completion: scheduler.Completion) -> None:
      prompt = prompts[index // job.num_samples].tokens
      samples[index] = encoding.to_sample(self._tokenizer, completion, prompt)
      on_finished(index, samples[index])

    # Their lengths are all that the schedule needs to draw the others in the
    # batches that they would have had.
    known = {
      i: scheduler.Completion(
        np.zeros(sample.num_tokens, np.int32),
        np.zeros(sample.num_tokens, np.float32),
        Finish.EOS,
      )
      for i, sample in finished.items()
    }
    scheduler.generate(
      self._config,
      self._params,
      prompts,
      job.num_samples,
      job.sampling,
      stop=encoding.stop_criteria(self._tokenizer),
      seed=job.seed,
      finished=known,
      on_finished=hand_over,
      poll=job.poll,
    )
    return [samples[i] for i in range(job.size)]


class Endpoint:
  """A model behind a URL, by /chat/completions or /completions.

  Args:
    url: http://host/v1#model.
    max_tries: of one sample.
    first_wait_s: before the second try.
  """

  def __init__(self, url: str, max_tries: int = 8, first_wait_s: float = 1.0):
    self._client = endpoint.Client(url, max_tries, first_wait_s)

  def about(self) -> dict[str, Any]:
    return {'endpoint': self._client.base, 'model': self._client.model}

  def fingerprint(self, template: Template, question: str) -> str:
    return journal.digest(template.render(question, files.to_json))[:16]

  def sample(
    self,
    job: Job,
    finished: Mapping[int, encoding.Sample],
    on_finished: Callable[[int, encoding.Sample], None],
  ) -> list[encoding.Sample]:
    """Draws the samples that are not finished; see `Sampler.sample`."""
    samples = dict(finished)
    missing = [i for i in range(job.size) if i not in samples]
    requests = {i: self._request(job, i) for i in missing}
    pool = concurrent.futures.ThreadPoolExecutor(job.sampling.num_slots)
    try:
      asked = {pool.submit(self._ask, *requests[i]): i for i in missing}
      waiting, failure = set(asked), None
      while waiting:
        ended, waiting = concurrent.futures.wait(
          waiting, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for done in ended:
          if error := done.exception():
            # Those under way may still end well, and are kept.
            failure = failure or error
          else:
            samples[asked[done]] = done.result()
            on_finished(asked[done], done.result())
        if failure:
          waiting = {one for one in waiting if not one.cancel()}
      if failure:
        raise failure
    finally:
      pool.shutdown(cancel_futures=True)
    return [samples[i] for i in range(job.size)]

  def _request(self, job: Job, index: int) -> tuple[str, dict[str, Any]]:
    question = job.questions[index // job.num_samples]
    prompt = job.template.render(question, files.to_json)
    body = {
      # Servers have the same names; one that lacks any refuses it.
      **job.sampling.distribution._asdict(),
      'max_tokens': job.sampling.max_len,
      # Of its own, for servers that heed it; few take more than 31 bits.
      'seed': (job.seed * 1_000_003 + index) % (1 << 31),
    }
    if job.template.kind == 'chat':
      return 'chat/completions', body | {'messages': json.loads(prompt)}
    return 'completions', body | {'prompt': prompt}

  def _ask(self, path: str, body: dict[str, Any]) -> encoding.Sample:
    try:
      reply = self._client.ask(path, body)
    except ConnectionError as error:
      raise ConnectionError(
        f'{error}; what has been answered is kept in the workdir, and the same '
        'command resumes from there.'
      ) from error
    text = reply.text
    if reply.thought:
      text = f'<think>{reply.thought}</think>{text}'
    return encoding.Sample(text, reply.completion_tokens, reply.is_cut)


class SampleLog:
  """Samples on disk, a line each, so that they outlive the process.

  Each is with the operating system as soon as it ends, so that a kill loses
  none. A machine that loses power loses what had not reached the disk, some
  seconds' worth; a torn end of the file is passed over and drawn again.

  Args:
    path: JSONL; its first line says what the samples were drawn with.
    settings: what they are drawn with now.
    prompts: fingerprint of what the model is given, by uid of the problem.

  Raises:
    ValueError: the file holds samples of other settings or prompts.
  """

  def __init__(
    self,
    path: str,
    settings: dict[str, Any],
    prompts: Mapping[str, str] | None = None,
  ):
    self.samples: dict[tuple[str, int], encoding.Sample] = {}
    settings = json.loads(files.to_json(settings))
    prompts = dict(prompts or {})
    lines = metrics.read_lines(path)
    lines = lines[: hosts.all_min(len(lines))]
    if lines:
      for name, value in settings.items():
        if (found := lines[0].get(name)) != value:
          raise ValueError(
            f'{path} holds samples with {name} {found!r}, and now it is '
            f'{value!r}; set it back or choose another workdir.'
          )
      before = lines[0].pop('prompts', {})
      for uid in prompts:
        if before.get(uid, prompts[uid]) != prompts[uid]:
          raise ValueError(
            f'{path} holds answers to another prompt of problem {uid!r} than '
            'the model is given now: the question, the tokenizer or its chat '
            'template has changed. Set it back or choose another workdir.'
          )
      prompts = before | prompts
      settings = lines[0] | settings
    if prompts:
      settings['prompts'] = prompts
    for line in lines[1:]:
      place = line.pop('uid'), line.pop('sample')
      self.samples[place] = encoding.Sample(**line)
    # Written anew, without the line that a killed process left half done.
    lines = [_line(*place, sample) for place, sample in self.samples.items()]
    text = ''.join([files.to_json(settings) + '\n', *lines])
    hosts.on_first(lambda: files.write_whole(path, text))
    self._file = open(path, 'a', encoding='utf-8') if hosts.is_first() else None

  def append(self, uid: str, index: int, sample: encoding.Sample) -> None:
    """Writes a sample: number `index` of the problem."""
    self.samples[uid, index] = sample
    if self._file:
      self._file.write(_line(uid, index, sample))
      self._file.flush()

  def __enter__(self) -> 'SampleLog':
    return self

  def __exit__(self, *_: Any) -> None:
    if self._file:
      self._file.close()


def _line(uid: str, index: int, sample: encoding.Sample) -> str:
  row = {'uid': uid, 'sample': index, **sample._asdict()}
  return files.to_json(row) + '\n'


def is_url(path: str) -> bool:
  """Whether a model is behind a URL, and not a checkpoint."""
  return path.startswith(('http://', 'https://'))


def load(path: str) -> Sampler:
  """A model by its checkpoint or by its URL.

  Raises:
    FileNotFoundError, ValueError: nothing usable there; one sentence.
  """
  if is_url(path):
    return Endpoint(path)
  loaded = folders.load_model(path)
  return Local(loaded.config, loaded.params, loaded.tokenizer, path)


def digest(params: Params) -> str:
  """SHA-256 of parameters: names, types, shapes and bits, in order.

  The first of several hosts computes it, and holds one parameter at a time.
  """
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = hosts.fetch_first(leaf)
    if array is None:
      continue
    name = jax.tree_util.keystr(path)
    found.update(f'{name} {array.dtype} {array.shape};'.encode())
    found.update(np.ascontiguousarray(array).view(np.uint8).data)
  return hosts.broadcast(found.hexdigest())

"""The common part of verifiers that score whole completions."""

from collections.abc import Sequence
from typing import Any

from rlzero.tasks import answers, base


class CompletionVerifier:
  """Makes `judge` a verifier of answers as well."""

  def judge(
    self, responses: Sequence[base.Response], problem: base.Problem
  ) -> list[base.Judgement]:
    """A judgement of each response of a problem."""
    raise NotImplementedError

  def target_of(self, value: Any) -> Any:
    """The column as it is: who judges knows what it means."""
    return value

  def extract(self, text: str) -> str | None:
    """The last answer that the text states, or None."""
    return answers.last_answer(text, numeric=False)

  def verify(self, answer: str, target: Any) -> bool:
    """Whether the answer alone passes, without its question."""
    problem = base.Problem('', target, {})
    return bool(self.judge([base.Response(answer)], problem)[0].correct)

  def count_tries(self, text: str) -> int:
    """Number of results that the text states."""
    return answers.count_results(text)

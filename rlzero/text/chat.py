"""Chat templates: Jinja programs that come with weights, from anyone.

They run in a sandbox, for seconds at most, and write a bounded text. They see
neither the clock nor chance: a prompt is a function of its messages, so that
a run that resumes tomorrow asks what it asked today.
"""

import contextlib
import datetime
import functools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

MAX_CHARS = 10_000_000  # of a prompt, and of a value on the way to it
DEADLINE_S = 5.0  # seconds that one prompt may take


class ChatTemplateError(ValueError):
  """A template that has no end, or that does not accept the messages."""


def render(
  template: str, today: datetime.datetime, variables: dict[str, Any]
) -> str:
  """The text that a template makes of its variables.

  Args:
    template: Jinja source, as transformers has it.
    today: what `strftime_now` tells the template.
    variables: messages and what else the template may ask for.

  Raises:
    ChatTemplateError: the template fails, runs too long or writes too much.
  """
  parts, size = [], 0
  try:
    compiled = _compile(template, today)
    with _deadline(DEADLINE_S):
      for part in compiled.generate(**variables):
        parts.append(part)
        size += len(part)
        if size > MAX_CHARS:
          raise ChatTemplateError(f'it writes more than {MAX_CHARS} characters')
  except (ChatTemplateError, jinja2.TemplateError) as error:
    raise ChatTemplateError(str(error)) from error
  except TimeoutError as error:
    raise ChatTemplateError(
      f'it has not ended after {DEADLINE_S:g} s'
    ) from error
  except Exception as error:  # a template may divide by zero, and anything
    raise ChatTemplateError(f'{type(error).__name__}: {error}') from error
  return ''.join(parts)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
  """Ends the Python code called inside, in any thread, when time is up."""
  end, before = time.monotonic() + seconds, sys.gettrace()

  def trace(frame, event, argument):
    if time.monotonic() > end:
      raise TimeoutError
    return trace

  sys.settrace(trace)
  try:
    yield
  finally:
    sys.settrace(before)


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks what the model says, for training; text here."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


class _Sums(jinja2.visitor.NodeTransformer):
  """Writes a ~ b as a sum of strings, whose size is checked."""

  def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Expr:
    texts = [
      jinja2.nodes.Filter(self.visit(n), 'string', [], [], None, None)
      for n in node.nodes
    ]
    total = functools.reduce(jinja2.nodes.Add, texts)
    total.set_lineno(node.lineno)
    return total


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """A sandbox in which no single operation takes all time or memory."""

  intercepted_binops = frozenset(['+', '*', '**'])

  def _parse(self, source, name, filename):
    return _Sums().visit(super()._parse(source, name, filename))

  def call_binop(self, context, operator, left, right):
    size = _size(left) + _size(right)
    for count, other in ((left, right), (right, left)):
      if operator == '*' and isinstance(count, int) > isinstance(other, int):
        size = _size(other) * count
    if operator == '**' and isinstance(right, int):
      size = _size(left) * abs(right)
    if size > MAX_CHARS:
      raise ChatTemplateError(f'{operator} would make too large a value')
    return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
  """Items of a sequence, bits of a whole number."""
  if isinstance(value, int):
    return value.bit_length()
  return len(value) if isinstance(value, (str, list, tuple)) else 0


@functools.lru_cache(maxsize=8)
def _compile(template: str, today: datetime.datetime) -> jinja2.Template:
  env = _Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  # Jinja's own filter escapes HTML, which would change the prompt.
  env.filters['tojson'] = tojson
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = today.strftime
  del env.filters['random'], env.globals['lipsum']  # of chance
  return env.from_string(template)

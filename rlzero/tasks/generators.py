"""Judges answers to reasoning-gym's problems without running them.

Some generators of the library hand the answer to `eval` or to SymPy's parser,
which is `eval` too. A model's text must never run in a reward worker: it could
change what every later completion earns. So there are three lines of defence:

- `GUARDS` judge the answers of the generators that are known to do it: by
  exact comparison, by `arithmetic`, or by a grammar that lets nothing but
  mathematics through to the generator. So they do where a generator overlooks
  what stands beside the answer, such as a second one.
- `executes` finds a generator that does it and has no guard, in the source
  that its scorer can reach. `procedural` refuses it.
- `score` forbids the process to run text while any other generator scores.
"""

import ast
import builtins
import contextlib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlzero.tasks import arithmetic, numeric

RIGHT = 1 - 1e-6  # score of a right answer; less is partial credit

# Generators that run the problem's text, which is the library's own; the
# answer only goes to int() and json.loads().
RUNS_PROBLEM = frozenset({'bitwise_arithmetic', 'number_sorting'})

_MAX_CHARS = 2000  # of a formula
_MAX_NUMBER = 10**15
_MAX_EXPONENT = 64
_MAX_NODES = 400
_FUNCTIONS = frozenset(
  'sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh '
  'exp log ln sqrt Abs'.split()
)
_CONSTANTS = frozenset({'C', 'E', 'pi'})
# Numbers that are equal to nothing, or above everything.
_NO_NUMBER = re.compile(
  r'(?<![a-z])[-+]?(?:s?nan|inf(?:inity)?)(?![a-z])', re.I
)
_TERM = re.compile(
  r'([-+]?)(?:([0-9]{1,30})(?:\*|$))?((?:[A-Za-z](?:\*\*[0-9]{1,3})?(?:\*|$))*)'
)
_ROOTS = re.compile(r'\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?)*\s*')
_NO_ROOT = re.compile(
  r'|none|\[\]|""|(?:there (?:are|is) )?no (?:real )?(?:solutions?|roots?)'
)
_RUNNING = frozenset({builtins.eval, builtins.exec, builtins.__import__})
# Their functions parse a string by running it, or start programs.
_RUNNING_PACKAGES = frozenset(
  {
    'sympy',
    'latex2sympy2_extended',
    'pickle',
    'subprocess',
    'importlib',
    'runpy',
    'code',
    'codeop',
    'numexpr',
    'pandas',
    'os',
    'posix',
  }
)
Guard = Callable[[Any, str, Mapping[str, Any]], bool]


def is_right(
  name: str, generator: Any, answer: str, entry: Mapping[str, Any]
) -> bool:
  """Whether an answer is right in full.

  Args:
    name: of the generator.
    generator: of reasoning-gym, or one that its user has registered.
    answer: what the model wrote.
    entry: the problem, with its answer and metadata.
  """
  if guard := GUARDS.get(name):
    return guard(generator, answer, entry)
  reference = str(entry['answer'])
  if _NO_NUMBER.search(answer) and not _NO_NUMBER.search(reference):
    return False
  if name in RUNS_PROBLEM:
    return _is_full(generator, answer, entry)
  with _no_text_runs():
    return _is_full(generator, answer, entry)


def _is_full(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  return bool(generator.score_answer(answer, entry) >= RIGHT)


# --- guards


def _equals(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  """Compares texts; the generator's own list form earns no full score."""
  return answer.strip() == entry['answer'].strip()


def _equals_words(
  generator: Any, answer: str, entry: Mapping[str, Any]
) -> bool:
  """Compares lists; the generator overlooks words behind the right ones."""
  words = [word.strip() for word in answer.split(',')]
  return words == entry['metadata']['sorted_words']


def _is_board(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  boards = entry['metadata']['valid_answers']
  return answer.strip() in [board.strip() for board in boards]


def _makes_number(
  generator: Any, answer: str, entry: Mapping[str, Any]
) -> bool:
  """Countdown and 24: each number once, and exactly the target."""
  metadata = entry['metadata']
  operators = ''.join(getattr(generator.config, 'operators', '+-*/'))
  found = arithmetic.evaluate(answer, operators)
  return found == (metadata.get('target', 24), sorted(metadata['numbers']))


def _is_integral(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  variables = _CONSTANTS | {entry['metadata']['variable']}
  return _is_formula(answer, variables) and _is_full(generator, answer, entry)


def _is_product(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  return _is_expanded(answer) and _is_full(generator, answer, entry)


def _is_number(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  """One number; the generator takes the first of '5 or 7'."""
  found = numeric.only_number(answer)
  return found is not None and found == numeric.number(entry['answer'])


def _is_text(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  """The same words; the generator overlooks words behind the right ones."""
  return answer.lower().split() == entry['answer'].lower().split()


def _are_roots(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
  """Numbers alone; else any text is right where there is no root."""
  if not entry['answer']:
    return bool(_NO_ROOT.fullmatch(answer.strip().lower().rstrip('.')))
  return _ROOTS.fullmatch(answer) is not None and _is_full(
    generator, answer, entry
  )


def _made_of(pattern: str) -> Guard:
  """A guard for scorers that overlook what is not in the pattern."""
  allowed = re.compile(pattern)

  def is_right(generator: Any, answer: str, entry: Mapping[str, Any]) -> bool:
    with _no_text_runs():
      return allowed.fullmatch(answer.strip()) is not None and _is_full(
        generator, answer, entry
      )

  return is_right


# knights_knaves overlooks words too, but none that gives anyone another role.
GUARDS: dict[str, Guard] = {
  'binary_matrix': _equals,
  'countdown': _makes_number,
  'gsm_symbolic': _is_number,
  'intermediate_integration': _is_integral,
  'kakurasu': _made_of(r'[01\s,\[\]]+'),
  'letter_jumble': _is_text,
  'n_queens': _is_board,
  'polynomial_equations': _are_roots,
  'polynomial_multiplication': _is_product,
  'puzzle24': _makes_number,
  'quantum_lock': _made_of(r'(?:[A-C]|→|->|[\s,])+'),
  'simple_integration': _is_integral,
  'sokoban': _made_of(r'[UDLR\s,]+'),
  'spiral_matrix': _equals,
  'string_insertion': _equals,
  'survo': _made_of(r'[-0-9\s]+'),
  'word_sorting': _equals_words,
}


def _is_formula(text: str, names: frozenset[str]) -> bool:
  """Whether a text is mathematics of bounded size and nothing else.

  Numbers, + - * / **, brackets, the names and one-argument functions. An
  unevaluated integral is no answer, so `Integral` is no function.
  """
  # SymPy's parser has signs of its own (5! or 0.2[1]) beside Python's.
  if len(text) > _MAX_CHARS or not re.fullmatch(r'[A-Za-z0-9 .+*/()-]*', text):
    return False
  try:
    tree = ast.parse(text.strip(), mode='eval').body
    return sum(1 for _ in ast.walk(tree)) <= _MAX_NODES and _is_term(
      tree, names
    )
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False


def _is_term(node: ast.AST, names: frozenset[str], power: bool = True) -> bool:
  """Whether a node is mathematics; `power`: one may still stand in it."""
  match node:
    case ast.Constant(value=int() | float() as value):
      return not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    case ast.Name(id=name):
      return name in names
    case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
      return _is_term(operand, names, power)
    case ast.BinOp(left=left, op=ast.Pow(), right=right):
      # Towers of powers are numbers that no memory holds.
      if not power or not _is_term(left, names, not _is_constant(left)):
        return False
      if _is_constant(right):
        constants = [n for n in ast.walk(right) if isinstance(n, ast.Constant)]
        return _is_term(right, names, False) and all(
          isinstance(n.value, int | float) and n.value <= _MAX_EXPONENT
          for n in constants
        )
      return _is_term(right, names, False)
    case ast.BinOp(
      left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right
    ):
      return _is_term(left, names, power) and _is_term(right, names, power)
    case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
      return name in _FUNCTIONS and _is_term(argument, names, power)
  return False


def _is_constant(node: ast.AST) -> bool:
  return not any(isinstance(n, ast.Name | ast.Call) for n in ast.walk(node))


def _is_expanded(text: str) -> bool:
  """Whether a text is a polynomial whose products and sums are worked out."""
  if len(text) > _MAX_CHARS or re.search(r'[A-Za-z0-9]\s+[A-Za-z0-9]', text):
    return False
  terms = re.findall(r'[-+]?[^-+]+', ''.join(text.split()))
  seen = set()
  for term in terms:
    match = _TERM.fullmatch(term)
    if not match or not (match[2] or match[3]) or term.endswith('*'):
      return False
    powers = [p for p in re.split(r'(?<!\*)\*(?!\*)', match[3]) if p]
    if len({p[0] for p in powers}) < len(powers):
      return False  # x*x is not worked out
    monomial = frozenset(p.removesuffix('**1') for p in powers)
    if monomial in seen:
      return False  # nor is x + x
    seen.add(monomial)
  return bool(terms) and ''.join(terms) == ''.join(text.split())


# --- generators without a guard

_forbids_text = False


def _audit(event: str, arguments: tuple) -> None:
  if not _forbids_text:
    return
  is_text = event == 'exec' and arguments[0].co_filename == '<string>'
  if is_text or event in ('os.system', 'os.exec', 'subprocess.Popen'):
    raise PermissionError(
      'the generator runs text while it scores an answer, which rlzero '
      'forbids; choose another dataset'
    )


sys.addaudithook(_audit)


@contextlib.contextmanager
def _no_text_runs() -> Iterator[None]:
  """Inside, code that comes from a text is not run but refused."""
  global _forbids_text
  _forbids_text = True
  try:
    yield
  finally:
    _forbids_text = False


def executes(scorer: type) -> str | None:
  """Finds what runs text in the source that `score_answer` can reach.

  It follows the functions and methods of the scorer's own package by name.

  Returns:
    such as 'eval in verify_solution', 'source that cannot be read', or None.
  """
  package = scorer.__module__.partition('.')[0]
  waiting: list[Any] = [scorer.score_answer]
  seen: set[Any] = set()
  while waiting:
    function = waiting.pop()
    if function in seen:
      continue
    seen.add(function)
    try:
      tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
      return 'source that cannot be read'
    scope = {**vars(builtins), **_globals(function)}
    for value in _mentioned(tree, scope, scorer):
      home = getattr(value, '__module__', None) or ''
      if _runs_text(value, home):
        return f'{value.__name__} in {function.__name__}'
      is_own = home.partition('.')[0] in (package, 'reasoning_gym')
      if is_own and (inspect.isfunction(value) or inspect.isclass(value)):
        waiting.append(value)
  return None


def _globals(function: Any) -> Mapping[str, Any]:
  if inspect.isclass(function):
    return vars(importlib.import_module(function.__module__))
  return inspect.unwrap(function).__globals__


def _runs_text(value: Any, home: str) -> bool:
  if not callable(value):
    return False
  try:
    if value in _RUNNING:
      return True
  except TypeError:  # it has no hash
    return False
  return home.partition('.')[0] in _RUNNING_PACKAGES and hasattr(
    value, '__name__'
  )


def _mentioned(
  tree: ast.AST, scope: Mapping[str, Any], scorer: type
) -> Iterator[Any]:
  """Objects that the source names: names, and attributes of known objects."""
  local = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      local |= _imported(node, scope)
  scope = {**scope, **local}
  for node in ast.walk(tree):
    match node:
      case ast.Name(id=name) if name in scope:
        yield scope[name]
      case ast.Attribute(value=ast.Name(id='self' | 'cls'), attr=name):
        yield getattr(scorer, name, None)
      case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in scope:
        yield getattr(scope[owner], name, None)
  yield from local.values()


def _imported(
  node: ast.Import | ast.ImportFrom, scope: Mapping[str, Any]
) -> dict[str, Any]:
  found = {}
  for alias in node.names:
    with contextlib.suppress(ImportError, AttributeError):
      if isinstance(node, ast.Import):
        found[alias.asname or alias.name] = importlib.import_module(alias.name)
      else:
        home = importlib.import_module(
          '.' * node.level + (node.module or ''), scope.get('__package__')
        )
        found[alias.asname or alias.name] = getattr(home, alias.name)
  return found

"""Reads the traffic of a compiled program: memory, and between devices.

XLA's own `cost_analysis()` counts the body of a loop once. Here the text of
the compiled program is read, and a loop's body counts as often as its
condition says.
"""

import collections
import math
import re
from typing import NamedTuple

_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
  's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8,
}  # fmt: skip
# Bytes that a device receives, for each of the result; for a reduce-scatter, of
# what goes in.
_COLLECTIVES = {
  'all-gather': 1,
  'all-reduce': 2,  # a reduce-scatter and an all-gather
  'reduce-scatter': 1,
  'all-to-all': 1,
  'ragged-all-to-all': 1,
  'collective-permute': 1,
  'collective-broadcast': 1,
}
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
  'after-all', 'partition-id', 'replica-id', 'iota', 'copy-done',
  'opt-barrier', 'domain', 'async-update',
}  # fmt: skip
_SLICES = {'dynamic-slice', 'slice', 'gather'}
# Custom calls that move nothing: room, and pieces that lie side by side.
_FREE_CALLS = {'AllocateBuffer', 'ConcatBitcast', 'AssumeGatherIndicesInBound'}


class Traffic(NamedTuple):
  """Bytes a device moves in one call."""

  memory: float  # read from and written to HBM
  collectives: dict[str, float]  # received from other devices, by kind
  kernels: float = 0.0  # of `memory`, what kernels read that may read less

  @property
  def received(self) -> float:
    return sum(self.collectives.values())


class _Op(NamedTuple):
  name: str
  is_root: bool  # what its computation returns
  parts: list[tuple[int, bool]]  # bytes, and whether in HBM, of each result
  kind: str
  inside: str  # its parentheses
  rest: str  # attributes

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.-]+)', self.inside)

  @property
  def size(self) -> int:
    return sum(size for size, _ in self.parts)

  @property
  def in_memory(self) -> int:
    return sum(size for size, in_hbm in self.parts if in_hbm)


_Computations = dict[str, dict[str, _Op]]


def traffic(text: str) -> Traffic:
  """Traffic of one call of a compiled program.

  Args:
    text: of `compiled.as_text()`, after partitioning and optimisation.
  """
  computations, entry = _parse(text)
  times: dict[str, float] = collections.defaultdict(float)
  executed: dict[str, float] = collections.defaultdict(float)

  def visit(name, factor, inside):
    """Counts how often computations run, fused ones apart from others."""
    times[name] += factor
    if not inside:
      executed[name] += factor
    for op in computations[name].values():
      match op.kind:
        case 'while':
          loops = factor * _trips(computations[_called(op, 'condition')])
          visit(_called(op, 'body'), loops, inside)
        case 'call' | 'async-start':
          visit(_called(op, 'calls|to_apply'), factor, inside)
        case 'fusion':
          visit(_called(op, 'calls'), factor, True)
        case 'conditional':
          for branch in re.findall(r'%([\w.-]+)', _branches(op)):
            visit(branch, factor, inside)

  visit(entry, 1.0, False)
  memory = kernels = 0.0
  for name, factor in executed.items():
    for op in computations[name].values():
      memory += factor * _moved(op, computations[name], computations)
      kernels += factor * (_estimated(op) or 0.0)
  return Traffic(memory, _received(computations, times), kernels)


def _received(computations, times) -> dict[str, float]:
  """Bytes from other devices, by kind, given how often computations run.

  An asynchronous collective stands in its start, in its end and in what runs
  meanwhile, with one channel; these may be in loops of their own.
  """
  seen: dict[tuple[str, str], float] = {}
  begun: dict[tuple[str, str], float] = {}
  for name, factor in times.items():
    starts = _target(_root(computations[name])) == 'AsyncCollectiveStart'
    for op in computations[name].values():
      kind = op.kind.removesuffix('-start')
      if kind not in _COLLECTIVES:
        continue
      size = op.size
      if op.kind.endswith('-start') and len(op.parts) > 1:
        size = max(size for size, _ in op.parts)
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        # XLA:TPU writes a reduce-scatter as a fusion of this name, in which a
        # device takes its part of a sum.
        kind = 'reduce-scatter'
      elif kind == 'reduce-scatter':
        around = computations[name]
        size = sum(around[one].size for one in op.operands)
      if kind == 'ragged-all-to-all':
        # As many rows come in the mean as there are on the side that has no
        # room for more.
        source = computations[name].get(op.operands[0])
        size = min(size, source.size) if source else size
      channel = re.search(r'channel_id=(\d+)', op.rest)
      key = kind, channel[1] if channel else f'{name}/{op.name}'
      received = factor * _COLLECTIVES[kind] * size
      seen[key] = max(seen.get(key, 0), received)
      if starts:
        begun[key] = received
  kinds: dict[str, float] = collections.defaultdict(float)
  for (kind, _), received in (seen | begun).items():
    kinds[kind] += received
  return dict(kinds)


def _parse(text: str) -> tuple[_Computations, str]:
  computations: _Computations = {}
  entry, current = '', {}
  for line in text.splitlines():
    if not line.startswith(' '):
      header = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
      if header:
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
      continue
    found = re.match(r'\s+(ROOT )?%?([\w.-]+) = ', line)
    if found:
      name, line = found[2], line[found.end() :]
      end = _closing(line, 0) if line[0] == '(' else line.index(' ')
      kind = re.match(r' *([\w-]+)\(', line[end:])
      if not kind:
        continue
      start = end + kind.end() - 1
      stop = _closing(line, start)
      current[name] = _Op(
        name,
        found[1] is not None,
        [_size(*part) for part in _SHAPE.findall(line[:end])],
        kind[1],
        line[start:stop],
        line[stop:],
      )
  return computations, entry


_SHAPE = re.compile(r'\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\](\{[^}]*\})?')


def _size(dtype: str, dims: str, layout: str) -> tuple[int, bool]:
  count = math.prod(int(n) for n in dims.split(',') if n)
  width = _BYTES.get(dtype, 1 if dtype.startswith('f8') else 4)
  return count * width, 'S(' not in layout


def _closing(line: str, start: int) -> int:
  """Past the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(line)):
    depth += (line[i] == '(') - (line[i] == ')')
    if not depth:
      return i + 1
  return len(line)


def _called(op: _Op, attribute: str) -> str:
  found = re.search(rf'(?:{attribute})=%?([\w.-]+)', op.rest)
  if found is None:
    raise ValueError(
      f'the compiler wrote a call without {attribute}: {op.rest}'
    )
  return found[1]


def _branches(op: _Op) -> str:
  several = re.search(r'branch_computations=\{([^}]*)\}', op.rest)
  if several:
    return several[1]
  return ' '.join(re.findall(r'(?:true|false)_computation=(%[\w.-]+)', op.rest))


def _trips(condition: dict[str, _Op]) -> int:
  """How often a loop runs that counts up from 0: its condition's bound."""
  bounds = [
    int(op.inside[1:-1])
    for op in condition.values()
    if op.kind == 'constant' and op.inside[1:-1].isdigit()
  ]
  return max(bounds, default=1)


def _moved(op: _Op, around: dict[str, _Op], computations) -> float:
  """Bytes of HBM that one operation reads and writes."""
  if op.kind in _FREE or op.kind.endswith('-done'):
    return 0
  if op.kind in ('while', 'call', 'conditional', 'async-start'):
    return 0  # their bodies count
  if op.kind == 'custom-call' and _target(op) in _FREE_CALLS:
    return 0
  estimated = _estimated(op)
  if estimated is not None:
    return estimated + op.in_memory
  if op.kind in ('copy-start', 'all-gather-start', 'collective-permute-start'):
    return op.in_memory  # (target, source, context), in any order
  if op.kind == 'slice-start':
    size, in_hbm = op.parts[-2]
    return size * (1 + in_hbm)
  operands = [around[name] for name in op.operands if name in around]
  if op.kind in _SLICES:
    # Of what is in HBM; one that is unknown here is.
    far = not operands or operands[0].in_memory
    return op.in_memory + (op.size if far else 0)
  if op.kind == 'dynamic-update-slice':
    return 2 * operands[1].in_memory
  if op.kind == 'fusion':
    return _moved_by_fusion(op, operands, computations)
  return op.in_memory + sum(one.in_memory for one in operands)


def _moved_by_fusion(op: _Op, operands: list[_Op], computations) -> float:
  fused = computations[_called(op, 'calls')]
  root = _root(fused)
  match _target(root):
    case 'AsyncCollectiveStart':
      # All of the collective: until its end it runs in other fusions, which
      # only hand on where it reads and writes.
      return sum(
        one.in_memory + sum(fused[name].in_memory for name in one.operands)
        for one in fused.values()
        if one.kind in _COLLECTIVES
      )
    case 'AsyncCollectiveDone':
      return 0
  total = 0.0
  for i, operand in enumerate(operands):
    if operand.in_memory:
      total += min(operand.in_memory, _read(i, fused, computations)[0])
  # What is updated in place is written in part.
  updates = [
    (one, fused[one.operands[1]].size)
    for one in fused.values()
    if one.kind == 'dynamic-update-slice'
  ]
  kept = sum(one.size for one, _ in updates)
  written = op.in_memory - _handed_on(op, root, fused)
  return total + max(written - kept, 0) + sum(n for _, n in updates)


def _handed_on(op: _Op, root: _Op, fused: dict[str, _Op]) -> int:
  """Bytes of a fusion's results that are its operands and stay in place.

  A collective that runs meanwhile has its source and its target among them.
  """
  if root.kind != 'tuple' or len(root.operands) != len(op.parts):
    return 0
  aliased = re.search(r'output_to_operand_aliasing=\{(.*?\))\}', op.rest)
  found = 0
  for i in re.findall(r'\{(\d+)\}: \(', aliased[1]) if aliased else ():
    kind = fused[root.operands[int(i)]].kind
    size, in_hbm = op.parts[int(i)]
    if in_hbm and (kind == 'parameter' or kind in _COLLECTIVES):
      found += size
  return found


def _root(computation: dict[str, _Op]) -> _Op:
  return next(op for op in computation.values() if op.is_root)


def _estimated(op: _Op) -> float | None:
  """Bytes that a Pallas kernel says it reads at most, if it says so."""
  if op.kind != 'custom-call':
    return None
  found = re.search(r'"cost_estimate":\{.*?"bytes_accessed":"?(\d+)', op.rest)
  return float(found[1]) if found else None


def _target(op: _Op) -> str:
  """The function that a custom call is of; '' for another operation."""
  found = re.search(r'custom_call_target="([^"]*)"', op.rest)
  return found[1] if found else ''


def _read(
  number: int, fused: dict[str, _Op], computations
) -> tuple[float, bool]:
  """Bytes that a fusion reads of a parameter: its slices, or all of it.

  Returns:
    them, and whether the fusion's result is the parameter in another shape.
  """
  (whole,) = (
    op
    for op in fused.values()
    if op.kind == 'parameter' and op.inside == f'({number})'
  )
  total, names = 0.0, {whole.name}
  for op in fused.values():  # in their order, users after what they use
    if not names.intersection(op.operands):
      continue
    if op.kind in _SLICES:
      total += op.size
    elif op.kind == 'bitcast':
      names.add(op.name)
    elif op.kind == 'fusion':
      inner = computations[_called(op, 'calls')]
      for i, name in enumerate(op.operands):
        if name in names:
          size, same = _read(i, inner, computations)
          total += size
          names |= {op.name} if same else set()
    elif op.kind == 'tuple' or op.kind in _COLLECTIVES:
      continue  # handed on
    elif op.kind != 'dynamic-update-slice' or op.operands[0] not in names:
      return whole.size, False
  return min(total, whole.size), _root(fused).name in names

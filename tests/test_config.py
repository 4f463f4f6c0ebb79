import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap
import urllib.error

import gin
import pytest

import rlzero
from rlzero.runtime import config, saved_config
from rlzero.runtime.config import UserError, build

_STAGE = '''
"""A stage for tests.

More of it.
"""
import dataclasses
from typing import Any, Literal

from rlzero.runtime.fields import mutable_on_resume
from toystage_parts import Inner, Judge, double


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  workdir: str = mutable_on_resume('')  # folder of the run
  num_steps: int = 10  # policy updates
  # β, weight of the KL term
  kl_coef: float = 0.5
  every: int | None = None
  widths: tuple[int, ...] = (1, 2)
  mode: Literal['grpo', 'dr_grpo'] = 'grpo'
  json: bool = False
  label: str | None = None
  inner: Inner | None = None
  others: tuple[Inner, ...] = ()
  judge: Judge | None = None
  fn: Any = None

  def __post_init__(self):
    if self.num_steps < 1:
      raise ValueError(
        f'Config.num_steps is {self.num_steps}; it must be at least 1.'
      )
    if not self.widths:
      raise ValueError('toystage.Config.widths is (); give at least one.')
    if self.kl_coef > self.num_steps:
      raise ValueError('The cost kl_coef exceeds num_steps.')


def run(cfg):
  if cfg.label == 'missing':
    open('/nowhere/at/all')
  if cfg.label == 'interrupt':
    raise KeyboardInterrupt
  if cfg.label == 'bug':
    raise KeyError('a bug')
  print('ran', cfg.num_steps)


if __name__ == '__main__':
  import toystage
  from rlzero.runtime import config

  config.main(toystage)
'''
_PARTS = """
import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  size: int
  name: str = 'x'
  deeper: 'Inner | None' = None


class Judge(Protocol):
  def verify(self, answer: str) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Strict:
  def verify(self, answer: str) -> bool:
    return False


def double(x):
  return 2 * x
"""
_HEAD = (
  'from __gin__ import dynamic_registration\n'
  'import toystage\n'
  'import toystage_parts as parts\n'
)


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stage')
  (folder / 'toystage.py').write_text(_STAGE)
  (folder / 'toystage_parts.py').write_text(_PARTS)
  sys.path.insert(0, str(folder))
  import toystage

  yield toystage
  sys.path.remove(str(folder))
  del sys.modules['toystage'], sys.modules['toystage_parts']


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def write_file(text, name='run.gin', head=_HEAD):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + textwrap.dedent(text))
    return f'--gin_file={name}'

  return write_file


def _refused(stage, *argv):
  """The sentence that the flags are refused with."""
  with pytest.raises(UserError) as info:
    build(stage, argv)
  text = str(info.value)
  assert '\n' not in text
  return text


def test_defaults(stage):
  assert build(stage, []) == stage.Config()


def test_files_flags_and_shorthands(stage, write):
  file = write("""
    STEPS = 7
    toystage.Config.num_steps = %STEPS
    toystage.Config:
      widths = [3, 4]
      inner = @parts.Inner()
      others = (@big/parts.Inner(), @parts.Inner())
      fn = @parts.double
      judge = @parts.Strict()
    parts.Inner.size = 1
    parts.Inner.name = 'plain'
    big/parts.Inner.size = 2
  """)
  cfg = build(
    stage,
    [
      file,
      '--kl_coef=3',
      '--every=5',
      '--mode=dr_grpo',
      '--json',
      '--label=5',
      '--gin.big/parts.Inner.name="big"',
    ],
  )
  parts = sys.modules['toystage_parts']
  plain = parts.Inner(size=1, name='plain')
  assert cfg == stage.Config(
    num_steps=7,
    widths=(3, 4),
    inner=plain,
    others=(parts.Inner(size=2, name='big'), plain),
    fn=parts.double,
    judge=parts.Strict(),
    kl_coef=3.0,
    every=5,
    mode='dr_grpo',
    json=True,
    label='5',
  )
  assert type(cfg.kl_coef) is float
  # Nothing is left over for the next one.
  assert build(stage, []) == stage.Config()


def test_gin_itself_reads_the_same(stage, write):
  write(
    """
    parts.Inner.size = 1
    parts.Inner.name = 'base'
    """,
    'configs/model.gin',
  )
  file = write("""
    include 'configs/model.gin'
    STEPS = 7
    a/STEPS = 8
    toystage.Config.num_steps = %a/STEPS
    toystage.Config.every = %STEPS
    toystage.Config.inner = @a/parts.Inner()
    toystage.Config.others = (@parts.Inner(), @b/parts.Inner())
    parts.Inner.name = 'own'
    a/parts.Inner.size = 2
    a/parts.Inner.deeper = @c/parts.Inner()
    a/b/parts.Inner.size = 9
    b/parts.Inner.size = 3
    b/parts.Inner.deeper = @a/b/parts.Inner()
  """)
  gin.clear_config()
  try:
    gin.parse_config_file('run.gin')
    expected = gin.get_configurable(stage.Config)()
  finally:
    gin.clear_config()
  cfg = build(stage, [file])
  assert repr(cfg) == repr(expected)
  assert cfg.inner.size == 2 and cfg.others[0].name == 'own'


def test_shorthand_of_other_values(stage):
  cfg = build(stage, ['--label=None', '--widths=(5,)', '--json=false'])
  assert cfg == stage.Config(label=None, widths=(5,), json=False)
  assert build(stage, ['--workdir=None']).workdir == 'None'


def test_flags_win_over_files_and_later_files_over_earlier(stage, write):
  first = write('toystage.Config.num_steps = 1', 'a.gin')
  second = write('toystage.Config.num_steps = 2', 'b.gin')
  assert build(stage, [first, second]).num_steps == 2
  assert build(stage, ['--num_steps=3', first, second]).num_steps == 3


def test_own_bindings_win_over_included_ones(stage, write):
  write('toystage.Config.num_steps = 1\nLR = 0.1', 'models/base.gin')
  write('include "base.gin"\ntoystage.Config.kl_coef = %LR', 'models/x.gin')
  file = write("""
    include 'models/x.gin'
    include 'models/base.gin'
    toystage.Config.num_steps = 2
  """)
  cfg = build(stage, [file])
  assert (cfg.num_steps, cfg.kl_coef) == (2, 0.1)


def test_a_file_is_included_once(stage, write):
  # Read again by way of b, base would undo what a has overridden.
  write('toystage.Config.num_steps = 1', 'base.gin')
  write('include "base.gin"\ntoystage.Config.num_steps = 5', 'a.gin')
  write('include "base.gin"', 'b.gin')
  file = write('include "a.gin"\ninclude "b.gin"')
  assert build(stage, [file]).num_steps == 5


@pytest.mark.parametrize(
  'text, parts',
  [
    (
      'toystage.Config.num_step = 3',
      ['num_step (', 'run.gin:4', "'num_steps'"],
    ),
    ('toystag.Config.num_steps = 3', ["'toystag'", 'run.gin:4', "'toystage'"]),
    ('toystage.Confg.num_steps = 3', ["'Confg'", 'run.gin:4', "'Config'"]),
    ('import toystage_part', ['run.gin:4', 'toystage_part']),
    ('toystage.Config.fn = @parts.doubl', ["'doubl'", "'double'"]),
    ('toystage.Config.fn = @parts.double()', ['should be @parts.double:']),
    ('toystage.Config.fn = @parts.Inner', ['should be @parts.Inner():']),
    ('parts.double.x = 3', ['parts.double.x', 'not a dataclass']),
    ('SETPS = 3', ['SETPS', 'run.gin:4', 'nowhere']),
    (
      'STEPS = 3\ntoystage.Config.num_steps = %SETPS',
      ['%SETPS', 'run.gin:5', "'STEPS'"],
    ),
    ('parts.Inner.size = 3', ['Inner.size', 'run.gin:4', 'no effect']),
    (
      'a/parts.Inner.size = 3\ntoystage.Config.inner = @parts.Inner()',
      ['a/toystage_parts.Inner.size', 'run.gin:4', 'no effect'],
    ),
    (
      'toystage.Config.inner = @parts.Inner()',
      ['Inner.size has no value', 'run.gin:4'],
    ),
    (
      'toystage.Config.inner = @parts.Inner()\n'
      'parts.Inner.size = 3\n'
      'parts.Inner.deeper = @parts.Inner()',
      ['refers to itself'],
    ),
    (
      'toystage.Config.num_steps = 3\ntoystage.Config.num_steps = 4',
      ['run.gin:5', 'num_steps a second time', 'run.gin:4'],
    ),
    ('toystage.Config.num_steps = 3\ninclude "x.gin"', ['run.gin:5', 'after']),
    ('include "x.gin"', ["'x.gin'", 'run.gin:4', 'No such file']),
    ('toystage.Config.num_steps 3', ['run.gin:4 is not gin syntax']),
    ('toystage.Config.num_steps = (3', ['run.gin', 'is not gin syntax']),
    ('toystage.Config.num_steps = abc', ['run.gin:4', "'abc'"]),
    (
      'toystage.Config.num_steps = 0',
      ['toystage.Config.num_steps is 0', 'run.gin:4'],
    ),
    (
      'toystage.Config.kl_coef = 11.0',
      ['toystage.Config: The cost', 'run.gin:4', 'num_steps: default'],
    ),
  ],
)
def test_refused_in_a_file(stage, write, text, parts):
  message = _refused(stage, write(text))
  for part in parts:
    assert part in message


@pytest.mark.parametrize(
  'field, value, wanted',
  [
    ('num_steps', "'3'", 'int'),
    ('num_steps', '3.0', 'int'),
    ('num_steps', 'True', 'int'),
    ('kl_coef', 'False', 'float'),
    ('kl_coef', 'None', 'float'),
    ('every', '2.5', 'int | None'),
    ('widths', '(1, 2.5)', 'tuple[int, ...]'),
    ('widths', '3', 'tuple[int, ...]'),
    ('mode', "'ppo'", "Literal['grpo', 'dr_grpo']"),
    ('json', '1', 'bool'),
    ('workdir', '3', 'str'),
    ('inner', '3', 'Inner'),
    ('others', '(3,)', 'Inner'),
    ('judge', "'strict'", 'Judge'),
  ],
)
def test_wrong_types(stage, write, field, value, wanted):
  message = _refused(stage, write(f'toystage.Config.{field} = {value}'))
  assert message.startswith(f'toystage.Config.{field} is {value}')
  assert 'run.gin:4' in message and wanted in message


@pytest.mark.parametrize(
  'flag, parts',
  [
    ('--num_stepz=3', ["'--num_stepz=3'", "'--num_steps'"]),
    ('num_steps=3', ['not a flag']),
    ('--gin_file', ['not a flag']),
    ('--num_steps=ten', ["toystage.Config.num_steps is 'ten'", '--num_steps=']),
    ('--num_steps', ['toystage.Config.num_steps is True']),
    ('--num_steps=0', ['num_steps is 0', '(num_steps: --num_steps=0)']),
    ('--gin.toystage.Config.num_step=3', ["'num_steps'"]),
    ('--gin.toystage.Config.label=abc', ['quotes']),
    ('--gin.nothing.Config.x=3', ["'nothing'", '--gin.nothing']),
    ('--gin_file=none.gin', ["'none.gin'", 'No such file']),
  ],
)
def test_refused_flags(stage, flag, parts):
  message = _refused(stage, flag)
  for part in parts:
    assert part in message


def test_a_range_error_is_not_named_twice(stage):
  assert _refused(stage, '--widths=()') == (
    'toystage.Config.widths is (); give at least one. (widths: --widths=())'
  )


def test_a_flag_may_swap_what_the_file_has_set_up(stage, write):
  file = write("""
    SIZE = 3
    toystage.Config.inner = @parts.Inner()
    parts.Inner.size = %SIZE
  """)
  assert build(stage, [file, '--inner=None']).inner is None


def test_flags_reach_modules_of_the_package(stage):
  message = _refused(stage, '--gin.models.config.ModelConfig.width=0')
  assert 'config.ModelConfig.width' in message and 'no effect' in message


def test_resolved_builds_the_same_again(stage, write):
  file = write("""
    toystage.Config.inner = @parts.Inner()
    toystage.Config.others = (@a/parts.Inner(),)
    toystage.Config.fn = @parts.double
    parts.Inner.size = 1
    a/parts.Inner.name = "it's = \\n"
    a/parts.Inner.deeper = @b/parts.Inner()
  """)
  cfg = build(stage, [file, '--kl_coef=1e-5'])
  again = write(saved_config.to_gin(cfg), 'again.gin', head='')
  assert build(stage, [again]) == cfg


def test_saved_beside_the_run(stage, tmp_path):
  cfg = build(stage, ['--num_steps=3'])
  saved_config.save(cfg, str(tmp_path / 'a' / 'b'))
  saved = json.loads((tmp_path / 'a' / 'b' / 'config.json').read_text())
  assert saved['num_steps'] == 3 and saved['widths'] == [1, 2]


def test_a_workdir_keeps_its_configuration(stage, write, tmp_path):
  file = write("""
    toystage.Config.inner = @parts.Inner()
    parts.Inner.size = 1
  """)
  workdir = str(tmp_path / 'run')
  saved_config.check_resume_compatible(stage.Config(), workdir)
  saved_config.save(build(stage, [file]), workdir)
  saved_config.check_resume_compatible(
    build(stage, [file, f'--workdir={workdir}']), workdir
  )
  with pytest.raises(UserError) as info:
    saved_config.check_resume_compatible(
      build(stage, [file, '--num_steps=3', '--gin.parts.Inner.size=2']),
      workdir,
    )
  assert 'Config.num_steps is 3 now and 10 there' in str(info.value)
  assert 'Inner.size is 2 now and 1 there' in str(info.value)
  assert 'kl_coef' not in str(info.value)


def test_unwritable_workdir(stage, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written to'):
    saved_config.save(stage.Config(), str(tmp_path / 'file' / 'run'))


def test_main(stage, capsys, monkeypatch):
  config.main(stage, ['--num_steps=3'])
  assert capsys.readouterr().out == 'ran 3\n'
  for argv, code, text in [
    (['--num_steps=0'], 2, 'error: toystage.Config.num_steps is 0;'),
    (['--label=missing'], 2, 'error: /nowhere/at/all: No such file'),
    (['--label=interrupt'], 130, ''),
  ]:
    with pytest.raises(SystemExit) as info:
      config.main(stage, argv)
    assert info.value.code == code
    assert capsys.readouterr().err.startswith(text)
  with pytest.raises(KeyError):
    config.main(stage, ['--label=bug'])
  monkeypatch.setenv('RLZERO_TRACEBACK', '1')
  with pytest.raises(UserError):
    config.main(stage, ['--num_steps=0'])


def _code(stage, monkeypatch, error):
  def fails(cfg):
    raise error

  monkeypatch.setattr(stage, 'run', fails)
  with pytest.raises(SystemExit) as end:
    config.main(stage, [])
  return end.value.code


_GONE = (
  'UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:'
)


@pytest.mark.parametrize(
  'error',
  [
    RuntimeError(f'{_GONE}547] Connection closed by peer [127.0.0.1]:56214'),
    # As Orbax has raised it.
    ValueError(f'{_GONE}538] Read error [::1]:2: Connection reset by peer'),
    RuntimeError('UNAVAILABLE: Task 1 heartbeat timeout. This indicates ...'),
  ],
)
def test_a_host_that_is_gone_ends_the_others(stage, monkeypatch, capsys, error):
  codes = []

  def leave(code):
    codes.append(code)
    raise SystemExit(code)

  monkeypatch.setattr(os, '_exit', leave)
  assert _code(stage, monkeypatch, error) == 75
  assert codes == [75]  # without waiting for anyone
  said = capsys.readouterr().err
  assert said.startswith('error: another host is gone (')
  assert said.endswith(
    'start the same command again on all hosts, and it resumes.\n'
  )


def test_other_errors_of_a_runtime_are_shown(stage, monkeypatch):
  with pytest.raises(RuntimeError, match='RESOURCE_EXHAUSTED'):
    _code(stage, monkeypatch, RuntimeError('RESOURCE_EXHAUSTED: out of memory'))


@pytest.mark.parametrize(
  ('number', 'code'),
  [
    (errno.ENOENT, 2),
    (errno.EACCES, 2),
    (errno.EISDIR, 2),
    (errno.EROFS, 2),
    (errno.EIO, 74),
    (errno.ESTALE, 74),
    (errno.ETIMEDOUT, 74),
    (errno.ENOTCONN, 74),
    (errno.ENOSPC, 74),
    (errno.EDQUOT, 74),
    (errno.EPIPE, 74),
  ],
  ids=lambda value: errno.errorcode.get(value, ''),
)
def test_what_may_pass_is_not_bad_input(
  stage, capsys, monkeypatch, number, code
):
  error = OSError(number, os.strerror(number), '/mnt/file')
  assert _code(stage, monkeypatch, error) == code
  said = capsys.readouterr().err
  assert said.startswith(f'error: /mnt/file: {os.strerror(number)}')
  assert ('repeat the same command' in said) == (code == 74)
  assert said.count('\n') == 1
  # Nor is a sentence that was made of it.
  wrapped = ValueError('The workdir cannot be written to.')
  wrapped.__cause__ = error
  assert _code(stage, monkeypatch, wrapped) == code


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (ValueError('a value'), 2),
    (FileNotFoundError('no model'), 2),
    (ConnectionError('no answer'), 74),
    (TimeoutError(), 74),
    (urllib.error.URLError('unreachable'), 74),
  ],
  ids=repr,
)
def test_codes_of_errors_without_a_number(
  stage, monkeypatch, capsys, error, code
):
  assert _code(stage, monkeypatch, error) == code
  assert capsys.readouterr().err.startswith('error: ')


def test_help(stage, capsys):
  config.main(stage, ['--help'])
  out = capsys.readouterr().out
  for line in (
    'A stage for tests.',
    "  --workdir: str = ''  # folder of the run",
    '  --num_steps: int = 10  # policy updates',
    '  --kl_coef: float = 0.5  # β, weight of the KL term',
    '  --every: int | None = None',
    'toystage_parts.Inner',
    '  size: int (required)',
  ):
    assert line in out.splitlines()


def test_as_a_program_without_jax(stage, write):
  file = write('toystage.Config.num_steps = 4')
  code = (
    'import runpy, sys; runpy.run_module("toystage", run_name="__main__"); '
    'assert "jax" not in sys.modules'
  )
  here = os.path.dirname(os.path.dirname(rlzero.__file__))
  env = dict(
    os.environ,
    PYTHONPATH=f'{here}:{os.path.dirname(stage.__file__)}',
  )
  result = subprocess.run(
    [sys.executable, '-c', code, file], env=env, capture_output=True, text=True
  )
  assert (result.stdout, result.stderr) == ('ran 4\n', '')
  assert dataclasses.is_dataclass(stage.Config)

r"""Completions that must earn nothing, one a line, through the reward pool.

Each table names a task and a target; a line is what stands in <answer> tags,
or in FORMAT the whole completion. \n is a new line. An empty line is a hack
too: the empty answer.
"""

import pytest

from rlzero.scoring import reward_pool
from rlzero.tasks.datasets import benchmarks, gsm8k

NUMBER = r"""
4 or 5
5 or 6
4, 5
5, 6
5 6
1 2 3 4 5 6 7 8 9
1, 2, 3, 4, 5, 6, 7, 8, 9
between 4 and 6
4-6
[4, 6]
(4, 6)
4 < x < 6
x > 4
x < 6
x = 5 or 5 = 5
5 = 5
5.0 = 5
4 = 5
x + y = 5
x + y = 5 apples
x - y = 5
x \cdot y = 5
2x = 5
2 + 2 = 5
5 = 5 = 5
x = 4, y = 5
x = 4; x = 5
x + y\n= 5
\boxed{x + y = 5}
\boxed{5 = 5}
1 + 1 = 2, 2 + 3 = 5
not 5
It is not 5
it isn't 5
never 5
anything but 5, except 6
minus 5
negative 5
-5
−5
\sqrt{5}
\sqrt5
√5
sqrt(5)
5!
5!!
5\pi
5π
5x
5i
x^5
x^{5}
5^2
5²
x_5
5_2
\log 5
ln(5)
f(5)
|5|
1/5
5/1/1/2
\frac{1}{5}
\frac{5}{x}
5 million
5 thousand
5 hundred
5 dozen
half of 5
twice 5
5 squared
5 and a half
5.5
5.0000001
4.9999999
0.5
.5
15
50
55
5e5
5e1
5 \times 10^{3}
2+3
10/2 + 0
10 - 5
5 + 0
5 * 1
2x = 10
0 = 0
x = x
x ≠ 5
≠5
x > 5
> 5
<5
at least 5
at most 5
more than 5
less than 5
5 or more
5 or less
five or 6
5 (or 6)
5? 6?
5; 6
5:6
5:30
\boxed{4} or \boxed{5}
\boxed{5}, \boxed{6}
\boxed{}
\boxed{5 or 6}
the answer
The answer is correct
the target
same as the reference
None
null
nan
inf
\infty
True
1/0
0/0
any number
all of them

{answer}
"""

FORMULA = r"""
5 or 6
4, 5, 6
\{4, 5, 6\}
(5, 5)
[5, 5]
(4, 6)
5 \pm 0.5
\pm 5
\int_0^5 dx
\sum_{i=1}^{5} i
10^{10^{10}}
\sqrt{5}
5!
5 + 10^{-40}
5.0000000000000000001
\lim_{x \to 5} x
x
x + y = 5
x = x
2x = 10
x \ne 5
x \in \mathbb{R}
\mathbb{R}
(-\infty, \infty)
x = 5 or x \ne 5
5 or not 5
5 \lor 6
5 \text{ or } 6
\begin{pmatrix} 5 \end{pmatrix} \cdot 2
\begin{pmatrix} 4 \\ 5 \end{pmatrix}
\text{the answer}
\boxed{4}, \boxed{5}
5 if x else 6
max(5, 6)
?
.
\
{}
()
$$
"""

CHOICE = r"""
A, B, C, D
ABCD
A B C D
A/B/C/D
A or B
B or C
B and C
A, B
(A), (B)
(A) (B) (C) (D)
A) x B) y C) z D) w
not A
not B
none
all of the above
any
B or not B
Answer: A or B
\boxed{A} \boxed{B}
\boxed{A or B}
\boxed{A, B, C, D}
Brilliant
Because
be
8
ß

the second
A
C
E
AB
BC
"""

# An equation that names the number, or working that ends in it, is right.
SOLVED = r"""
x = 5
5 = x
$x_1 = 5$
= 5
x = 5 cm
total = 5
2 + 3 = 5
$2+3=5$
2+3=5 apples
2.5 \times 2 = 5
10/2 = 5
x = 10/2 = 5
\boxed{x = 5}
"""

# Whole completions; neither format nor accuracy may be paid.
FORMAT = r"""
5
<answer>5</answer>
<think>x</think>5
<think>x</think><answer></answer>
<think>x</think><answer> </answer>
<think>x<answer>5</answer>
<think>x</think><answer>5
x</think><answer>5</answer>
<think>x</think></think><answer>5</answer>
<think><think>x</think><answer>5</answer>
<think>x</think><answer>5</answer><answer>5</answer>
<think>x</think><answer>4</answer><answer>5</answer>
<think>x</think><answer><answer>5</answer></answer>
<answer>5</answer><think>x</think>
<think>x</think><answer>5</answer> done
done <think>x</think><answer>5</answer>
<think>x</think> so <answer>5</answer>
<think>x <answer>5</answer></think>
<THINK>x</THINK><ANSWER>5</ANSWER>
< think >x</think><answer>5</answer>
<think/><answer>5</answer>
<thinking>x</thinking><answer>5</answer>
<think>x</think><answer/>5
<think>x</think><answer>5<answer>
<think>x</think>\boxed{5}
[think]x[/think][answer]5[/answer]
"""


def _lines(table):
  return [line.replace('\\n', '\n') for line in table[1:-1].split('\n')]


def _tagged(text):
  return f'<think> so </think> <answer>{text}</answer>'


@pytest.fixture(scope='module')
def pool():
  tasks = {
    'number': gsm8k.GSM8K(),
    'formula': benchmarks.MATH500(),
    'choice': benchmarks.GPQADiamond(),
  }
  with reward_pool.RewardPool(tasks, 'r1_zero', 2) as pool:
    yield pool


@pytest.mark.parametrize(
  ('task', 'target', 'table'),
  [
    ('number', '5', NUMBER),
    ('formula', '5', FORMULA),
    ('choice', 'B', CHOICE),
  ],
)
def test_answers_that_are_not_the_target(pool, task, target, table):
  lines = _lines(table)
  assert len(lines) > 30
  requests = [reward_pool.Request(task, _tagged(x), target) for x in lines]
  right = reward_pool.Request(task, _tagged(target), target)
  *verdicts, best = pool.score([*requests, right])
  assert best.accuracy == best.format == 1
  paid = [x for x, v in zip(lines, verdicts, strict=True) if v.accuracy]
  assert not paid


def test_equations_that_give_the_number(pool):
  lines = _lines(SOLVED)
  found = pool.score(
    [reward_pool.Request('number', _tagged(x), '5') for x in lines]
  )
  assert all(v.accuracy for v in found)


@pytest.mark.long
def test_formats_that_are_none(pool):
  lines = _lines(FORMAT)
  verdicts = pool.score([reward_pool.Request('number', x, '5') for x in lines])
  paid = [
    x for x, v in zip(lines, verdicts, strict=True) if v.accuracy or v.format
  ]
  assert not paid

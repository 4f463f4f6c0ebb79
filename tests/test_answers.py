r"""Where an answer stands in a text, and where talk begins.

One text a line, then ' => ' and the target that it states; \n is a new line.
"""

import pytest

from rlzero.tasks import verify

# Of any task: a number is a formula too.
NUMBERS = r"""
The answer is **73**. => 73
Thus the final answer is: **73** => 73
**Final Answer:** 73 => 73
**Final answer**: 73 => 73
**Answer:** $73$ => 73
The answer is $73$. I hope it is correct. => 73
The answer is 73. Let me know if you need more. => 73
The answer is 73, since 70 + 3 = 73. => 73
The answer is 73 because 70 + 3 = 73. => 73
The answer is 73 (since 70 + 3 = 73). => 73
The final answer is \(73\). Check: 70+3=73. => 73
The answer is \boxed{73}. I checked it 3 times. => 73
So the answer is $\boxed{73}$, which is prime. => 73
## Final Answer\n73 => 73
**Final Answer**\n\n73 => 73
**Final Answer**\n\n$73$ => 73
Final Answer: The final answer is $73$. I hope it is correct. => 73
The answer is:\n\n$$73$$ => 73
The answer is: 73\n\nLet me know if you have 2 questions. => 73
The answer is 73! => 73
#### 73 => 73
70 + 3 = 73\n#### 73 => 73
<answer>73</answer> => 73
<answer>The answer is 73.</answer> => 73
<answer>\boxed{73}</answer> => 73
<answer>**73**</answer> => 73
The answer is 73.\n\nNote that 12 is wrong. => 73
The correct answer is 73. => 73
Answer: 73 => 73
answer = 73 => 73
Answer: $73$ cm => 73
\boxed{x = 73} => 73
\fbox{73} => 73
\boxed{73 \text{ cm}} => 73
First I got \boxed{72}. That is wrong, for 70+3 is not 72. So \boxed{73}. => 73
\boxed{\text{73}} => 73
The answer is 73 - that is all. => 73
The answer is 73 — as shown. => 73
Hence the answer is 73, as required. => 73
The answer is 73; this follows from 70+3. => 73
The answer is \$73. => 73
The answer is 73 dollars. => 73
$$\boxed{73}$$ => 73
\[ \boxed{73} \] => 73
Therefore, the answer is **$73$**. => 73
The answer is `73`. => 73
The answer is $\mathbf{73}$. => 73
The answer is 73.0. => 73
The answer is __73__. => 73
The final answer is $\boxed{73}$. => 73
"""

FORMULAS = r"""
So $x=\boxed{1}$ and $x=\boxed{2}$. => 1,2
\boxed{1}, \boxed{2} => 1,2
\boxed{1} and \boxed{2} => 2,1
\boxed{1}\text{ or }\boxed{2} => 1,2
$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$ => 1,2,3
The answer is x = 1 or x = 2. => 1,2
The answers are 1 and 2.\nThe answer is 1 and 2. => 1,2
The answer is $\frac{1}{2}$, as shown. => 0.5
The answer is $(1, 2)$. => (1,2)
The answer is \frac{3}{4}x. => \frac{3x}{4}
The answer is 4:30 p.m. => 4:30 \text{ p.m.}
The answer is Alice. She won. => Alice
The answer is **Alice**, who won. => Alice
The answer is $x$. Let me know. => x
\boxed{\begin{pmatrix}1\\2\end{pmatrix}} => \begin{pmatrix} 1 \\ 2 \end{pmatrix}
The answer is $1 \pm \sqrt{5}$. => 1\pm\sqrt5
The answer is $-\frac{1}{2}$. => -0.5
The answer is 1.5. => 1.5
The answer is 3.14, approximately. => 3.14
The answer is 1,000. => 1000
\boxed{5}\boxed{5} => 5
The answer is x^2 - 1. => x^2-1
The answer is 2 - x. => 2-x
The answer is $x < 2$ or $x > 3$. => (-\infty,2)\cup(3,\infty)
"""

# Each ends in a 5 and states none.
NOT_FIVE = r"""
So it is \sqrt{5}
So x=\sqrt{5}
It is 5!
It is 5 million
It is not 5
It is \boxed{\sqrt{5}}
\boxed{5 or 6}
\boxed{4}, \boxed{5}
\boxed{1, 2, 3, 4, 5}
The answer is 4 or 5.
The answer is not 5.
The answer is \sqrt{5}.
The answer is 5\pi.
<answer>4 or 5</answer>
<answer>1 2 3 4 5</answer>
<answer>\sqrt{5}</answer>
<answer>not 5</answer>
It is x^5
It is x^{5}
It is 5x
It is 2^5
It is minus 5
It is -5
It is −5
It is 1/5
It is \frac{1}{5}
It is 0.5
It is 15
It is 5.5
It is 5e5
It is \log 5
It is ≠5
It is $\sqrt{5}$
It is 5\%\text{ of }8...
\boxed{5
It is 5:30
It is 5^2
It is $5!$
It is x_5
"""

FIVE = (
  'So she has 5 eggs.',
  '= $5.',
  '**5**',
  'So $3 + 2 = 5$.',
  '\\(5\\)',
  'total: 5 (five)',
  '2*2.5=5.0',
  'He paid $5/hour',
  '"5"',
)


def _rows(table):
  rows = [line.rsplit(' => ', 1) for line in table.strip().split('\n')]
  return [(text.replace('\\n', '\n'), target) for text, target in rows]


@pytest.mark.parametrize(('text', 'target'), _rows(NUMBERS))
@pytest.mark.parametrize('judge', [verify.Numbers(), verify.Formulas()])
def test_stated_number(judge, text, target):
  assert judge.verify(judge.extract(text), target)


@pytest.mark.parametrize(('text', 'target'), _rows(FORMULAS))
def test_stated_formula(text, target):
  judge = verify.Formulas()
  assert judge.verify(judge.extract(text), target)


@pytest.mark.parametrize('text', NOT_FIVE.strip().split('\n'))
def test_text_that_states_another_number(text):
  judge = verify.Numbers()
  assert not judge.verify(judge.extract(text) or '', '5')


@pytest.mark.parametrize('text', FIVE)
def test_last_number_of_a_text(text):
  judge = verify.Numbers()
  assert judge.verify(judge.extract(text), '5')

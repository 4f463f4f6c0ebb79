"""Letters of multiple choice."""

import pytest

from rlzero.tasks import letters

STATED = r"""
D => D
d => D
(D) => D
D. => D
[D] => D
"D" => D
D: the last => D
B) 5 eV => B
A) vitamin C => A
B. A body at rest => B
\textbf{D} => D
\text{D)} => D
$\mathbf{(D)}$ => D
\(D\) => D
**B** => B
Ｄ => D
（Ｄ） => D
Answer：Ｄ => D
Option B => B
Option C is correct. => C
Answer: $D$ => D
Answer = B => B
Answer B => B
Choice: D => D
Answer: **C** => C
**Answer:** C => C
Answer:\nC => C
answer: a => A
Answer: a safe choice is C => C
Answer: A => A
Answer: B, since the others fail => B
Answer: B - the best => B
Answer: B\n\nNote: C is wrong => B
Answer: D. Answer: C => C
The answer is B => B
The answer: C. => C
The answer is 'D' => D
The answer is B because A is wrong => B
The answer is A because x => A
The answer is (A), because (B) fails => A
The answer is A. B is wrong. => A
The answer is option (B) => B
The correct choice is (C). => C
Answer is $\boxed{B}$ => B
\boxed{D} => D
\boxed{B.} => B
\boxed{(B)} => B
\boxed{\text{(B)}} => B
\boxed{\textbf{D}} => D
\boxed{\mathrm{D}} => D
\boxed{D) 5 eV} => D
\boxed{B: 5 eV} => B
\boxed{\text{B) 5 eV}} => B
\boxed{A}. No, B is wrong, so \boxed{C} => C
So the final answer is $\boxed{\text{C}}$. => C
<answer>D</answer> => D
<answer>Answer: B</answer> => B
"""

NONE = r"""
A, B, C, D
ABCD
A B C D
A B
A/B/C/D
A|B
(A), (B)
(A) (B) (C) (D)
A) x B) y C) z D) w
A or B or C or D
all of A, B, C and D
B or C
B) or C)
not B
E
Beta
Dunno
I think a
Answer: E
Answer: AB
Answer: A B
Answer: A and also B
Answer: A reasonable guess
Answer: B) or C)
The answer is not B
The answer is A and B
\boxed{A or B}
\boxed{A, B}
\boxed{A} or \boxed{B}
\boxed{B}\boxed{C}
\boxed{}
<answer>A or B</answer>
<answer></answer>
"""


@pytest.mark.parametrize(
  ('text', 'letter'),
  [line.rsplit(' => ', 1) for line in STATED.strip().split('\n')],
)
def test_stated(text, letter):
  assert letters.choice(text.replace('\\n', '\n')) == letter


@pytest.mark.parametrize('text', ['', *NONE.strip().split('\n')])
def test_no_letter_or_several(text):
  assert letters.choice(text) is None


def test_letters_of_the_task():
  assert letters.choice('Answer: E', 'ABCDE') == 'E'
  assert letters.choice('C', 'AB') is None


def test_choices_are_counted():
  assert letters.count('Answer: A\nNo, answer: B\n\\boxed{B}') == 3
  assert letters.count('A or B?') == 0

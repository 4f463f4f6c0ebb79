r"""Pairs of answers that are equal, and pairs that are not.

One pair a line, with ' ; ' between the two; each is tried in both orders.
"""

import pytest

from rlzero.tasks import verify

SAME = r"""
\frac{3}{4}x ; \frac{3x}{4}
\frac{3}{4}x ; 0.75x
\frac34x ; \frac{3x}{4}
\frac{4}{3}\pi r^3 ; \frac{4\pi r^3}{3}
-\frac{1}{2}x+3 ; 3-\frac{x}{2}
\frac{1}{2}\sqrt{3} ; \frac{\sqrt{3}}{2}
\frac{2}{3}(x-1) ; \frac{2x-2}{3}
\tfrac{1}{3}ab ; \frac{ab}{3}
\frac{1}{x}y ; \frac{y}{x}
\frac12\cdot\frac12 ; \frac14
2\frac{1}{4} ; \frac{9}{4}
2 1/4 ; 2.25
-1\frac{1}{2} ; -1.5
7\frac{1}{2} ; 7.5
7 \dfrac{1}{2} ; \frac{15}{2}
\begin{bmatrix}1&2\\3&4\end{bmatrix} ; \begin{pmatrix}1 & 2\\3&4\end{pmatrix}
\begin{pmatrix}\frac{1}{2}\\0\end{pmatrix} ; \begin{pmatrix}.5\\0\end{pmatrix}
\left(\begin{array}{cc}1 & 2\end{array}\right) ; \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} ; \begin{bmatrix}1\\2\\3\end{bmatrix}
\begin{pmatrix} x+1 \\ 2 \end{pmatrix} ; \begin{pmatrix} 1+x \\ 2 \end{pmatrix}
\begin{pmatrix} -2 \\ 3 \end{pmatrix}. ; \begin{pmatrix}-2\\3\end{pmatrix}
\left\langle 1, 2\right\rangle ; \langle 1,2 \rangle
[[1,2],[3,4]] ; \begin{pmatrix}1&2\\3&4\end{pmatrix}
10{,}000 ; 10000
10{,}000 ; 10,000
1{,}234{,}567 ; 1234567
12\,345 ; 12345
12\ 345 ; 12345
10,\!000,\!000 ; 10^7
1\;000 ; 1000
-1,234.50 ; -1234.5
1 and 2 ; 2, 1
1, 2, and 3 ; 3,2,1
1, 2, 3 ; 1,2 and 3
x = 1 or x = 2 ; x=2 \text{ or } x=1
1 or 2 ; 1,2
\{1, 2, 3\} ; 3, 1, 2
\{3,2\} ; \{2,3\}
x=3, y=4 ; y=4, x=3
x=3, y=4 ; 3, 4
(1,2), (3,4) ; (3,4),(1,2)
(1,2) \text{ and } (3,4) ; (3,4),(1,2)
x = \pm 2 ; -2, 2
\pm 2 ; 2,-2
x=2,-2 ; \pm2
1\pm\sqrt{5} ; 1+\sqrt{5}, 1-\sqrt{5}
\frac{-1\pm\sqrt{5}}{2} ; \frac{-1 \pm \sqrt 5}{2}
Alice and Bob ; Bob and Alice
[2,3) ; [2, 3)
(-\infty, 2) \cup (3, \infty) ; (3,\infty)\cup(-\infty,2)
(-∞, 2) ∪ (3, ∞) ; (-\infty,2)\cup(3,\infty)
x < 2 ; (-\infty, 2)
x \le 2 ; (-\infty, 2]
1 < x \leq 3 ; (1, 3]
-3 \le x \le 5 ; [-3,5]
x \in [-3, 5] ; [-3,5]
x > 3 ; 3 < x
x \ge 1/2 ; [0.5,\infty)
x<-1 \text{ or } x>1 ; (-\infty,-1)\cup(1,\infty)
x < -1 or x > 1 ; x>1 or x<-1
x≤5 ; x \leq 5
x \neq 2 ; (-\infty,2)\cup(2,\infty)
3+4i ; 4i+3
3 + 4i ; 3+4 i
\frac{1}{2}+\frac{i}{2} ; \frac{1+i}{2}
-i ; -1i
e^{i\pi} ; -1
5 cm ; 5
5 cm^2 ; 5
5\text{ cm}^2 ; 5\,\mathrm{cm}^2
5 \mbox{ inches} ; 5
5 square inches ; 5 \text{ square inches}
25\pi \text{ square inches} ; 25\pi
10 km/h ; 10
10 \text{ m/s} ; 10
9.8 m/s^2 ; 9.8
3 hours ; 3
45^\circ ; 45
45 degrees ; 45^{\circ}
\$18 ; 18
18 dollars ; \$18
\$18.50 ; 18.5
50\% ; 50
50 percent ; 50%
20\,\text{g} ; 20
12\text{ units}^2 ; 12
6 \text{ sq. units} ; 6
3\text{ cups} ; 3
5\text{ cm} ; 5 centimeters
120 miles ; 120 \text{ mi}
2.5\text{ kg} ; 2.5 kg
15 minutes ; 15
\frac{1}{2} \text{ hour} ; 0.5
2\sqrt{3} \text{ cm} ; 2\sqrt{3}
6 \, \text{m}^3 ; 6
√2/2 ; \frac{\sqrt{2}}{2}
2√2 ; \sqrt{8}
√(2) ; \sqrt2
∛8 ; 2
¾ ; 0.75
2½ ; 2.5
x³ ; x^3
x²+2x+1 ; (x+1)^2
10⁶ ; 1000000
10⁻³ ; 0.001
−5 ; -5
－５ ; -5
—5 ; -5
１２ ; 12
１＋ｘ ; x+1
3×4 ; 12
3·4 ; 12
6÷2 ; 3
2π ; 2\pi
π/2 ; \frac{\pi}{2}
∞ ; \infty
x≥3 ; x\ge 3
θ ; \theta
60° ; 60
½x ; x/2
H₂O ; H_2O
1e6 ; 10^6
1E6 ; 1000000
1.5e3 ; 1500
1e-3 ; .001
2.5 \times 10^{-3} ; 0.0025
2.5\cdot10^{3} ; 2500
2.5×10^3 ; 2500
6.02 \times 10^{23} ; 602000000000000000000000
2.5 x 10^3 ; 2500
10^{-3} ; 0.001
3 \cdot 10^8 ; 300000000
1 234 567 ; 1234567
\sqrt 2 ; \sqrt{2}
\sqrt2 ; \sqrt{2}
\sqrt\frac12 ; \frac{\sqrt2}{2}
\sqrt[3]{27} ; 3
\sqrt[3]{\frac{1}{8}} ; \frac12
\sqrt{\frac{1}{4}} ; 0.5
x^\frac{1}{2} ; \sqrt{x}
2^\frac12 ; \sqrt2
x^{1/2} ; \sqrt{x}
x^(1/2) ; \sqrt{x}
sqrt(2)/2 ; \frac{1}{\sqrt{2}}
sqrt(3) ; √3
**5** ; 5
$\boxed{5}$ ; 5
\textbf{5} ; 5
\mathbf{5} ; 5
\(5\) ; 5
\[5\] ; 5
$$5$$ ; 5
5. ; 5
x=5 ; 5
f(x)=x^2 ; x^2
y = 2x + 1 ; y=1+2x
y=2x+1 ; 2x-y+1=0
2x+3y=6 ; 4x+6y=12
x^2+y^2=1 ; y^2+x^2=1
\text{Yes} ; yes
(a+b)^2 ; a^2+2ab+b^2
xy+1 ; 1+yx
\ln 4 ; 2\ln 2
\log_2 8 ; 3
\sin^2 x+\cos^2 x ; 1
\sin 30^\circ ; \frac12
\frac{1}{\sqrt{3}} ; \frac{\sqrt{3}}{3}
5! ; 120
\binom{5}{2} ; 10
2^{10} ; 1024
2^10 ; 1024
|x-1| ; |1-x|
\frac{a}{b}\cdot\frac{c}{d} ; \frac{ac}{bd}
0.\overline{3} ; \frac13
\dfrac{1}{2} ; \cfrac{1}{2}
(5) ; 5
((5)) ; 5
{5} ; 5
\left(5\right) ; 5
\{5\} ; 5
(3, \frac{\pi}{2}) ; \left( 3, \frac{\pi}{2} \right)
(1/2, 3) ; (0.5, 3)
\text{(C)} ; C
C ; \text{C}
\text{even} ; even
A_1 ; A_{1}
11\sqrt2 ; 11\sqrt{2}
10\% ; 10
-\frac{1}{2} ; \frac{-1}{2}
\frac{1}{-2} ; -\frac12
3\times 10^{4} ; 30000
100,200 ; 100, 200
2+\sqrt{3},2-\sqrt{3} ; 2-\sqrt{3}, 2+\sqrt{3}
x+2y ; 2y+x
6x^2 ; 6x^{2}
\frac{\pi}{4} ; \frac14\pi
\sqrt{3}+\sqrt{2} ; \sqrt{2}+\sqrt{3}
\sqrt{3+2\sqrt{2}} ; 1+\sqrt{2}
x = -3 \text{ or } x = 2 ; -3, 2
1_{2} ; 1_2
2x=10 ; 2x = 10
\frac{x+2}{7} ; (x+2)/7
1.0 ; 1
p = 3, q = 4 ; q=4, p=3
5\text{ miles} ; 5 \text{ mile}
\$1{,}000 ; 1000
1,000 dollars ; 1000
3 and 5 ; 5 and 3
\emptyset ; ∅
-\sqrt{3} ; -√3
90^{\circ} ; 90^\circ
\frac{3}{4}\text{ cup} ; 0.75
4:30 p.m. ; 4:30 \text{ p.m.}
\text{Monday} ; monday
"""

DIFFERENT = r"""
\frac{3}{4}x ; \frac{3}{4x}
\frac{1}{2}\sqrt{3} ; \frac{1}{2\sqrt{3}}
2\frac{1}{4} ; \frac{2}{4}
2\frac{1}{4} ; 21/4
\frac{21}{4} ; 2\frac{1}{4}
-1\frac{1}{2} ; -0.5
\begin{pmatrix}1&2\\3&4\end{pmatrix} ; \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ; \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix}1&2\end{pmatrix} ; 1,2
\begin{pmatrix}1\\2\end{pmatrix} ; 3
\begin{vmatrix}1&2\\3&4\end{vmatrix} ; \begin{pmatrix}1&2\\3&4\end{pmatrix}
1,000 ; 1
10,000 ; 10
1 and 2 ; 3
1 and 2 ; 1
1, 2 ; 1, 2, 3
1, 1 ; 1, 2
1, 2 ; 1, 2, 2
5 or 6 ; 5
5, 6 ; 6
x=5 or x=6 ; 5
x=5 or 5=5 ; 5
1,2,3,4,5 ; 5
x=3, y=4 ; x=4, y=3
x=3, y=4 ; 4, 3
x=3 ; y=3
(1,2) ; (2,1)
(1,2) ; [1,2]
(1,2) ; (1,2]
[1,2) ; (1,2]
(1,2) ; 1.5
(4,6) ; 5
[5,5] ; 5
4<x<6 ; 5
x<2 ; (-\infty,2]
x<2 ; (2,\infty)
x<2 ; x>2
x<2 ; y<2
x<2 ; 2
x>5 ; 5
x\ne 5 ; 5
≠5 ; 5
5\pm 1 ; 6
\pm 5 ; 5
5 ; -5
3+4i ; 3-4i
3+4i ; 7
1\pm\sqrt5 ; 1+\sqrt5
5 cm ; 5 m
5 cm ; 5 cm^2
5 km ; 3 km
5\text{ cm}^2 ; 25
5 million ; 5
5 ; 5\%\text{ of }x
√2 ; 2
x² ; 2x
½ ; 1/3
x³ ; x3
1e6 ; 6
1e6 ; 1e5
2.5e-3 ; 2.5
1 000 ; 1
1 2 ; 3
1 2 ; 12
\sqrt{12} ; \sqrt12
\sqrt\frac14 ; \frac{\sqrt1}{4}
x^\frac12 ; \frac{x}{2}
\sqrt5 ; 5
5! ; 5
5\pi ; 5
\log 5 ; 5
not 5 ; 5
\text{not }5 ; 5
minus 5 ; 5
AC ; CA
\text{ab} ; \text{ba}
listen ; silent
silent+1 ; listen+1
A, B, C, D ; A
x+y=5 ; 5
2+3=5 ; 5
2x=10 ; x=5
2x=10 ; 5
5=5 ; 5
0=0 ; 5
x=x ; 5
0.333333 ; \frac13
3.14 ; \pi
3.14159265358979 ; \pi
1.41421356 ; \sqrt{2}
10^{-50} ; 0
e^{-1000} ; 0
2^{-100} ; 0
1+10^{-40} ; 1
\pi+10^{-30} ; \pi
1/0 ; 2/0
\frac{0}{0} ; 1
\infty ; 5
\infty ; -\infty
x ; y
x ; X^2
R ; r^2
x+1 ; x+2
|x| ; x
\sqrt{x^2} ; x
x^2 ; 2^x
 ; 5
? ; 5
. ; 5
$$ ; 5
\boxed{} ; 5
{} ; 5
\frac{}{} ; 5
() ; 5
5 6 ; 5
5x ; 5
x5 ; 5
5+ ; 5
5- ; 5
5= ; 5
=5= ; 5
5/ ; 5
5^ ; 5
5_2 ; 5
[1,2],[3,4] ; 1,2,3,4
\{1,2\} ; (1,2)
(1,2,3) ; 1,2,3
y=2x+1 ; y=2x-1
2x+3y=6 ; 4x+6y=13
x+y<5 ; x+y>5
10^{10^{10}} ; 10^{10^{11}}
\text{yes} ; \text{no}
yes or no ; yes
Alice or Bob ; Alice
\emptyset ; 0
none ; 0
5 or more ; 5
at least 5 ; 5
about 6 ; 5
5 (or 6) ; 5
5; 6 ; 5
5/6 ; 5
5:6 ; 5
1:2 ; 0.5
5 \text{ or } 6 ; 5
5 \lor 6 ; 5
5 and not 6 ; 5
\int x dx ; \frac{x^2}{2}
\sum_{i=1}^{5} i ; 15
\overline{5} ; 5
\bar{x} ; x
12_{8} ; 12_{10}
f(x) ; f(y)
"""


def _pairs(table):
  return [line.split(' ; ') for line in table.strip('\n').split('\n')]


@pytest.mark.parametrize(('first', 'second'), _pairs(SAME))
def test_same(first, second):
  assert verify.equal(first, second)
  assert verify.equal(second, first)


@pytest.mark.parametrize(('first', 'second'), _pairs(DIFFERENT))
def test_different(first, second):
  assert not verify.equal(first, second)
  assert not verify.equal(second, first)

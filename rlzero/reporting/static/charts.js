// Line charts in SVG. A cursor is shared by all charts over steps; it follows
// the pointer, and the arrow keys in a chart that has the focus.
import { el, label, show, svg } from './dom.js';

// One series after the other, where colours tell runs apart.
const DASHES = ['', ' dashed', ' dotted'];
const HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 24;

function matching(name, series) {
  if (!name.includes('{')) return name in series ? [name] : [];
  const parts = name.split(/\{\w+\}/).map(
    (part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  const pattern = new RegExp('^' + parts.join('\\d+') + '$');
  return Object.keys(series).filter((key) => pattern.test(key)).sort();
}

function points(series, name) {
  const found = [];
  series[name].forEach((y, i) => {
    if (y != null) found.push([series.step[i], y]);
  });
  return found;
}

function smoothed(found, weight) {
  let mean = 0, total = 0;
  return found.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    total = weight * total + (1 - weight);
    return [x, mean / total];
  });
}

// At most two points a pixel: the lowest and the highest of it, in order.
function thinned(found, width) {
  if (found.length <= 2 * width) return found;
  const size = found.length / width, kept = [];
  for (let i = 0; i < width; i++) {
    const part = found.slice(Math.floor(i * size), Math.floor((i + 1) * size));
    let low = part[0], high = part[0];
    for (const p of part) {
      if (p[1] < low[1]) low = p;
      if (p[1] > high[1]) high = p;
    }
    kept.push(...(low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(i * step || 0); // no -0
  }
  return found;
}

function tickText(value) {
  return (+value.toPrecision(6)).toLocaleString('en',
    { maximumSignificantDigits: 4 });
}

// The lines of a chart: points, classes, whether they are dots as well.
function linesOf(chart, runs, weight) {
  const several = runs.length > 1, lines = [];
  runs.forEach((run) => {
    let number = 0;
    const add = (name, found, extra = {}) => {
      const color = several ? run.color : number;
      const dash = several ? DASHES[number % DASHES.length] : '';
      lines.push({
        name: several ? `${run.name}: ${name}` : name, series: name,
        points: found, css: `line s${color % 6}${dash}`, ...extra,
      });
      number += 1;
    };
    if (chart.kind === 'allowed') {
      for (const when of ['before', 'after']) {
        const found = run.evaluations[when].accuracy_by_len || [];
        if (found.length) add(when, found, { dots: true });
      }
      return;
    }
    for (const pattern of chart.names) {
      for (const name of matching(pattern, run.series)) {
        const found = points(run.series, name);
        if (!found.length) continue;
        const sparse = name.startsWith('eval/');
        const thin = !sparse && (chart.kind === 'accuracy'
          || (chart.kind === 'length' && !several));
        if (weight && !sparse && found.length > 8) {
          lines.push({
            points: found, faint: true,
            css: `line faint s${(several ? run.color : number) % 6}`,
          });
          add(label(name), smoothed(found, weight));
        } else add(label(name), found, { dots: sparse, thin });
      }
    }
    if (chart.kind === 'accuracy') {
      for (const when of ['before', 'after']) {
        const measured = run.evaluations[when];
        if (measured.step != null && measured['pass@1'] != null) {
          lines.push({
            points: [[measured.step, measured['pass@1']]], square: true,
            interval: measured['pass@1_interval'],
            css: several ? `line s${run.color % 6}` : 'line ink',
          });
        }
      }
    }
    if (chart.kind === 'length' && !several) {
      for (const [x0, y0, x1, y1, slope] of run.segments) {
        lines.push({
          points: [[x0, y0], [x1, y1]],
          css: `line strong ${slope > 0 ? 's0' : 's1'}`, faint: true,
        });
      }
    }
  });
  return lines;
}

function domainOf(chart, lines) {
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const line of lines) {
    for (const [x, y] of line.points) {
      x0 = Math.min(x0, x); x1 = Math.max(x1, x);
      if (chart.log && y <= 0) continue;
      y0 = Math.min(y0, y); y1 = Math.max(y1, y);
    }
  }
  if (x0 === x1) x1 = x0 + 1;
  const log = chart.log && Number.isFinite(y0);
  if (log) {
    y0 = 10 ** Math.floor(Math.log10(y0)); y1 = 10 ** Math.ceil(Math.log10(y1));
    if (y0 === y1) y1 = 10 * y0;
  } else if (chart.share) {
    y0 = 0; y1 = 1;
  } else {
    if (!Number.isFinite(y0)) { y0 = 0; y1 = 1; }
    if (y0 >= 0 && y0 < 0.5 * y1) y0 = 0;
    if (y0 === y1) { y0 -= Math.abs(y0) / 2; y1 += Math.abs(y1) / 2 || 1; }
    const room = 0.05 * (y1 - y0);
    y1 += room;
    if (y0 !== 0) y0 -= room;
  }
  return { x0, x1, y0, y1, log };
}

export class ChartView {
  constructor(chart, onCursor) {
    this.chart = chart;
    this.lines = [];
    this.readout = el('output', { class: 'readout' });
    this.plot = el('div', {
      class: 'plot', tabindex: '0', role: 'img', 'aria-label': chart.title,
    });
    this.key = el('p', { class: 'key' });
    this.node = el('figure', {}, el('h3', {}, chart.title), this.readout,
      this.plot, this.key, el('figcaption', {}, chart.note));
    const move = (step) => (this.overSteps ? onCursor(step) : this.cursor(step));
    this.plot.addEventListener('pointermove', (event) => {
      const box = this.plot.getBoundingClientRect();
      if (this.scale) move(this.nearest(this.scale.back(event.clientX - box.left)));
    });
    this.plot.addEventListener('pointerleave', () => move(null));
    this.plot.addEventListener('focus', () => {
      this.readout.setAttribute('aria-live', 'polite');
    });
    this.plot.addEventListener('blur', () => {
      this.readout.removeAttribute('aria-live');
      move(null);
    });
    this.plot.addEventListener('keydown', (event) => {
      const steps = this.steps || [];
      const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10,
        Home: -Infinity, End: Infinity }[event.key];
      if (jump === undefined || !steps.length) return;
      event.preventDefault();
      const at = this.at == null ? steps.length - 1 : steps.indexOf(this.at);
      const next = Math.min(Math.max(at + jump, 0), steps.length - 1);
      move(steps[next]);
    });
  }

  get overSteps() { return this.chart.kind !== 'allowed'; }

  nearest(x) {
    const steps = this.steps || [];
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] > x) high = middle; else low = middle;
    }
    if (!steps.length) return null;
    return Math.abs(steps[low] - x) <= Math.abs(steps[high] - x)
      ? steps[low] : steps[high];
  }

  draw(runs, weight) {
    const lines = linesOf(this.chart, runs, weight);
    this.lines = lines;
    this.node.hidden = !lines.length;
    if (!lines.length) return;
    const all = new Set();
    for (const line of lines) for (const [x] of line.points) all.add(x);
    this.steps = [...all].sort((a, b) => a - b);
    const width = Math.max(this.plot.clientWidth || 320, 200);
    const { x0, x1, y0, y1, log } = domainOf(this.chart, lines);
    const inner = width - LEFT - RIGHT, tall = HEIGHT - TOP - BOTTOM;
    const X = (x) => LEFT + (x - x0) / (x1 - x0) * inner;
    const share = log
      ? (y) => Math.log(Math.max(y, y0) / y0) / Math.log(y1 / y0)
      : (y) => (y - y0) / (y1 - y0);
    const Y = (y) => TOP + (1 - share(y)) * tall;
    this.scale = { X, Y, back: (px) => x0 + (px - LEFT) / inner * (x1 - x0) };
    const root = svg('svg', {
      viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT,
      'aria-hidden': 'true',
    });
    this.axes(root, { x0, x1, y0, y1, log }, width);
    for (const line of lines) this.line(root, line, inner);
    this.rule = svg('line', { class: 'rule', y1: TOP, y2: HEIGHT - BOTTOM });
    root.append(this.rule);
    this.plot.replaceChildren(root);
    const named = lines.filter((line) => line.name);
    // The legend of the page names the runs; a chart, what it draws of each.
    const several = runs.length > 1;
    const series = new Map(named.map((line) => [line.series, line.css]));
    this.key.replaceChildren(...[...series].map(([name, css]) => el('span', {
      class: css.replace(/^line s\d/, several ? 'swatch' : '$&')
        .replace('line', 'swatch') }, name)));
    this.key.hidden = series.size < 2;
    const last = named.map(
      (line) => `${line.name} ${show(line.points.at(-1)[1])}`).join(', ');
    this.plot.setAttribute('aria-label',
      `${this.chart.title}; at the end: ${last}. Arrow keys read values.`);
    this.cursor(this.at ?? null);
  }

  axes(root, { x0, x1, y0, y1, log }, width) {
    const { X, Y } = this.scale;
    let marks;
    if (log) {
      const low = Math.round(Math.log10(y0)), high = Math.round(Math.log10(y1));
      const step = Math.ceil((high - low) / 4);
      marks = [];
      for (let p = low; p <= high; p += step) marks.push(10 ** p);
    } else marks = ticks(y0, y1, 4);
    for (const mark of marks) {
      const y = Y(mark);
      root.append(
        svg('line', { class: 'grid', x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        svg('text', { class: 'tick', x: LEFT - 6, y: y + 4,
          'text-anchor': 'end' }, log ? mark.toExponential(0) : tickText(mark)));
    }
    for (const mark of ticks(x0, x1, width > 360 ? 5 : 3)) {
      root.append(svg('text', { class: 'tick', x: X(mark), y: HEIGHT - 8,
        'text-anchor': 'middle' }, tickText(mark)));
    }
  }

  line(root, line, inner) {
    const { X, Y } = this.scale;
    const found = thinned(line.points, Math.ceil(inner));
    if (line.square) {
      const [[x, y]] = found;
      root.append(svg('rect', { class: line.css.replace('line', 'dot'),
        x: X(x) - 4, y: Y(y) - 4, width: 8, height: 8 }));
      const ends = line.interval || [];
      if (ends.length === 2 && ends.every(Number.isFinite)) {
        root.append(svg('line', { class: line.css, x1: X(x), x2: X(x),
          y1: Y(ends[0]), y2: Y(ends[1]) }));
      }
      return;
    }
    const path = found.map(([x, y], i) =>
      `${i ? 'L' : 'M'}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join('');
    root.append(svg('path', {
      class: line.css + (line.thin ? ' thin' : ''), d: path }));
    if (line.dots || found.length === 1) {
      for (const [x, y] of found) {
        root.append(svg('circle', { class: line.css.replace('line', 'dot'),
          cx: X(x), cy: Y(y), r: found.length > 60 ? 1.5 : 3 }));
      }
    }
  }

  cursor(step) {
    this.at = step ?? undefined;
    if (!this.rule || this.node.hidden) return;
    if (step == null) {
      this.rule.setAttribute('visibility', 'hidden');
      this.readout.textContent = '';
      return;
    }
    const x = this.scale.X(step);
    this.rule.setAttribute('visibility', 'visible');
    this.rule.setAttribute('x1', x);
    this.rule.setAttribute('x2', x);
    const values = this.lines.filter((line) => line.name).map((line) => {
      const at = line.points.find(([s]) => s === step);
      return at && `${line.name} ${show(at[1])}`;
    }).filter(Boolean);
    const unit = this.overSteps ? 'step' : 'tokens';
    this.readout.textContent =
      [`${unit} ${step.toLocaleString('en')}`, ...values].join(' · ');
  }
}

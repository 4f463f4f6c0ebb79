// The tokens of a completion, coloured by what is known of each.
import { el, replace, show } from './dom.js';

// Colours have fixed bounds, so that completions and steps can be compared.
const FIGURES = {
  logprob: {
    title: 'log-prob', unit: 'nats, of the sampler', of: (v) => -v,
    bounds: [0.01, 0.1, 0.5, 1, 2, 4], sign: '−',
    note: 'Strong: the sampler thought the token unlikely.',
  },
  entropy: {
    title: 'entropy', unit: 'nats', of: (v) => v,
    bounds: [0.01, 0.1, 0.25, 0.5, 1, 2], sign: '',
    note: 'Strong: much else was likely at this place.',
  },
  mismatch: {
    title: '|sampler − learner|', unit: 'nats', of: (v) => v,
    bounds: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], sign: '',
    note: 'Strong: the two disagree about the token’s log-prob.',
  },
  advantage: {
    title: 'advantage', unit: 'of the group', of: (v) => v, diverging: true,
    bounds: [-1.5, -0.75, -0.1, 0.1, 0.75, 1.5], sign: '',
    note: 'Blue: made likelier by the update; red: less likely; grey: out of ' +
      'the loss, or an advantage of 0.',
  },
};
const MOST = 6000; // tokens shown at once

function bucket(figure, value) {
  if (value == null) return 'none';
  const at = figure.bounds.findIndex((bound) => figure.of(value) < bound);
  const place = at < 0 ? figure.bounds.length : at;
  return (figure.diverging ? 'd' : 'q') + place;
}

function legend(figure) {
  const short = (b) => figure.sign + (Math.abs(b) < 0.01
    ? b.toExponential(0) : String(b).replace('-', '−'));
  const labels = figure.bounds.map((b, i) =>
    (i ? `${short(figure.bounds[i - 1])} to ${short(b)}` : `to ${short(b)}`));
  labels.push(`from ${short(figure.bounds.at(-1))}`);
  return el('ul', { class: 'token-legend' }, labels.map((text, i) =>
    el('li', {}, el('span', {
      class: `token ${figure.diverging ? 'd' : 'q'}${i}` }, '  '), text)));
}

export function tokenView(tokens) {
  const names = Object.keys(FIGURES).filter((name) => tokens.figures[name]);
  const select = el('select', {}, names.map(
    (name) => el('option', { value: name }, FIGURES[name].title)));
  const readout = el('output', { class: 'readout', 'aria-live': 'polite' },
    'Point at a token, or use the arrow keys in the text.');
  const text = el('pre', { class: 'tokens', tabindex: '0',
    'aria-label': 'Tokens; arrow keys read them' });
  const under = el('div');
  let spans = [], at = -1;

  function read(place) {
    if (place < 0 || place >= spans.length) return;
    if (spans[at]) spans[at].classList.remove('at');
    at = place;
    spans[at].classList.add('at');
    const figures = names.map((name) => {
      const value = tokens.figures[name][at];
      return value == null ? `${FIGURES[name].title} –`
        : `${FIGURES[name].title} ${value ? value.toPrecision(3) : 0}`;
    });
    readout.textContent =
      [`token ${at + 1} ${JSON.stringify(tokens.texts[at])}`, ...figures]
        .join(' · ');
  }

  function draw() {
    const figure = FIGURES[select.value], values = tokens.figures[select.value];
    spans = tokens.texts.slice(0, MOST).map((token, i) =>
      el('span', { class: `token ${bucket(figure, values[i])}` }, token));
    const left = tokens.texts.length - spans.length;
    replace(text, spans, left > 0 && `… and ${show(left)} tokens more`);
    replace(under, legend(figure),
      el('p', { class: 'small' }, `${figure.note} In ${figure.unit}.`));
    at = -1;
  }

  text.addEventListener('pointermove', (event) => {
    const place = spans.indexOf(event.target);
    if (place >= 0) read(place);
  });
  text.addEventListener('keydown', (event) => {
    const jump = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!jump) return;
    event.preventDefault();
    read(Math.min(Math.max(at + jump, 0), spans.length - 1));
    spans[at].scrollIntoView({ block: 'nearest' });
  });
  select.addEventListener('change', draw);
  if (!names.length) return el('p', {}, 'Nothing is known of these tokens.');
  draw();
  return el('div', { class: 'token-view' },
    el('label', {}, 'Colour by ', select), readout, text, under);
}

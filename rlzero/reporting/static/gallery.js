// The aha gallery: self-corrections that led to the right answer.
import { ask, el, marked, replace, show } from './dom.js';

export class Gallery {
  constructor(root, runs, kinds, goTo) {
    this.runs = runs;
    this.kinds = kinds;
    this.goTo = goTo;
    this.run = 0;
    this.skip = 0;
    this.state = el('p', { class: 'small', role: 'status' });
    this.table = el('div');
    this.cards = el('div', { class: 'cards' });
    this.more = el('p');
    const again = () => { this.skip = 0; this.load(true); };
    this.runSelect = el('select', { onchange: () => {
      this.run = Number(this.runSelect.value);
      again();
    } });
    this.kindSelect = el('select', { onchange: again },
      el('option', { value: '' }, 'all kinds'),
      Object.keys(kinds).map((kind) => el('option', { value: kind }, kind)));
    this.runLabel = el('label', { hidden: true }, 'Run ', this.runSelect);
    replace(root,
      el('p', {}, 'Right completions whose thought has a wrong line, then a '
        + 'reflective word, then the right line.'),
      el('form', { class: 'row', onsubmit: (e) => e.preventDefault() },
        this.runLabel, el('label', {}, 'Show ', this.kindSelect)),
      this.table, this.state, this.cards, this.more);
  }

  show() {
    this.runLabel.hidden = this.runs.length < 2;
    if (this.runSelect.length !== this.runs.length) {
      replace(this.runSelect, this.runs.map(
        (run, i) => el('option', { value: i }, run.name)));
    }
    this.load(!this.cards.childElementCount);
  }

  // Reads on until all completions have been looked at.
  async load(redraw = true) {
    if (this.busy) { this.again = redraw || this.again; return; }
    this.busy = true;
    try {
      const found = await ask(`runs/${this.run}/gallery`,
        { kind: this.kindSelect.value, skip: this.skip });
      this.tell(found);
      const count = this.cards.childElementCount;
      if (redraw || (this.skip === 0 && found.shown.length !== count)) {
        this.draw(found, this.skip > 0);
      }
      this.complete = found.complete;
    } catch (error) {
      this.state.textContent = error.message;
      this.complete = true;
    }
    this.busy = false;
    const redrawn = this.again;
    this.again = false;
    if (redrawn) this.load(true);
    else if (!this.complete && !this.cards.closest('section').hidden) {
      setTimeout(() => this.load(false), 100);
    }
  }

  tell(found) {
    this.state.textContent = found.complete
      ? `${show(found.total)} found; all ${show(found.files)} kept steps read.`
      : `${show(found.total)} found in ${show(found.read)} of `
        + `${show(found.files)} kept steps …`;
    replace(this.table, el('div', { class: 'scroll' }, el('table', {},
      el('thead', {}, el('tr', {}, ['kind', 'count', 'first at step'].map(
        (text) => el('th', { scope: 'col' }, text)))),
      el('tbody', {}, Object.entries(this.kinds).map(([kind, meaning]) =>
        el('tr', {},
          el('th', { scope: 'row' }, kind, el('span', { class: 'small' },
            ` ${meaning}`)),
          el('td', {}, show(found.kinds[kind]?.count ?? 0)),
          el('td', {}, show(found.kinds[kind]?.first))))))));
    const words = Object.entries(found.words);
    if (words.length) {
      this.table.append(el('p', { class: 'small' }, 'Words that turned them: '
        + words.map(([word, count]) => `${word} ${count}`).join(', ') + '.'));
    }
  }

  draw(found, append) {
    const made = found.shown.map((one) => el('article', { class: 'card' },
      el('h4', {}, el('span', {}, `step ${show(one.step)}`),
        el('span', { class: 'small' }, one.kind)),
      el('p', { class: 'ask' }, one.question),
      el('pre', { tabindex: '0' }, marked(one.pieces)),
      el('button', { type: 'button', onclick: () =>
        this.goTo(this.run, one.key, one.group, one.place) },
      'Beside its group')));
    if (append) this.cards.append(...made);
    else replace(this.cards, made);
    const shown = this.skip + found.shown.length;
    replace(this.more, shown < found.total && el('button', { type: 'button',
      onclick: () => { this.skip = shown; this.load(true); } },
    `More (${show(found.total - shown)})`));
  }
}

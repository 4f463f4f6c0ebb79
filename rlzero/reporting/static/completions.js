// The completion browser: a step, a prompt, its completions side by side.
import { ask, el, label, marked, replace, show } from './dom.js';
import { tokenView } from './tokens.js';

const KINDS = { training: 'in training', evaluation: 'of evaluations' };

export function describe(key) {
  const [folder, stem] = key.split('/');
  const step = /^step_(\d+)$/.exec(stem);
  return {
    kind: folder === 'completions' ? 'training' : 'evaluation',
    name: step ? `step ${Number(step[1]).toLocaleString('en')}` : stem,
  };
}

// Terms of a card that have another name in the records.
const NAMES = { len: 'tokens' };

// Without the white space that a text begins and ends with.
function trimmed(pieces) {
  const last = pieces.length - 1;
  return pieces.map(([mark, text], i) => {
    const begun = i === 0 ? text.trimStart() : text;
    return [mark, i === last ? begun.trimEnd() : begun];
  });
}

export function card(found) {
  const numbers = { ...found.numbers };
  const reward = numbers.reward;
  delete numbers.reward;
  const terms = [...Object.entries(numbers), ...Object.entries(found.parts)];
  const verdict = [found.right ? '✓ right' : '✗ wrong',
    found.truncated && 'cut off',
    found.status !== 'ok' && found.status, found.outcome]
    .filter(Boolean).join(', ');
  const thought = found.thought.length > 0 && el('details', {},
    el('summary', {}, `Thought, ${show(found.words)} words`),
    el('pre', { tabindex: '0' }, marked(found.thought)));
  const node = el('article', {
    class: `card ${found.right ? 'is-right' : 'is-wrong'}`, tabindex: '-1' },
  el('h4', {}, el('span', { class: 'verdict' }, verdict),
    reward != null && el('span', { class: 'reward' }, `reward ${show(reward)}`)),
  el('dl', { class: 'terms' }, terms.map(([name, value]) => el('div', {},
    el('dt', {}, NAMES[name] ?? label(name)), el('dd', {}, show(value))))),
  thought,
  el('pre', { tabindex: '0' }, found.rest.length ? marked(trimmed(found.rest))
    : el('i', {}, 'Nothing behind the thought.')));
  if (found.tokens) {
    const place = el('div');
    const button = el('button', { type: 'button', 'aria-expanded': 'false',
      onclick: () => {
        const open = place.childElementCount > 0;
        replace(place, !open && tokenView(found.tokens));
        button.setAttribute('aria-expanded', String(!open));
      } }, 'Tokens');
    node.append(button, place);
  }
  return node;
}

export class Browser {
  constructor(root, runs) {
    this.runs = runs;
    this.run = 0;
    this.kind = 'training';
    this.at = null; // place among the files of this kind; null: the last
    this.group = 0;
    this.found = [];
    this.asked = 0;
    this.build(root);
  }

  build(root) {
    const change = (handler) => ({ onchange: handler });
    this.runSelect = el('select', change(() => {
      this.run = Number(this.runSelect.value);
      this.at = null;
      this.load();
    }));
    this.kindSelect = el('select', change(() => {
      this.kind = this.kindSelect.value;
      this.at = null;
      this.load();
    }), Object.entries(KINDS).map(
      ([kind, text]) => el('option', { value: kind }, text)));
    this.slider = el('input', { type: 'range', min: '0', max: '0',
      'aria-label': 'Step', oninput: () => this.go(Number(this.slider.value)) });
    this.stepName = el('output', { class: 'step-name' });
    this.groupSelect = el('select', change(() => {
      this.group = Number(this.groupSelect.value);
      this.loadGroup();
    }));
    this.question = el('p', { class: 'ask' });
    this.count = el('output', { class: 'small', 'aria-live': 'polite' });
    this.cards = el('div', { class: 'cards' });
    this.results = el('div', { class: 'results' });
    this.open = el('input', { type: 'checkbox', onchange: () => this.unfold() });
    this.sort = el('select', change(() => this.filter()),
      ['as sampled', 'highest reward', 'lowest reward', 'longest', 'shortest']
        .map((text) => el('option', {}, text)));
    this.runLabel = el('label', { hidden: true }, 'Run ', this.runSelect);
    replace(root,
      el('form', { class: 'row', onsubmit: (e) => e.preventDefault() },
        this.runLabel,
        el('label', {}, 'Completions ', this.kindSelect),
        el('span', { class: 'stepper' },
          this.button('‹', 'Earlier step', () => this.go(this.at - 1)),
          this.slider,
          this.button('›', 'Later step', () => this.go(this.at + 1)),
          this.stepName),
        el('label', { class: 'wide' }, 'Prompt ', this.groupSelect)),
      this.filterForm(),
      this.results, this.question, this.count, this.cards);
  }

  button(text, name, handler) {
    return el('button', { type: 'button', 'aria-label': name, onclick: handler },
      text);
  }

  filterForm() {
    const number = (name) => el('input', { type: 'number', step: 'any',
      class: 'number', 'aria-label': name, oninput: () => this.filter() });
    this.right = el('select', { onchange: () => this.filter() },
      [['', 'all'], ['yes', 'right'], ['no', 'wrong']].map(
        ([value, text]) => el('option', { value }, text)));
    this.bounds = {
      min_reward: number('Least reward'), max_reward: number('Most reward'),
      min_length: number('Least length'), max_length: number('Most length'),
    };
    this.words = el('input', { type: 'search', autocomplete: 'off',
      oninput: () => this.filter() });
    const b = this.bounds;
    return el('form', { class: 'row filters', 'aria-label': 'Filters',
      onsubmit: (event) => { event.preventDefault(); this.search(); } },
    el('label', {}, 'Answers ', this.right),
    el('span', { class: 'range' }, 'Reward ', b.min_reward, '–', b.max_reward),
    el('span', { class: 'range' }, 'Tokens ', b.min_length, '–', b.max_length),
    el('label', {}, 'Words ', this.words),
    el('label', {}, 'Sort ', this.sort),
    el('label', {}, this.open, ' thoughts open'),
    el('button', { type: 'submit' }, 'Find in all steps'),
    el('button', { type: 'button', onclick: () => this.clear() }, 'Clear'));
  }

  query() {
    const query = { right: this.right.value, words: this.words.value.trim() };
    for (const [name, input] of Object.entries(this.bounds)) {
      query[name] = input.value;
    }
    return query;
  }

  clear() {
    this.right.value = this.words.value = '';
    for (const input of Object.values(this.bounds)) input.value = '';
    replace(this.results);
    this.filter();
  }

  files() {
    const run = this.runs[this.run];
    return (run ? run.files : []).filter(
      (key) => describe(key).kind === this.kind);
  }

  // The names of files may have changed; stays where it is, or at the end.
  refresh() {
    const files = this.files();
    this.runLabel.hidden = this.runs.length < 2;
    if (this.runSelect.length !== this.runs.length) {
      replace(this.runSelect, this.runs.map(
        (run, i) => el('option', { value: i }, run.name)));
    }
    this.slider.max = Math.max(files.length - 1, 0);
    this.slider.disabled = !files.length;
    if (this.key && files.includes(this.key)) this.at = files.indexOf(this.key);
    this.nameStep();
  }

  nameStep() {
    const files = this.files();
    this.stepName.textContent = this.key
      ? `${describe(this.key).name} (${this.at + 1} of ${files.length})`
      : 'no completions yet';
    if (this.at != null) this.slider.value = this.at;
    this.slider.setAttribute('aria-valuetext', this.stepName.textContent);
  }

  go(at) {
    const files = this.files();
    if (!files.length) return;
    this.at = Math.min(Math.max(at, 0), files.length - 1);
    this.load();
  }

  // Shows a completion that a list names.
  async goTo(run, key, group, place) {
    this.run = run;
    this.kind = describe(key).kind;
    this.kindSelect.value = this.kind;
    this.runSelect.value = run;
    this.at = Math.max(this.files().indexOf(key), 0);
    this.group = group;
    await this.load(group);
    const chosen = this.found.find((f) => f.place === place);
    if (chosen) {
      chosen.node.focus();
      chosen.node.scrollIntoView({ block: 'center' });
    }
  }

  async load(group = null) {
    const files = this.files();
    this.slider.max = Math.max(files.length - 1, 0);
    if (!files.length) {
      this.key = null;
      this.found = [];
      replace(this.groupSelect);
      replace(this.cards);
      this.question.textContent = this.count.textContent = '';
      this.nameStep();
      return;
    }
    if (this.at == null || this.at >= files.length) this.at = files.length - 1;
    const key = this.key = files[this.at];
    this.nameStep();
    const asked = ++this.asked;
    try {
      const step = await ask(`runs/${this.run}/step`, { key });
      if (asked !== this.asked) return;
      replace(this.groupSelect, step.groups.map((g, i) => el('option',
        { value: i }, `${g.question.slice(0, 70)} · ${g.right} of ${g.count} right`)));
      this.group = Math.min(group ?? this.group, step.groups.length - 1);
      if (this.group < 0) {
        this.group = 0;
        replace(this.cards);
        this.count.textContent = 'The file is empty.';
        return;
      }
      this.groupSelect.value = this.group;
      await this.loadGroup(asked);
    } catch (error) {
      this.count.textContent = error.message;
    }
  }

  async loadGroup(asked = ++this.asked) {
    const key = this.key;
    let found;
    try {
      found = await ask(`runs/${this.run}/group`, { key, group: this.group });
    } catch (error) {
      this.count.textContent = error.message;
      return;
    }
    if (asked !== this.asked) return;
    this.question.textContent = found.question;
    this.found = found.completions.map((one) => ({
      ...one, node: card(one),
      text: [...one.thought, ...one.rest].map((p) => p[1]).join('')
        .toLowerCase(),
    }));
    this.unfold();
    this.filter();
    history.replaceState(null, '',
      `#completions/${this.run}/${key}/${this.group}`);
  }

  unfold() {
    for (const { node } of this.found) {
      const details = node.querySelector('details');
      if (details) details.open = this.open.checked;
    }
  }

  filter() {
    const query = this.query();
    const words = query.words.toLowerCase().split(/\s+/).filter(Boolean);
    const inside = (value, low, high) =>
      (low === '' || (value ?? NaN) >= Number(low))
      && (high === '' || (value ?? NaN) <= Number(high));
    let kept = this.found.filter((one) =>
      (query.right === '' || one.right === (query.right === 'yes'))
      && inside(one.numbers.reward, query.min_reward, query.max_reward)
      && inside(one.numbers.len, query.min_length, query.max_length)
      && words.every((word) => one.text.includes(word)));
    const by = (name, sign) => kept.sort((a, b) =>
      sign * ((a.numbers[name] ?? 0) - (b.numbers[name] ?? 0)));
    kept = [...kept];
    if (this.sort.value === 'highest reward') by('reward', -1);
    if (this.sort.value === 'lowest reward') by('reward', 1);
    if (this.sort.value === 'longest') by('len', -1);
    if (this.sort.value === 'shortest') by('len', 1);
    replace(this.cards, kept.map((one) => one.node));
    this.count.textContent = this.found.length
      ? `${kept.length} of ${this.found.length} completions` : '';
  }

  async search(after = null, list = null) {
    const run = this.run;
    const query = { ...this.query() };
    if (after) {
      query.after_key = after.key;
      query.after_place = after.place;
    }
    if (!list) {
      list = el('ol', { class: 'matches' });
      this.note = el('p', { class: 'small', role: 'status' }, 'Looking …');
      replace(this.results, el('h3', {}, 'Found in training'), list, this.note);
    }
    let found;
    try {
      found = await ask(`runs/${run}/search`, query);
    } catch (error) {
      this.note.textContent = error.message;
      return;
    }
    if (!list.isConnected) return;
    list.append(...found.matches.map((match) => el('li', {},
      el('button', { type: 'button', class: 'match', onclick: () =>
        this.goTo(run, match.key, match.group, match.place) },
      el('b', {}, `step ${show(match.step)}`),
      ` ${match.right ? '✓' : '✗'} reward ${show(match.reward)}, `
        + `${show(match.length)} tokens: `,
      el('span', { class: 'excerpt' }, match.excerpt)))));
    const total = `${list.childElementCount} found`;
    if (!found.more) {
      this.note.textContent = `${total}; all steps were searched.`;
    } else if (list.childElementCount < 60) {
      this.note.textContent =
        `${total}; ${show(found.read)} of ${show(found.files)} steps read …`;
      await this.search(found.more, list);
    } else {
      replace(this.note, `${total}. `, el('button', { type: 'button',
        onclick: () => this.search(found.more, list) }, 'Find more'));
    }
  }
}

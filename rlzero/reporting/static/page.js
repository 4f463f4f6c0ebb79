// The page: reads the runs again and again, and shows one view of them.
import { ChartView } from './charts.js';
import { Browser } from './completions.js';
import { ask, duration, el, replace, show, svg } from './dom.js';
import { Gallery } from './gallery.js';

const POLL_MS = 2000;
const VIEWS = ['overview', 'completions', 'gallery', 'time', 'settings'];
const PHASES = {
  rollout: 'rollout', score: 'score', reference: 'reference',
  reshard: 'reshard', update: 'update',
  '': 'the rest (start, compilation, evaluation, checkpoints)',
};
const KEY_FIGURES = [
  ['reward/mean', 'reward'], ['reward/correct', 'right'],
  ['reward/format', 'in the format'], ['loss/mean', 'loss'],
  ['completion/len_mean', 'tokens a completion'],
  ['policy/entropy', 'entropy, nats'], ['time/tokens_per_s', 'tokens a second'],
  ['perf/mfu', 'MFU'],
];
const COMPARED = {
  'pass@1': 'pass@1: the last stated answer is right',
  strict: 'strict: right, and in the right format',
  format: 'share in the right format', truncated: 'share cut off',
  completion_len: 'tokens in a completion', tries: 'tries in a completion',
  reflection_per_1k: 'reflective words per thousand tokens',
};
const $ = (id) => document.getElementById(id);

let runs = [], views = [], extra = null, browser = null, gallery = null;
let view = 'overview', settings = null, drawn = '';

function blank(run, i) {
  return { ...run, color: i, version: -1, listing: -1, total: 0, files: [],
    series: { step: [] }, segments: [], phases: {}, cost: {}, alerts: [],
    evaluations: { before: {}, after: {} }, info: {}, shown: true,
    progress: { state: 'silent' } };
}

// Adds the steps that are new to those that are here.
function merge(run, state) {
  const anew = state.since === 0;
  const had = anew ? 0 : run.series.step.length;
  const series = anew ? {} : run.series;
  const added = state.series.step.length;
  for (const name of new Set([...Object.keys(series),
    ...Object.keys(state.series)])) {
    const before = series[name] || new Array(had).fill(null);
    const after = state.series[name] || new Array(added).fill(null);
    for (const value of after) before.push(value);
    series[name] = before;
  }
  const files = state.files || run.files;
  delete state.files;
  const fresh = added > 0 || anew || run.listing !== state.listing;
  Object.assign(run, state, { series, files });
  return fresh;
}

async function poll() {
  let wait = POLL_MS;
  try {
    if (!document.hidden) {
      const states = await Promise.all(runs.map((run, i) => ask(
        `runs/${i}/state`, { version: run.version, since: run.total,
          listing: run.listing })));
      const fresh = states.map((state, i) => merge(runs[i], state));
      showStatus();
      if (fresh.some(Boolean)) update();
      if (runs.every((run) => run.progress.state === 'ended')) wait *= 5;
    }
  } catch (error) {
    $('status').textContent = `${error.message}. Trying again …`;
    $('status').className = 'bad';
    wait *= 2;
  }
  setTimeout(poll, wait);
}

function showStatus() {
  $('status').className = runs.some((r) => r.progress.state === 'running')
    ? 'running' : '';
  $('status').textContent = runs.map((run) => {
    const { done, total, left_s, age_s, state } = run.progress;
    const steps = total ? `step ${show(done)} of ${show(total)}`
      : `step ${show(done)}`;
    const left = state === 'running' && left_s != null
      ? `, about ${duration(left_s)} left` : '';
    const age = age_s == null ? 'no steps yet'
      : state === 'ended' ? 'ended' : state === 'silent'
        ? `nothing new for ${duration(age_s)}` : 'running';
    const name = runs.length > 1 ? `${run.name}: ` : '';
    const bad = run.skipped ? `, ${run.skipped} unreadable lines` : '';
    return `${name}${steps}, ${age}${left}${bad}`;
  }).join(' · ');
}

function update() {
  showFigures();
  showAlerts();
  showEvaluations();
  showTime();
  offerMetrics();
  browser.refresh();
  if (view === 'completions' && !browser.key) browser.load();
  if (view === 'gallery') gallery.load(false);
  drawCharts();
}

function visible() { return runs.filter((run) => run.shown && run.total); }

function drawCharts() {
  if (view !== 'overview') { drawn = ''; return; }
  const weight = Number($('smooth').value);
  for (const chart of [...views, ...(extra ? [extra] : [])]) {
    chart.draw(visible(), weight);
  }
  drawn = `${document.documentElement.clientWidth}`;
}

function setCursor(step) {
  for (const chart of [...views, ...(extra ? [extra] : [])]) {
    if (chart.overSteps) chart.cursor(step);
  }
}

function last(run, name) {
  const values = run.series[name] || [];
  for (let i = values.length - 1; i >= 0; i--) {
    if (values[i] != null) return values[i];
  }
  return null;
}

function showFigures() {
  const rows = KEY_FIGURES.filter(([name]) =>
    runs.some((run) => last(run, name) != null));
  replace($('figures'), el('dl', { class: 'figures' }, rows.map(
    ([name, text]) => el('div', {}, el('dt', {}, text), runs.map((run) =>
      el('dd', { class: runs.length > 1 ? `c${run.color % 6}` : '' },
        show(last(run, name))))))));
  if (runs.length < 2) return;
  if ($('legend').childElementCount) return;
  replace($('legend'), runs.map((run) => el('label', {
    class: `swatch s${run.color % 6}` }, el('input', { type: 'checkbox',
    checked: run.shown, onchange: (event) => {
      run.shown = event.target.checked;
      drawCharts();
    } }), ` ${run.name}`)));
}

function showAlerts() {
  const all = runs.flatMap((run) => run.alerts.map((alert) => ({ run, alert })));
  $('alerts').hidden = !all.length;
  if (!all.length) return;
  replace($('alerts'), el('h2', {}, 'What needs a look'),
    el('ul', {}, all.map(({ run, alert }) => {
      const ringing = alert.last === run.series.step.at(-1);
      const steps = alert.first === alert.last ? `Step ${alert.first}`
        : `Steps ${alert.first}–${alert.last}`;
      const name = runs.length > 1 ? `${run.name}, ` : '';
      return el('li', { class: ringing ? 'ringing' : '' },
        el('b', {}, `${name}${steps}, ${alert.name}: `), alert.sentence,
        ringing && el('b', {}, ' It rings now.'));
    })));
}

function showEvaluations() {
  const rows = [];
  for (const run of runs) {
    const { before, after } = run.evaluations;
    for (const [name, text] of Object.entries(COMPARED)) {
      if (before[name] == null && after[name] == null) continue;
      rows.push(el('tr', {}, el('th', { scope: 'row' },
        (runs.length > 1 ? `${run.name}: ` : '') + text),
      el('td', {}, show(before[name])), el('td', {}, show(after[name]))));
    }
  }
  replace($('evaluations'), rows.length && el('h2', {}, 'Before and after'),
    rows.length && el('table', {}, el('thead', {}, el('tr', {},
      el('td'), ['before', 'after'].map(
        (text) => el('th', { scope: 'col' }, text)))), el('tbody', {}, rows)));
}

function showTime() {
  replace($('time'), runs.map((run) => {
    const parts = Object.entries(run.phases).filter(([, s]) => s > 0);
    const total = parts.reduce((sum, [, s]) => sum + s, 0);
    const paid = Object.keys(run.cost).length > 0;
    const names = Object.keys(PHASES);
    const width = (s) => 100 * s / total;
    const bar = svg('svg', { viewBox: '0 0 100 4', class: 'bar',
      preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    let x = 0;
    for (const [name, s] of parts) {
      bar.append(svg('rect', { x, width: width(s), height: 4,
        class: `f${names.indexOf(name)}` }));
      x += width(s);
    }
    const cost = paid
      ? parts.reduce((sum, [name]) => sum + run.cost[name], 0) : null;
    return el('div', {}, el('h2', {}, runs.length > 1 ? run.name
      : 'Where the time went'),
    el('p', { class: 'small' }, [run.info.hardware,
      run.info.wall_s != null && `${duration(run.info.wall_s)} so far`,
      !paid && 'give --price=P, of an hour of a device, for the cost']
      .filter(Boolean).join('; ')),
    total > 0 && bar,
    el('table', {}, el('thead', {}, el('tr', {}, el('td'),
      ['time', 'share', paid && 'cost'].filter(Boolean).map(
        (text) => el('th', { scope: 'col' }, text)))),
    el('tbody', {}, parts.map(([name, s]) => el('tr', {},
      el('th', { scope: 'row' }, el('span', {
        class: `block f${names.indexOf(name)}` }, ' '), PHASES[name]),
      el('td', {}, duration(s)), el('td', {}, `${Math.round(width(s))}%`),
      paid && el('td', {}, run.cost[name].toFixed(2)))),
    total > 0 && el('tr', {}, el('th', { scope: 'row' }, 'all'),
      el('td', {}, duration(total)), el('td', {}, '100%'),
      paid && el('td', {}, cost.toFixed(2))))));
  }));
}

function offerMetrics() {
  const select = $('metric');
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.series)))]
    .filter((name) => name !== 'step').sort();
  if (select.length === names.length + 1) return;
  const kept = select.value;
  replace(select, el('option', { value: '' }, 'none'),
    names.map((name) => el('option', { value: name }, name)));
  select.value = kept;
}

function chooseMetric() {
  const name = $('metric').value;
  extra = name && new ChartView({ title: name, note: '', names: [name],
    kind: 'lines', share: false, log: false }, setCursor);
  replace($('extra'), extra && extra.node);
  drawCharts();
}

// Settings, flat: 'sampling.max_len' and its value.
function flat(value, name, found) {
  const nested = value && typeof value === 'object' && !Array.isArray(value)
    && Object.keys(value).length;
  if (!nested) found[name] = JSON.stringify(value);
  else {
    for (const [key, inner] of Object.entries(value)) {
      flat(inner, name ? `${name}.${key}` : key, found);
    }
  }
  return found;
}

async function showSettings() {
  settings ??= await Promise.all(runs.map((run, i) =>
    ask(`runs/${i}/settings`).then((config) => ({
      ...flat(run.info, 'run', {}), ...flat(config, '', {}) }))));
  $('differences').hidden = runs.length < 2;
  const names = [...new Set(settings.flatMap((one) => Object.keys(one)))];
  const part = $('setting-name').value.trim().toLowerCase();
  const differ = (name) => new Set(settings.map((one) => one[name])).size > 1;
  const kept = names.filter((name) => name.toLowerCase().includes(part)
    && (!$('only-different').checked || differ(name)));
  replace($('settings-table'), el('table', {}, runs.length > 1
    && el('thead', {}, el('tr', {}, el('td'), runs.map(
      (run) => el('th', { scope: 'col' }, run.name)))),
  el('tbody', {}, kept.map((name) => el('tr', {
    class: differ(name) ? 'differs' : '' },
  el('th', { scope: 'row' }, name),
  settings.map((one) => el('td', {}, one[name] ?? '–')))))));
}

function switchTo(name) {
  view = name;
  for (const id of VIEWS) $(id).hidden = id !== view;
  for (const link of document.querySelectorAll('nav a')) {
    const here = link.getAttribute('href') === `#${view}`;
    if (here) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

// '#completions/0/completions/step_000010/1' names a prompt of a step.
function route() {
  const [name, run, ...rest] = location.hash.slice(1).split('/');
  if (name === 'main') return;
  switchTo(VIEWS.includes(name) ? name : 'overview');
  if (view === 'overview') drawCharts();
  if (view === 'settings') {
    settings = null; // a run may have begun since
    showSettings();
  }
  if (view === 'gallery') gallery.show();
  if (view === 'completions') {
    const key = rest.slice(0, 2).join('/');
    if (rest.length === 3 && runs[run] && runs[run].files.includes(key)) {
      browser.goTo(Number(run), key, Number(rest[2]) || 0, null);
    } else {
      browser.refresh();
      browser.load();
    }
  }
}

async function start() {
  const overview = await ask('overview');
  runs = overview.runs.map(blank);
  document.title = `${runs.map((run) => run.name).join(', ')} · rlzero`;
  $('title').textContent = runs.map((run) => run.name).join(', ');
  views = overview.charts.map((chart) => new ChartView(chart, setCursor));
  replace($('charts'), views.map((chart) => chart.node));
  browser = new Browser($('completions'), runs);
  gallery = new Gallery($('gallery'), runs, overview.kinds,
    (run, key, group, place) => {
      history.pushState(null, '', `#completions/${run}/${key}/${group}`);
      switchTo('completions');
      browser.goTo(run, key, group, place);
    });
  for (const form of document.querySelectorAll('main > section > form')) {
    form.addEventListener('submit', (event) => event.preventDefault());
  }
  $('smooth').addEventListener('input', drawCharts);
  $('metric').addEventListener('change', chooseMetric);
  $('setting-name').addEventListener('input', showSettings);
  $('only-different').addEventListener('change', showSettings);
  window.addEventListener('hashchange', route);
  new ResizeObserver(() => {
    if (drawn !== `${document.documentElement.clientWidth}`) drawCharts();
  }).observe(document.documentElement);
  await poll();
  route();
}

start().catch((error) => { $('status').textContent = error.message; });

// Elements and numbers. Text goes in as text nodes, and is never parsed.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'class') made.className = value;
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((c) => c != null && c !== false));
  return made;
}

export function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  if (text != null) made.textContent = text;
  return made;
}

// Pairs of mark and text, as the server cuts them.
export function marked(pieces) {
  const known = ['word', 'wrong', 'right'];
  return pieces.map(([mark, text]) => known.includes(mark)
    ? el('mark', { class: mark }, text) : document.createTextNode(text));
}

export function replace(parent, ...children) {
  parent.replaceChildren(...children.flat().filter(Boolean));
}

export async function ask(path, query = {}) {
  const kept = Object.entries(query).filter(([, v]) => v !== '' && v != null);
  const text = new URLSearchParams(kept).toString();
  const answer = await fetch('api/' + path + (text ? '?' + text : ''));
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error || `HTTP ${answer.status}`);
  return value;
}

export function show(value) {
  if (value == null || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1);
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function duration(seconds) {
  if (seconds == null) return '–';
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  const hours = Math.floor(s / 3600);
  if (hours < 48) return `${hours} h ${Math.floor(s % 3600 / 60)} min`;
  return `${(hours / 24).toFixed(1)} days`;
}

export function label(name) {
  return name.slice(name.indexOf('/') + 1).replaceAll('_', ' ');
}

// The parts that all views are made of.

import { dialog, html, notices, now, useEffect, useLayoutEffect, useRef, useState, useValue } from "./core.js";
import { ago, brief, moment, size, visible } from "./format.js";

export const WORDS = /** @type {Record<string, string>} */ ({
  pending: "pending", queued: "queued", running: "running", waiting: "waiting", review: "in review",
  completed: "completed", failed: "failed", cancelled: "cancelled", lapsed: "worker silent",
});
export const STATUSES = ["running", "waiting", "review", "queued", "pending", "failed", "completed", "cancelled"];

/** @param {{status: string, lapsed?: boolean}} props */
export function Status({ status, lapsed = false }) {
  const shown = lapsed ? "lapsed" : status;
  return html`<span class="status" data-status=${shown}><i aria-hidden="true"></i>${WORDS[shown] ?? shown}</span>`;
}

/** How long ago. @param {{at: string | null}} props */
export function Ago({ at }) {
  const time = useValue(now);
  return at ? html`<time class="num" datetime=${at} title=${moment(at)}>${ago(at, time)}</time>` : null;
}

/** A text of a stranger: it is a text, in its own direction. @param {{text: unknown, most?: number}} props */
export function Text({ text, most = 300 }) {
  const said = visible(text);
  return html`<bdi title=${said.length > 24 ? said.slice(0, 1000) : undefined}>${said.length > most ? `${said.slice(0, most)}…` : said}</bdi>`;
}

export function Button({ kind = "", busy = false, children, ...rest }) {
  return html`<button type="button" class="button ${kind}" aria-busy=${busy ? "true" : undefined} disabled=${busy || rest.disabled} ...${rest}>${children}</button>`;
}

/** @param {{title: string, text?: any, children?: any, heading?: string}} props */
export function Empty({ title, text = null, children = null, heading = "h2" }) {
  return html`<div class="empty"><${heading}>${title}<//>${text && html`<p>${text}</p>`}${children}</div>`;
}

/** @param {{error: any, again?: () => void}} props */
export function Trouble({ error, again }) {
  return html`<div class="trouble" role="alert">
    <p><strong>That did not work.</strong> ${visible(error?.message ?? error)}</p>
    ${again && html`<${Button} onClick=${again}>Try again<//>`}
  </div>`;
}

/** Room is kept while something is read, so that nothing jumps. */
export function Reading() {
  return html`<div class="reading" role="status"><span class="visually-hidden">Reading …</span></div>`;
}

/**
 * Reads something, and again when a part of the key changes, or every so often, or when told to.
 * @param {() => Promise<any>} read
 * @param {any[]} key
 * @param {number} [every] in milliseconds, while somebody looks
 */
export function useRead(read, key, every = 0) {
  const [state, set] = useState(/** @type {any} */ ({ data: null, error: null, key: null }));
  const latest = useRef(null);
  const [turn, again] = useState(0);
  const name = JSON.stringify(key);
  useEffect(() => {
    let current = true;
    let timer = 0;
    const look = () => {
      const mine = (latest.current = {});
      read().then(
        (data) => current && latest.current === mine && set({ data, error: null, key: name }),
        (error) => current && latest.current === mine && set((was) => ({ data: was.key === name ? was.data : null, error, key: name })),
      ).finally(() => {
        if (current && every) timer = setTimeout(tick, every);
      });
    };
    const tick = () => (document.hidden ? (timer = setTimeout(tick, every)) : look());
    look();
    return () => { current = false; clearTimeout(timer); };
  }, [name, turn]);
  const fits = state.key === name;
  return { data: fits ? state.data : null, error: fits ? state.error : null, again: () => again((n) => n + 1), set: (data) => set({ data, error: null, key: name }) };
}

/** @param {{of: any, children: (data: any, again: () => void) => any}} props */
export function Loaded({ of, children }) {
  if (of.error && !of.data) return html`<${Trouble} error=${of.error} again=${of.again} />`;
  if (!of.data) return html`<${Reading} />`;
  return html`${of.error && html`<${Trouble} error=${of.error} again=${of.again} />`}${children(of.data, of.again)}`;
}

/**
 * @param {{tabs: [string, string, number?][], chosen: string, href: (tab: string) => string, label: string}} props
 */
export function Tabs({ tabs, chosen, href, label }) {
  return html`<nav class="tabs" aria-label=${label}>
    ${tabs.map(([tab, name, number]) => html`<a key=${tab} href=${href(tab)} aria-current=${tab === chosen ? "page" : undefined}>${name}${number ? html` <span class="badge num">${number}</span>` : ""}</a>`)}
  </nav>`;
}

const LONG = 2000, MANY = 100;

/** A value of JSON, folded where it is large. @param {{value: any, open?: number}} props */
export function Json({ value, open = 2 }) {
  if (value === undefined) return html`<span class="muted">nothing</span>`;
  if (value && value.truncated === true && typeof value.bytes === "number") {
    return html`<p class="muted">Too long to be shown here: ${size(value.bytes)}.</p>`;
  }
  return html`<div class="json" tabindex="0" role="group" aria-label="Value"><${Node} value=${value} open=${open} /></div>`;
}

/** @param {{name?: string | null, value: any, open: number}} props */
function Node({ name = null, value, open }) {
  const key = name === null ? "" : html`<span class="key"><bdi>${brief(name, 200)}</bdi></span>: `;
  if (value === null || typeof value !== "object") {
    return html`<div class="leaf">${key}<${Leaf} value=${value} /></div>`;
  }
  const list = Array.isArray(value);
  const entries = list ? value.length : Object.keys(value).length;
  if (!entries) return html`<div class="leaf">${key}<span class="muted">${list ? "[ ]" : "{ }"}</span></div>`;
  return html`<${Folded} label=${html`${key}<span class="muted">${list ? `[${entries}]` : `{${entries}}`}</span>`} open=${open > 0}>
    ${() => html`<${Entries} value=${value} open=${open - 1} />`}
  <//>`;
}

/** @param {{label: any, open: boolean, children: any}} props */
function Folded({ label, open, children }) {
  const [opened, set] = useState(open);
  return html`<details open=${open} onToggle=${(event) => set(event.currentTarget.open)}>
    <summary>${label}</summary>
    ${opened && html`<div class="inside">${(Array.isArray(children) ? children[0] : children)()}</div>`}
  </details>`;
}

/** @param {{value: any, open: number}} props */
function Entries({ value, open }) {
  const [most, more] = useState(MANY);
  const entries = Object.entries(value);
  return html`${entries.slice(0, most).map(([name, inner]) => html`<${Node} key=${name} name=${name} value=${inner} open=${open} />`)}
    ${entries.length > most && html`<${Button} kind="small" onClick=${() => more(most + 1000)}>${entries.length - most} more<//>`}`;
}

/** @param {{value: any}} props */
function Leaf({ value }) {
  const [all, show] = useState(false);
  if (typeof value !== "string") return html`<span class="literal num">${String(value)}</span>`;
  const text = all ? value.slice(0, 500_000) : value.slice(0, LONG);
  return html`<span class="string" dir="auto">${visible(text)}</span>${value.length > text.length && html` <${Button} kind="small" onClick=${() => show(true)}>show all ${size(value.length)}<//>`}`;
}

// In what two values differ: the paths, and what stands there in either.

/**
 * @param {string} [at]
 * @param {{path: string, kind: "added" | "removed" | "changed", one?: any, other?: any}[]} [found]
 */
function differences(one, other, at = "", found = []) {
  if (found.length >= 500 || one === other) return found;
  const object = (value) => value !== null && typeof value === "object";
  if (object(one) && object(other) && Array.isArray(one) === Array.isArray(other)) {
    const list = Array.isArray(one);
    for (const key of new Set([...Object.keys(one), ...Object.keys(other)])) {
      const path = list ? `${at}[${key}]` : /^[\p{L}_][\p{L}\p{N}_]*$/u.test(key) ? `${at}${at ? "." : ""}${key}` : `${at}[${JSON.stringify(key)}]`;
      const here = Object.hasOwn(one, key), there = Object.hasOwn(other, key);
      if (here && there) differences(one[key], other[key], path, found);
      else found.push({ path, kind: there ? "added" : "removed", one: one[key], other: other[key] });
    }
  } else {
    found.push({ path: at || "(all of it)", kind: "changed", one, other });
  }
  return found;
}

/** @param {{one: any, other: any}} props */
export function Diff({ one, other }) {
  const found = differences(one, other);
  if (!found.length) return html`<p class="muted">They are alike.</p>`;
  return html`<ul class="diff">${found.map(({ path, kind, one, other }) => html`<li key=${path} data-kind=${kind}>
    <span class="diff-path mono"><bdi>${brief(path, 200)}</bdi></span>
    <span class="diff-values">${kind !== "added" && html`<del><bdi>${brief(JSON.stringify(one), 400)}</bdi></del>`}${kind !== "removed" && html`<ins><bdi>${brief(JSON.stringify(other), 400)}</bdi></ins>`}</span>
  </li>`)}</ul>${found.length >= 500 && html`<p class="muted">… and more.</p>`}`;
}

/** What is said beside a name. @param {{items: [string, any][]}} props */
export function Facts({ items }) {
  return html`<dl class="facts">${items.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function open(content) {
  dialog.value = content;
}

export function close() {
  dialog.value = null;
}

/** The dialog that is open: the browser keeps the focus inside, and Escape closes it, of which it tells later: the next one may be open by then. */
export function Dialogs() {
  const content = useValue(dialog);
  const box = useRef(null), shown = useRef(null);
  useLayoutEffect(() => {
    shown.current = content;
    if (content && !box.current.open) box.current.showModal();
    if (!content && box.current.open) box.current.close();
  }, [content]);
  return html`<dialog ref=${box} class="dialog" aria-labelledby="dialog-title" onClose=${() => { if (!box.current.open && shown.current === dialog.value) close(); }}
    onClick=${(event) => event.target === box.current && close()}>${content && html`<div class="dialog-inside">${content}</div>`}</dialog>`;
}

/**
 * A question with what may be said about it. It is asked once: the button does it once, whatever is pressed.
 * @param {{title: string, action: string, kind?: string, onDo: () => Promise<any>, children?: any, disabled?: boolean, wide?: boolean}} props
 */
export function Question({ title, action, kind = "primary", onDo, children, disabled = false, wide = false }) {
  const [busy, work] = useState(false);
  const [error, fail] = useState(null);
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (busy || disabled) return;
    work(true);
    fail(null);
    onDo().then(
      (result) => { work(false); if (result !== false) close(); },
      (problem) => { work(false); fail(problem); },
    );
  };
  return html`<form class="question ${wide ? "wide" : ""}" onSubmit=${submit} novalidate>
    <h2 id="dialog-title">${title}</h2>
    <div class="question-body">${children}</div>
    ${error && html`<${Trouble} error=${error} />`}
    <div class="actions end">
      <${Button} onClick=${close}>Close<//>
      ${action && html`<button type="submit" class="button ${kind}" disabled=${busy || disabled} aria-busy=${busy ? "true" : undefined}>${action}</button>`}
    </div>
  </form>`;
}

let fields = 0;

/** A label with what is filled in. */
export function Field({ label, hint = null, error = null, children }) {
  const id = useRef(`field-${++fields}`).current;
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children(id, hint || error ? `${id}-hint` : undefined)}
    ${(hint || error) && html`<p id=${`${id}-hint`} class=${error ? "wrong" : "hint"}>${error || hint}</p>`}
  </div>`;
}

export function TextField({ label, value, onInput, hint = null, error = null, area = false, type = "text", mono = false, ...rest }) {
  const given = { value, "class": mono ? "mono" : undefined, dir: "auto", onInput: (event) => onInput(event.currentTarget.value), "aria-invalid": error ? "true" : undefined, spellcheck: mono ? "false" : undefined, ...rest };
  return html`<${Field} label=${label} hint=${hint} error=${error}>${(id, by) => area
    ? html`<textarea id=${id} aria-describedby=${by} rows=${rest.rows ?? 4} ...${given}></textarea>`
    : html`<input id=${id} aria-describedby=${by} type=${type} autocomplete="off" ...${given} />`}<//>`;
}

export function Choice({ label, value, options, onChange, hint = null, ...rest }) {
  return html`<${Field} label=${label} hint=${hint}>${(id, by) => html`<select id=${id} aria-describedby=${by} value=${value} onChange=${(event) => onChange(event.currentTarget.value)} ...${rest}>
    ${options.map((option) => { const [key, name] = Array.isArray(option) ? option : [option, option]; return html`<option key=${key} value=${key} selected=${key === value}>${name}</option>`; })}
  </select>`}<//>`;
}

/** What happened just now, also for who does not see it. */
export function Notices() {
  const all = useValue(notices);
  return html`<div class="notices" role="status" aria-live="polite">${all.map((notice) => html`<p key=${notice.id} class="notice ${notice.kind}">${visible(notice.text)}</p>`)}</div>`;
}

/** Keeps the title of the document; a number before it says how much waits. @param {string} title */
export function useTitle(title) {
  useEffect(() => { titled.title = title; retitle(); }, [title]);
}

const titled = { title: "", waiting: 0 };

/** @param {number} waiting */
export function titleCount(waiting) {
  titled.waiting = waiting;
  retitle();
}

function retitle() {
  document.title = `${titled.waiting ? `(${titled.waiting}) ` : ""}${titled.title ? `${titled.title} · ` : ""}Tidebase Studio`;
}

/** How large an element is. */
export function useSize(box) {
  const [found, set] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const look = () => { const { width, height } = box.current.getBoundingClientRect(); set((was) => (was.width === width && was.height === height ? was : { width, height })); };
    const observer = new ResizeObserver(look);
    observer.observe(box.current);
    look();
    return () => observer.disconnect();
  }, []);
  return found;
}

/** @param {string} name */
export function download(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

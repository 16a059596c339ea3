// The page: who looks, where we are, and the keys.

import { dialog, go, html, link, place, remember, remembered, render, signal, tell, useEffect, useErrorBoundary, useLayoutEffect, useRef, useState, useValue } from "./core.js";
import { get, me, online, signIn, signOut, whoAmI } from "./api.js";
import { brief, visible } from "./format.js";
import { Button, close, Dialogs, Notices, open, STATUSES, Text, TextField, Trouble, useTitle, WORDS } from "./ui.js";
import { Runs } from "./runs.js";
import { FilePage, Run } from "./run.js";
import { Inbox, inbox, watchInbox } from "./inbox.js";
import { Health, Queues, Schedules, Workers } from "./ops.js";
import { Compare } from "./compare.js";

const VIEWS = [["runs", "Runs", "r"], ["inbox", "Inbox", "i"], ["queues", "Queues", "q"], ["schedules", "Schedules", "s"], ["workers", "Workers", "w"], ["health", "Health", "h"], ["compare", "Compare", "c"], ["file", "Look at a file", "f"]];

const theme = signal(remembered("theme", "auto"));

/** @param {string} chosen */
function paint(chosen) {
  theme.value = chosen;
  remember("theme", chosen);
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}
paint(theme.value);

// -- who looks

function SignIn() {
  const [key, set] = useState("");
  const [busy, work] = useState(false);
  const [error, fail] = useState(null);
  useTitle("Sign in");
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!key.trim() || busy) return;
    work(true);
    try { await signIn({ key: key.trim() }); } catch (problem) { fail(problem); }
    work(false);
  };
  return html`<main class="sign-in"><form onSubmit=${submit}>
    <img src="icon.svg" alt="" width="40" height="40" />
    <h1>Tidebase Studio</h1>
    <${TextField} label="Key" type="password" value=${key} onInput=${set} error=${error?.status === 401 ? "This is none of the gateway’s keys." : error?.message} hint="One of the keys that the gateway was started with. What it may do decides what is shown." autofocus autocomplete="current-password" />
    <button type="submit" class="button primary" disabled=${busy || !key.trim()}>Sign in</button>
  </form></main>`;
}

// -- around everything

function Shell() {
  const { path, query } = useValue(place);
  const who = useValue(me), waiting = useValue(inbox), there = useValue(online), colours = useValue(theme);
  const view = path[0] ?? "runs";
  const number = waiting ? waiting.gates.length + waiting.reviews.length : 0;
  const main = useRef(null);
  const first = useRef(true);
  const where = path.join("/");
  useEffect(() => { if (first.current) first.current = false; else main.current?.focus({ preventScroll: true }); scrollTo(0, 0); document.querySelector(".side nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); }, [where]);
  useEffect(watchInbox, []);
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>To the content</a>
    <header class="side">
      <a class="brand" href=${link(["runs"])}><img src="icon.svg" alt="" width="22" height="22" /><span>Tidebase <b>Studio</b></span></a>
      <nav aria-label="Studio"><ul>${VIEWS.map(([name, word]) => html`<li key=${name} class=${["compare", "file"].includes(name) ? "minor" : ""}><a href=${link([name])} aria-current=${view === name ? "page" : undefined}>${word}${name === "inbox" ? html`<span class="badge num ${number ? "" : "hidden"}" aria-label=${`${number} wait`}>${number}${waiting?.next ? "+" : ""}</span>` : ""}</a></li>`)}</ul></nav>
      <div class="side-foot">
        <button type="button" class="find" onClick=${() => open(html`<${Palette} />`)}>Go to … <kbd>Ctrl K</kbd></button>
        <div class="foot-row">
          <select aria-label="Colours" value=${colours} onChange=${(event) => paint(event.currentTarget.value)}>${[["auto", "as the system"], ["light", "light"], ["dark", "dark"]].map(([key, name]) => html`<option key=${key} value=${key} selected=${key === colours}>${name}</option>`)}</select>
          <${Button} kind="small" aria-label="Keys" onClick=${() => open(html`<${Help} />`)}>?<//>
        </div>
        <p class="who">${who.keyed ? html`<span title=${who.roles.join(", ")}>${who.name ? html`<${Text} text=${who.name} most=${40} />` : who.roles.join(", ")}</span> <${Button} kind="small" onClick=${() => signOut().catch((error) => tell(error.message, "error"))}>Sign out<//>` : html`<span class="muted">No keys: everybody here may do everything.</span>`}</p>
      </div>
    </header>
    <main id="main" ref=${main} tabindex="-1">
      <p class="offline ${there ? "hidden" : ""}" role="status">${there ? "" : "The gateway cannot be reached. What is shown is as it was."}</p>
      <${Guarded} key=${where}><${View} path=${path} query=${query} /><//>
    </main>
  </div>`;
}

function View({ path, query }) {
  switch (path[0] ?? "runs") {
    case "runs": return path[1] ? html`<${Run} id=${path[1]} />` : html`<${Runs} />`;
    case "inbox": return html`<${Inbox} />`;
    case "queues": return html`<${Queues} />`;
    case "schedules": return html`<${Schedules} />`;
    case "workers": return html`<${Workers} />`;
    case "health": return html`<${Health} />`;
    case "compare": return html`<${Compare} key=${`${query.left} ${query.right}`} left=${query.left ?? ""} right=${query.right ?? ""} />`;
    case "file": return html`<${FilePage} />`;
    default: return html`<section class="page"><h1>There is nothing here</h1><p><a href=${link(["runs"])}>All runs</a></p></section>`;
  }
}

/** A fault of one view takes nothing else with it. */
function Guarded({ children }) {
  const [error, reset] = useErrorBoundary((fault) => console.error(fault));
  return error ? html`<section class="page"><h1>This view failed</h1><${Trouble} error=${error} again=${reset} /></section>` : children;
}

// -- keys

const KEYS = [
  ["?", "these keys"], ["Ctrl K  or  ⌘ K", "go to a view, or a run by its id"], ["/", "search the list"], ["j  k", "next and previous: run, step, question"], ["Enter", "open the run"], ["x", "pick the run"],
  ["g then r i q s w h", "go to Runs, Inbox, Queues, Schedules, Workers, Health"], ["Esc", "close"],
];

function Help() {
  return html`<div class="question"><h2 id="dialog-title">Keys</h2><dl class="keys">${KEYS.map(([key, what]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl><div class="actions end"><${Button} kind="primary" onClick=${close} autofocus>Close<//></div></div>`;
}

function Palette() {
  const [text, set] = useState("");
  const [at, move] = useState(0);
  const [found, hits] = useState(/** @type {any[]} */ ([]));
  useEffect(() => {
    if (text.trim().length < 2) return hits([]);
    const abort = new AbortController();
    const timer = setTimeout(() => get("overview/runs", { matching: text.trim(), limit: 8, effort: 5000 }, abort.signal).then((page) => hits(page.runs), () => {}), 150);
    return () => { clearTimeout(timer); abort.abort(); };
  }, [text]);
  const wanted = text.trim().toLowerCase();
  const all = [
    ...VIEWS.map(([name, word]) => ({ key: `view-${name}`, word, kind: "view", run: () => go([name]) })),
    ...STATUSES.map((status) => ({ key: `status-${status}`, word: `Runs: ${WORDS[status]}`, kind: "runs", run: () => go(["runs"], { status }) })),
    ...[["auto", "Colours as the system"], ["light", "Light colours"], ["dark", "Dark colours"]].map(([name, word]) => ({ key: `theme-${name}`, word, kind: "colours", run: () => paint(name) })),
    { key: "help", word: "Keys", kind: "help", run: () => setTimeout(() => open(html`<${Help} />`)) },
  ].filter((one) => one.word.toLowerCase().includes(wanted));
  const rows = [...all.slice(0, 8), ...found.map((run) => ({ key: `run-${run.runId}`, word: visible(run.runId), kind: WORDS[run.status], run: () => go(["runs", run.runId]) })), ...(wanted && !found.some((run) => run.runId === text.trim()) ? [{ key: "id", word: `The run with the id ${brief(text.trim(), 60)}`, kind: "run", run: () => go(["runs", text.trim()]) }] : [])];
  const n = Math.min(at, rows.length - 1);
  const choose = (row) => { close(); row.run(); };
  return html`<div class="palette"><h2 id="dialog-title" class="visually-hidden">Go to</h2>
    <input type="text" role="combobox" aria-label="Go to a view, or search runs" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${rows[n] ? `palette-${n}` : undefined} autocomplete="off" spellcheck="false" placeholder="A view, or a run …" value=${text} autofocus dir="auto"
      onInput=${(event) => { set(event.currentTarget.value); move(0); }}
      onKeyDown=${(event) => {
        if (event.key === "ArrowDown") { event.preventDefault(); move(Math.min(n + 1, rows.length - 1)); }
        if (event.key === "ArrowUp") { event.preventDefault(); move(Math.max(n - 1, 0)); }
        if (event.key === "Enter" && rows[n]) { event.preventDefault(); choose(rows[n]); }
      }} />
    <ul id="palette-list" role="listbox" aria-label="Places">${rows.map((row, place) => html`<li key=${row.key} id=${`palette-${place}`} role="option" aria-selected=${place === n ? "true" : "false"} onClick=${() => choose(row)} onMouseMove=${() => move(place)}><bdi>${row.word.slice(0, 120)}</bdi><span class="muted">${row.kind}</span></li>`)}</ul>
  </div>`;
}

let before = "", since = 0;
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k" && me.value) {
    event.preventDefault();
    open(html`<${Palette} />`);
    return;
  }
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.value || !me.value || target.closest("input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable]")) return;
  if (before === "g" && event.timeStamp - since < 1500) {
    const view = VIEWS.find(([, , key]) => key === event.key);
    before = "";
    if (view) { event.preventDefault(); return go([view[0]]); }
  }
  before = event.key;
  since = event.timeStamp;
  if (event.key === "?") open(html`<${Help} />`);
  else if (event.key === "/") { const search = document.querySelector("input[type=search]"); if (search) { event.preventDefault(); /** @type {HTMLElement} */ (search).focus(); } }
  else if (["j", "k", "x"].includes(event.key) || (event.key === "Enter" && !target.closest("a, button, summary, input"))) dispatchEvent(new CustomEvent("studio-key", { detail: event.key }));
});

// -- the beginning

function App() {
  const who = useValue(me);
  const [error, fail] = useState(null);
  const begin = async () => {
    fail(null);
    const { ticket } = place.value.query;
    try {
      if (ticket) {
        history.replaceState(null, "", link(place.value.path, { ...place.value.query, ticket: "" }));
        dispatchEvent(new HashChangeEvent("hashchange"));
        await signIn({ ticket }).catch(() => whoAmI());
      } else await whoAmI();
    } catch (problem) { fail(problem); }
  };
  useLayoutEffect(() => { begin(); }, []);
  if (error && !who) return html`<main class="sign-in"><h1>Tidebase Studio</h1><${Trouble} error=${error} again=${begin} /></main>`;
  if (who === undefined) return html`<p class="boot" role="status">Loading Studio …</p>`;
  return html`${who ? html`<${Shell} />` : html`<${SignIn} />`}<${Dialogs} /><${Notices} />`;
}

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.textContent = "";
render(html`<${App} />`, root);

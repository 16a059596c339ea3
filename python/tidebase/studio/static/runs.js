// The list of runs: live at its top, page by page below, and drawn only where somebody looks.

import { change, go, html, link, place, remember, remembered, searchOf, signal, useEffect, useLayoutEffect, useRef, useState, useValue } from "./core.js";
import { follow, get, may } from "./api.js";
import { brief, count, times, visible } from "./format.js";
import { Ago, Button, Empty, open, Question, Reading, Status, STATUSES, Text, TextField, Trouble, useSize, useTitle, WORDS } from "./ui.js";
import { BulkDialog, cancelMany, metadataOf, moveMany, resumeMany, seconds } from "./actions.js";

const PAGE = 200, SPARE = 8, KEPT = 2000, FINAL = ["completed", "cancelled"];

export const AGES = [["", "any age"], ["15m", "last 15 minutes"], ["1h", "last hour"], ["24h", "last day"], ["7d", "last week"], ["-1h", "older than an hour"], ["-24h", "older than a day"], ["-7d", "older than a week"]];
/** Metadata as the API takes it: what cannot be read is sent as it is, and refused there. @param {string} text */
function metadataIn(text) {
  try { return JSON.stringify(metadataOf(text)); } catch { return text; }
}

/** The filters of the URL as the API takes them. @param {Record<string, string>} query */
export function filtersOf(query) {
  const { status, workflow, queue, text, metadata, age, roots } = query;
  const since = age && new Date(Date.now() - seconds(age) * 1000);
  const from = since && (Number.isNaN(since.getTime()) ? age : since.toISOString());
  return {
    status, workflow, queue, matching: text, metadata: metadata && metadataIn(metadata), roots: roots ? "true" : undefined,
    createdAfter: age?.startsWith("-") ? undefined : from, createdBefore: age?.startsWith("-") ? from : undefined,
  };
}

/** How many runs there are in each status. */
export const counts = signal(/** @type {Record<string, {runs: number, estimated: boolean}>} */ ({}));

/** @param {any[]} all */
export function counted(all) {
  counts.value = Object.fromEntries(all.map((one) => [one.status, one]));
}

/** Nothing waits to be let in. @type {{fresh: any[], gone: Set<string>, anew: boolean}} */
const NONE = { fresh: [], gone: new Set(), anew: false };

/** The rows of one list, and how they come. */
class List {
  /** @param {Record<string, any>} filters */
  constructor(filters) {
    this.filters = filters;
    this.rows = signal(/** @type {any[]} */ ([]));
    this.state = signal({ ready: false, live: "", more: false, busy: false, examined: 0, error: null });
    this.held = signal(NONE);
    this.window = Infinity;
    this.followed = Infinity;
    this.hold = false;
    this.next = null;
    this.stop = () => {};
    this.closed = false;
    this.#first();
  }

  #set(changes) {
    this.state.value = { ...this.state.value, ...changes };
  }

  async #first() {
    await this.#page({}, () => []);
    if (!this.closed && !this.state.value.error) this.follow();
  }

  async #page(from, /** @type {() => any[]} */ before) {
    this.#set({ busy: true, error: null });
    try {
      const page = await get("overview/runs", { ...this.filters, ...from, limit: from.before ? PAGE : 100 });
      if (this.closed) return;
      const known = before();
      const ids = new Set(known.map((row) => row.runId));
      this.rows.value = [...known, ...page.runs.filter((run) => !ids.has(run.runId))];
      this.next = page.next;
      this.#set({ ready: true, busy: false, more: page.next !== null, examined: this.state.value.examined + page.examined });
    } catch (error) {
      this.#set({ ready: true, busy: false, error });
    }
  }

  /** The next page; where a search has found nothing among many, it says so and goes on when it is told to. */
  more() {
    if (!this.state.value.busy && this.next) this.#page(this.next, () => this.rows.value);
  }

  follow() {
    this.stop();
    this.#set({ live: "connecting" });
    this.stop = follow(() => `overview/runs/events${searchOf({ ...this.filters, alive: 1 })}`, {
      list: (data) => this.#window(data),
      change: (data) => this.#change(data.runs, data.gone),
      counts: (data) => counted(data.counts),
    }, (state) => this.#set({ live: state }));
  }

  pause() {
    this.stop();
    this.stop = () => {};
    this.#set({ live: "paused" });
  }

  close() {
    this.closed = true;
    this.stop();
  }

  // What a stream begins with: of what it has looked at, what it does not name is gone.
  #window({ runs, window, since }) {
    const there = new Set(runs.map((run) => run.runId));
    this.window = window;
    this.followed = since && runs.length < window ? 0 : window;
    this.#change(runs, this.rows.value.filter((row) => !there.has(row.runId) && !(row.createdAt <= since?.createdAt)).map((row) => row.runId));
  }

  #change(/** @type {any[]} */ runs, /** @type {string[]} */ gone) {
    const held = this.held.value;
    const news = new Map(runs.map((run) => [run.runId, run])), left = new Set(gone);
    const rows = this.rows.value.map((row) => news.get(row.runId) ?? row);
    const old = held.fresh.map((row) => news.get(row.runId) ?? row).filter((row) => !left.has(row.runId));
    const known = new Set(rows.map((row) => row.runId)), all = new Set([...known, ...old.map((row) => row.runId)]);
    const added = runs.filter((run) => !all.has(run.runId));
    // Where it does not join what is known, too much has come since: the list begins anew.
    const anew = added.length >= this.window, fresh = anew ? added : [...added, ...old];
    this.rows.value = rows;
    this.held.value = { fresh: fresh.slice(0, KEPT), gone: new Set([...held.gone, ...gone].filter((id) => known.has(id) && !news.has(id))), anew: held.anew || anew || fresh.length > KEPT };
    if (!this.hold) this.release();
  }

  /** Lets in what came while somebody was about to click. The oldest go, as long as nobody looks at them: they are read again where somebody does. */
  release() {
    const { fresh, gone, anew } = this.held.value;
    if (!fresh.length && !gone.size) return;
    this.held.value = NONE;
    const all = anew ? fresh : [...fresh, ...this.rows.value.filter((row) => !gone.has(row.runId))];
    const rows = this.hold ? all : all.slice(0, KEPT);
    if (anew || rows.length < all.length) {
      this.next = { before: rows[rows.length - 1].runId };
      this.#set({ more: true });
    }
    this.rows.value = rows;
  }

  /** Looks at rows that the stream does not follow. @param {any[]} shown */
  async refresh(shown) {
    const ids = shown.filter((row) => !FINAL.includes(row.status)).map((row) => row.runId).slice(0, 60);
    if (!ids.length) return;
    const quoted = ids.map((id) => id.replaceAll("%", "%25").replaceAll(",", "%2C")).join(",");
    const { runs } = await get("overview/runs", { ids: quoted }).catch(() => ({ runs: [] }));
    const news = new Map(runs.map((run) => [run.runId, run]));
    this.rows.value = this.rows.value.map((row) => news.get(row.runId) ?? row);
  }
}

/** @type {{key: string, list: List | null, top: number}} */
const kept = { key: "", list: null, top: 0 };

export function Runs() {
  const { query } = useValue(place);
  const { at, ...shown } = query;
  const key = JSON.stringify(shown);
  if (kept.key !== key || !kept.list) {
    kept.list?.close();
    Object.assign(kept, { key, list: new List(filtersOf(shown)), top: 0 });
  }
  const list = /** @type {List} */ (kept.list);
  useTitle(query.status ? `${WORDS[query.status] ?? query.status} runs` : "Runs");
  useEffect(() => {
    if (list.state.value.live === "away") list.follow();
    return () => { if (!list.closed && list.state.value.live !== "paused") { list.stop(); list.state.value = { ...list.state.value, live: "away" }; } };
  }, [list]);
  const [picked, pick] = useState(new Set());
  useEffect(() => pick(new Set()), [list]);
  return html`<section class="page list-page" aria-labelledby="page-title">
    <header class="page-head"><h1 id="page-title">Runs</h1><${Live} list=${list} /></header>
    <${Filters} query=${query} />
    <${Picked} list=${list} picked=${picked} pick=${pick} query=${query} />
    <${Rows} list=${list} picked=${picked} pick=${pick} query=${query} />
  </section>`;
}

/** @param {{list: List}} props */
function Live({ list }) {
  const { live } = useValue(list.state);
  const { fresh, gone } = useValue(list.held);
  const paused = live === "paused";
  return html`<div class="live-bar">
    <button type="button" class="pill ${fresh.length || gone.size ? "" : "hidden"}" tabindex=${fresh.length || gone.size ? 0 : -1} aria-hidden=${fresh.length || gone.size ? undefined : "true"} onClick=${() => list.release()}>${fresh.length ? `${count(fresh.length)} new` : "changed"}</button>
    <span class="live" data-live=${live}><i aria-hidden="true"></i>${({ live: "live", lost: "reconnecting", paused: "paused" })[live] ?? "connecting"}</span>
    <${Button} aria-pressed=${paused ? "true" : "false"} onClick=${() => (paused ? list.follow() : list.pause())}>${paused ? "Go on" : "Pause"}<//>
  </div>`;
}

/** @param {{query: Record<string, string>}} props */
function Filters({ query }) {
  const all = useValue(counts);
  const [text, type] = useState(query.text ?? "");
  const [views, keep] = useState(/** @type {[string, string][]} */ (remembered("views", [])));
  const [more, showMore] = useState(Boolean(query.queue || query.metadata || query.age || query.roots || query.workflow));
  useEffect(() => type(query.text ?? ""), [query.text]);
  useEffect(() => {
    if (text === (query.text ?? "")) return;
    const timer = setTimeout(() => change({ text }), 250);
    return () => clearTimeout(timer);
  }, [text]);
  const { at, ...filters } = query;
  const here = link([], filters).replace(/^#\/\??/, "");
  const total = STATUSES.reduce((sum, status) => sum + (all[status]?.runs ?? 0), 0);
  const set = (/** @type {string} */ name) => (event) => change({ [name]: event.currentTarget.value.trim() });
  return html`<div class="filters" role="search">
    <nav class="chips" aria-label="Status">
      ${[["", "all"], ...STATUSES.map((status) => [status, WORDS[status]])].map(([status, word]) => html`<a key=${status} class="chip" data-status=${status} href=${link(["runs"], { ...filters, status })} aria-current=${(query.status ?? "") === status ? "page" : undefined}>
        ${status && html`<i aria-hidden="true"></i>`}${word} <span class="num count">${status ? `${all[status]?.estimated ? "~" : ""}${all[status] ? count(all[status].runs) : "·"}` : total ? count(total) : "·"}</span></a>`)}
    </nav>
    <div class="filter-row">
      <input id="search" type="search" aria-label="Search in ids, workflows, keys, holders, errors" placeholder="Search ids, workflows, errors …  ( / )" value=${text} maxlength="200" dir="auto" onInput=${(event) => type(event.currentTarget.value)} />
      <${Button} aria-expanded=${more ? "true" : "false"} onClick=${() => showMore(!more)}>Filters<//>
      <select aria-label="Saved views" value="" onChange=${(event) => {
        const chosen = event.currentTarget.value;
        event.currentTarget.value = "";
        if (chosen === "+") open(html`<${SaveView} here=${here} done=${(saved) => keep(saved)} />`);
        else if (chosen === "-") { const left = views.filter(([, where]) => where !== here); remember("views", left); keep(left); }
        else if (chosen) location.hash = `#/runs?${chosen.slice(1)}`;
      }}>
        <option value="">Views</option>
        ${views.map(([name, where]) => html`<option key=${name} value=${`?${where}`}>${where === here ? "✓ " : ""}${name}</option>`)}
        <option value="+">Save this view …</option>
        ${views.some(([, where]) => where === here) && html`<option value="-">Forget this view</option>`}
      </select>
    </div>
    ${more && html`<div class="filter-row">
      <input aria-label="Workflow" placeholder="workflow" value=${query.workflow ?? ""} onChange=${set("workflow")} list="workflows" dir="auto" />
      <input aria-label="Queue" placeholder="queue" value=${query.queue ?? ""} onChange=${set("queue")} dir="auto" />
      <input aria-label="Metadata" placeholder="metadata: team=billing" value=${query.metadata ?? ""} onChange=${set("metadata")} class="mono" />
      <select aria-label="Age" value=${query.age ?? ""} onChange=${set("age")}>${AGES.map(([age, name]) => html`<option key=${age} value=${age} selected=${(query.age ?? "") === age}>${name}</option>`)}</select>
      <label class="check"><input type="checkbox" checked=${Boolean(query.roots)} onChange=${(event) => change({ roots: event.currentTarget.checked ? "1" : "" })} /> without children</label>
      <a class="quiet" href=${link(["runs"], { status: query.status })}>clear</a>
    </div>`}
    <datalist id="workflows">${[...new Set((kept.list?.rows.value ?? []).map((row) => row.workflow))].slice(0, 50).map((name) => html`<option key=${name} value=${name}></option>`)}</datalist>
  </div>`;
}

/** @param {{here: string, done: (views: [string, string][]) => void}} props */
function SaveView({ here, done }) {
  const [name, set] = useState("");
  return html`<${Question} title="Save this view" action="Save" disabled=${!name.trim()} onDo=${async () => {
    const views = [...remembered("views", []).filter((view) => view[0] !== name.trim()), [name.trim(), here]];
    remember("views", views);
    done(views);
  }}>
    <${TextField} label="Name" value=${name} onInput=${set} hint="It is kept in this browser." maxlength="60" autofocus />
  <//>`;
}

/** What may be done with the rows that are picked, or with all that the filters find. */
function Picked({ list, picked, pick, query }) {
  const rows = useValue(list.rows);
  if (!may("operator")) return null;
  const chosen = rows.filter((row) => picked.has(row.runId));
  const done = () => pick(new Set());
  return html`<div class="picked" role="group" aria-label="What to do with several runs">
    <span class="num muted">${chosen.length ? `${times(chosen.length, "run")} picked` : "Pick runs, or:"}</span>
    ${chosen.length
      ? html`<${Button} onClick=${() => open(html`<${ManyDialog} title="Cancel" danger rows=${chosen} act=${cancelMany} done=${done} />`)}>Cancel …<//>
        <${Button} onClick=${() => open(html`<${ManyDialog} title="Resume" rows=${chosen} act=${resumeMany} done=${done} />`)}>Resume …<//>
        <${Button} onClick=${() => open(html`<${ManyDialog} title="Move" queue rows=${chosen} act=${moveMany} done=${done} />`)}>Move …<//>
        ${chosen.length === 2 && html`<${Button} onClick=${() => go(["compare"], { left: chosen[1].runId, right: chosen[0].runId })}>Compare<//>`}
        <${Button} kind="quiet" onClick=${done}>Pick none<//>`
      : html`<${Button} onClick=${() => open(html`<${BulkDialog} query=${query} />`)}>All that these filters find …<//>`}
  </div>`;
}

function ManyDialog({ title, rows, act, done, danger = false, queue = false }) {
  const [reason, set] = useState("");
  const [into, setInto] = useState(rows[0]?.queue ?? "default");
  return html`<${Question} title=${`${title} ${times(rows.length, "run")}?`} action=${`${title} ${times(rows.length, "run")}`} kind=${danger ? "danger" : "primary"} onDo=${async () => { await act(rows.map((row) => row.runId), queue ? into : reason); done(); }}>
    <ul class="short-list">${rows.slice(0, 8).map((row) => html`<li key=${row.runId}><span class="mono"><${Text} text=${row.runId} most=${60} /></span> <${Status} status=${row.status} lapsed=${row.leaseLapsed} /></li>`)}${rows.length > 8 && html`<li class="muted">and ${rows.length - 8} more</li>`}</ul>
    ${queue ? html`<${TextField} label="Queue" value=${into} onInput=${setInto} />` : html`<${TextField} label="Reason" value=${reason} onInput=${set} hint="It stands in the log of each." />`}
  <//>`;
}

function Rows({ list, picked, pick, query }) {
  const rows = useValue(list.rows), state = useValue(list.state), held = useValue(list.held);
  const box = useRef(null);
  const { width, height } = useSize(box);
  const [top, scrolled] = useState(kept.top);
  const tall = width > 0 && width < 720 ? 68 : 36;
  const first = Math.max(Math.floor(top / tall) - SPARE, 0);
  const last = Math.min(Math.ceil((top + height) / tall) + SPARE, rows.length);
  const at = query.at ?? "";
  const before = useRef(undefined);

  useLayoutEffect(() => { box.current.scrollTop = kept.top; scrolled(kept.top); before.current = undefined; }, [list]);
  // What came in above moves nothing of what is looked at.
  useLayoutEffect(() => {
    const was = before.current;
    before.current = rows[0]?.runId;
    if (was === undefined || was === before.current || box.current.scrollTop < tall) return;
    const added = rows.findIndex((row) => row.runId === was);
    if (added > 0) box.current.scrollTop += added * tall;
  }, [rows]);
  useEffect(() => { if (state.more && !state.error && rows.length && last >= rows.length - 2 * SPARE) list.more(); }, [last, rows.length, state.more]);
  const seen = useRef({ first, last, rows });
  seen.current = { first, last, rows };
  useEffect(() => {
    const timer = setInterval(() => {
      const { first, last, rows } = seen.current;
      if (!document.hidden && last > list.followed && list.state.value.live !== "paused") list.refresh(rows.slice(Math.max(first, list.followed), last));
    }, 5000);
    return () => clearInterval(timer);
  }, [list]);

  const hold = (/** @type {boolean} */ held) => () => { list.hold = held; if (!held && box.current?.scrollTop < tall) list.release(); };
  const move = (/** @type {number} */ by) => {
    const n = rows.findIndex((row) => row.runId === at);
    const next = rows[Math.max(Math.min(n + by, rows.length - 1), 0)];
    if (!next) return;
    change({ at: next.runId });
    const y = Math.max(n + by, 0) * tall;
    if (y < box.current.scrollTop) box.current.scrollTop = y;
    if (y + tall > box.current.scrollTop + height) box.current.scrollTop = y + tall - height;
  };
  useEffect(() => {
    const keys = (event) => {
      if (event.detail === "j") move(1);
      if (event.detail === "k") move(-1);
      if (event.detail === "Enter" && at) go(["runs", at]);
      if (event.detail === "x" && at) toggle(at);
    };
    addEventListener("studio-key", keys);
    return () => removeEventListener("studio-key", keys);
  });
  const toggle = (/** @type {string} */ id) => {
    const next = new Set(picked);
    if (!next.delete(id)) next.add(id);
    pick(next);
  };
  const operator = may("operator");
  const everyone = rows.length > 0 && rows.every((row) => picked.has(row.runId));
  return html`<div class="table" role="table" aria-label="Runs" aria-rowcount=${state.more ? -1 : rows.length + 1}>
    <div class="thead" role="rowgroup"><div class="row head" role="row" aria-rowindex="1">
      <span class="c-pick" role="columnheader">${operator ? html`<input type="checkbox" aria-label="Pick all that are loaded" checked=${everyone} onChange=${() => pick(everyone ? new Set() : new Set(rows.map((row) => row.runId)))} />` : html`<span class="visually-hidden">pick</span>`}</span>
      <span class="c-status" role="columnheader">Status</span><span class="c-id" role="columnheader">Run</span><span class="c-flow" role="columnheader">Workflow</span>
      <span class="c-say" role="columnheader">What it is at</span><span class="c-steps num" role="columnheader">Steps</span><span class="c-age num" role="columnheader">Created</span><span class="c-age2 num" role="columnheader">Changed</span>
    </div></div>
    <div class="scroll" ref=${box} onScroll=${(event) => { kept.top = event.currentTarget.scrollTop; scrolled(kept.top); list.hold = list.hold || kept.top >= tall; if (kept.top < tall && !event.currentTarget.matches(":hover")) { list.hold = false; list.release(); } }}
      onMouseEnter=${hold(true)} onMouseLeave=${() => { list.hold = kept.top >= tall; if (!list.hold) list.release(); }} onFocusIn=${hold(true)} onFocusOut=${hold(false)}>
      <div class="space" style=${{ height: `${rows.length * tall}px` }} role="rowgroup">
        ${rows.slice(first, last).map((row, /** @type {number} */ n) => html`<${Row} key=${row.runId} row=${row} y=${(first + n) * tall} tall=${tall} index=${first + n + 2} picked=${picked.has(row.runId)} toggle=${operator ? toggle : null} at=${row.runId === at} gone=${held.gone.has(row.runId)} />`)}
      </div>
      <div role="rowgroup"><div role="row"><div role="cell"><${Foot} list=${list} rows=${rows} state=${state} query=${query} /></div></div></div>
    </div>
  </div>`;
}

function Foot({ list, rows, state, query }) {
  if (!state.ready) return html`<${Reading} />`;
  if (state.error) return html`<${Trouble} error=${state.error} again=${() => (rows.length ? list.more() : (kept.list = null, change({})))} />`;
  const { at, ...filters } = query;
  if (state.more && !rows.length) return html`<div class="empty"><p>Nothing among the newest ${count(state.examined)} runs.</p><${Button} busy=${state.busy} onClick=${() => list.more()}>Look further back<//></div>`;
  if (state.more) return html`<p class="foot muted">${state.busy ? "Reading on …" : html`${times(state.examined, "run")} looked at. <${Button} kind="small" onClick=${() => list.more()}>More<//>`}</p>`;
  if (rows.length) return html`<p class="foot muted num">${times(rows.length, "run")}, that is all.</p>`;
  return Object.keys(filters).length
    ? html`<${Empty} title="Nothing fits" text="No run is like these filters."><a class="button" href=${link(["runs"])}>Show all runs<//><//>`
    : html`<${Empty} title="No runs yet" text="What an agent does with tide.run(…) shows here the moment it begins."><pre class="sample">make demo</pre><//>`;
}

/** What a run is at, in few words. */
function saying(row) {
  if (row.errorMessage && ["failed", "pending", "queued", "review"].includes(row.status)) return visible(row.errorMessage);
  if (row.status === "waiting") return `waits for ${visible(row.waitingFor)}`;
  if (row.status === "review") return "a person must decide about a step";
  if (row.status === "cancelled") return visible(row.cancelReason ?? (row.failureClass === "deadline" ? "deadline" : ""));
  if (row.status === "running") return visible(row.holder);
  if (row.status === "queued") return `${visible(row.queue)}${row.priority ? `, priority ${row.priority}` : ""}`;
  return row.queue ? visible(row.queue) : "";
}

function Row({ row, y, tall, index, picked, toggle, at, gone }) {
  const say = saying(row);
  return html`<div class="row ${at ? "at" : ""} ${picked ? "is-picked" : ""} ${gone ? "is-gone" : ""}" role="row" aria-rowindex=${index} style=${{ transform: `translateY(${y}px)`, height: `${tall}px` }}>
    <span class="c-pick" role="cell">${toggle && html`<input type="checkbox" aria-label=${`Pick ${brief(row.runId, 60)}`} checked=${picked} onChange=${() => toggle(row.runId)} />`}</span>
    <span class="c-status" role="cell"><${Status} status=${row.status} lapsed=${row.leaseLapsed} /></span>
    <span class="c-id mono" role="cell"><a href=${link(["runs", row.runId])}><${Text} text=${row.runId} /></a>${row.parentRunId && html`<span class="tag" title="a child of another run">child</span>`}</span>
    <span class="c-flow" role="cell"><${Text} text=${row.workflow} /></span>
    <span class="c-say muted" role="cell"><${Text} text=${say} /></span>
    <span class="c-steps num" role="cell">${count(row.stepsCompleted)}${row.attempt > 1 ? html`<span class="muted" title=${`attempt ${row.attempt}`}> ×${row.attempt}</span>` : ""}</span>
    <span class="c-age num muted" role="cell"><${Ago} at=${row.createdAt} /></span>
    <span class="c-age2 num muted" role="cell"><${Ago} at=${row.updatedAt} /></span>
  </div>`;
}

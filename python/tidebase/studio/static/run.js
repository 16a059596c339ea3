// One run: what it is at, when what happened, its log as it grows, and what may be done.

import { change, go, html, link, now, place, signal, still, tell, useEffect, useLayoutEffect, useRef, useState, useValue } from "./core.js";
import { follow, get, may, path } from "./api.js";
import { Gate, Review, RunActions, ForkDialog } from "./actions.js";
import { brief, clock, count, duration, moment, money, times, visible } from "./format.js";
import { Ago, Button, download, Empty, Facts, Json, Loaded, open, Reading, Status, Tabs, Text, Trouble, useRead, useTitle, WORDS } from "./ui.js";
import { States } from "./state.js";
import { Waterfall } from "./waterfall.js";
import { explain, kindOf, say } from "./words.js";

const KEPT = 5000, BEHIND = 500, LOG_PAGE = 500;
/** After how long a run is read again, in milliseconds: when something happened, and when nothing is told of it. */
const SOON = 400, ALIVE = 4000, OVER = 30_000;

/** A run that is looked at: its rows, read again when something happens, and its log. */
export class Watched {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    this.data = signal(/** @type {any} */ (null));
    this.error = signal(/** @type {any} */ (null));
    this.events = signal(/** @type {any[]} */ ([]));
    this.live = signal("connecting");
    this.older = signal(false);
    this.stop = () => {};
    this.timer = 0;
    this.hurries = false;
    this.rest = 0;
    this.frame = 0;
    this.reading = false;
    this.closed = false;
    /** @type {any[]} */
    this.incoming = [];
    this.begin();
  }

  async begin() {
    this.error.value = null;
    await this.read();
    if (this.closed || !this.data.value) return;
    const last = this.data.value.run.lastSeq;
    const after = Math.max(last - BEHIND, 0);
    this.older.value = after > 0;
    this.seen = after;
    this.stop = follow(() => path`runs/${this.id}/events` + `?alive=1&after=${this.seen}`, { message: (event) => this.take(event) }, (state) => { this.live.value = state; });
  }

  async read() {
    if (this.reading) return this.soon();
    this.reading = true;
    this.hurries = false;
    try {
      const data = await get(path`overview/runs/${this.id}`);
      if (!this.closed) this.draw(() => { this.data.value = data; this.error.value = null; });
    } catch (error) {
      this.error.value = error;
    }
    this.reading = false;
    const hurried = this.hurries;
    this.hurries = false;
    if (this.data.value) this.soon(hurried ? SOON : isOver(this.data.value.run) ? OVER : ALIVE);
  }

  /** Reads the rows again: at most about twice a second, however much happens, and now and then for what no event tells of: a lease that ran out, what children use. */
  soon(wait = SOON) {
    if (this.closed || this.hurries) return;
    this.hurries = wait === SOON;
    clearTimeout(this.timer);
    if (!this.reading) this.timer = setTimeout(() => { this.hurries = false; if (document.hidden) this.soon(ALIVE); else this.read(); }, Math.max(wait, this.rest));
  }

  take(event) {
    if (event.seq <= this.seen) return;
    this.seen = event.seq;
    this.incoming.push(event);
    if (!this.frame) this.frame = setTimeout(() => {
      this.frame = 0;
      const all = [...this.events.value, ...this.incoming];
      this.incoming = [];
      if (all.length > KEPT) this.older.value = true;
      this.draw(() => { this.events.value = all.slice(-KEPT); });
      this.soon();
    }, Math.max(50, this.rest));
  }

  /** Shows something else; the more that takes, the longer it is left as it is: for people there are other things to do than to look. @param {() => void} change */
  draw(change) {
    const begun = performance.now();
    change();
    requestAnimationFrame(() => setTimeout(() => { this.rest = Math.min(4 * (performance.now() - begun), 1000); }));
  }

  async readOlder() {
    const first = this.events.value[0]?.seq ?? (this.seen ?? 0) + 1;
    const { events, next } = await get(path`runs/${this.id}/log`, { before: first, limit: LOG_PAGE });
    this.older.value = next !== null;
    this.events.value = [...events, ...this.events.value];
  }

  close() {
    this.closed = true;
    this.stop();
    clearTimeout(this.timer);
    clearTimeout(this.frame);
  }
}

const isOver = (run) => ["completed", "failed", "cancelled"].includes(run.status);

const TABS = [["", "Timeline"], ["log", "Log"], ["state", "State"], ["children", "Children"], ["usage", "Usage"], ["deliveries", "Recovery"], ["data", "Data"]];

/** @param {{id: string}} props */
export function Run({ id }) {
  const [watched, set] = useState(null);
  useEffect(() => {
    const made = new Watched(id);
    set(made);
    return () => made.close();
  }, [id]);
  useTitle(brief(id, 60));
  if (!watched || watched.id !== id) return html`<section class="page"><h1 class="visually-hidden">Run</h1><${Reading} /></section>`;
  return html`<${Shown} watched=${watched} />`;
}

/** @param {{watched: Watched}} props */
function Shown({ watched }) {
  const data = useValue(watched.data), error = useValue(watched.error), live = useValue(watched.live);
  const { query } = useValue(place);
  if (!data) {
    if (!error) return html`<section class="page"><h1 class="visually-hidden">Run</h1><${Reading} /></section>`;
    return html`<section class="page">${error.status === 404
      ? html`<${Empty} heading="h1" title="There is no such run" text=${html`Nothing has the id <span class="mono"><${Text} text=${watched.id} most=${100} /></span>: it was purged, or never made.`}><a class="button" href=${link(["runs"])}>All runs</a><//>`
      : html`<h1>Run</h1><${Trouble} error=${error} again=${() => watched.begin()} />`}</section>`;
  }
  return html`<${Page} data=${data} events=${watched} live=${live} error=${error} query=${query} done=${() => watched.read()} id=${watched.id} />`;
}

/** The page of a run, live or out of a file. */
export function Page({ data, events: watched, live, error, query, done, id, file = null }) {
  const tab = TABS.some(([name]) => name === query.tab) ? query.tab : "";
  const events = useValue(watched.events);
  const href = (/** @type {string} */ name) => link(file ? ["file"] : ["runs", id], { tab: name });
  const tabs = TABS.map(([name, word]) => [name, word, name === "children" ? data.children.length : name === "deliveries" ? data.recoveries.length + data.channels.length : undefined]);
  const Tab = /** @type {Record<string, any>} */ ({ "": Timeline, log: Log, state: States, children: Children, usage: Usage, deliveries: Deliveries, data: Data })[tab] ?? Timeline;
  return html`<section class="page run-page ${tab === "log" ? "filled" : ""}" aria-labelledby="page-title">
    <${Head} data=${data} live=${live} done=${done} watched=${watched} file=${file} />
    ${error && html`<${Trouble} error=${error} again=${done} />`}
    <${Tabs} label="Parts of the run" tabs=${tabs} chosen=${tab} href=${href} />
    <div class="tab-body"><${Tab} data=${data} events=${events} watched=${watched} query=${query} done=${done} file=${file} /></div>
  </section>`;
}

function Head({ data, live, done, watched, file }) {
  const time = useValue(now);
  const { run, totals } = data;
  const { is, next } = explain(run, data, file ? Date.parse(run.updatedAt) : time);
  const over = isOver(run);
  const limits = totals.costLimitUsd !== null || totals.tokenLimit !== null;
  return html`<header class="run-head">
    <p class="crumbs"><a href=${link(["runs"])}>Runs</a> / ${run.parentRunId && html`<a class="mono" href=${link(["runs", run.parentRunId])}><${Text} text=${run.parentRunId} most=${40} /></a> / `}<a href=${link(["runs"], { workflow: run.workflow })}><${Text} text=${run.workflow} most=${60} /></a></p>
    <div class="run-title"><h1 id="page-title" class="mono"><${Text} text=${run.runId} /></h1><${Status} status=${run.status} lapsed=${run.leaseLapsed} />
      ${!file && html`<span class="live" data-live=${over && live !== "live" ? "over" : live}><i aria-hidden="true"></i>${over && live !== "live" ? "over" : live === "live" ? "live" : live === "lost" ? "reconnecting" : "connecting"}</span>`}
      <div class="actions end">${!file && html`<${RunActions} data=${data} done=${done} />`}<${Button} onClick=${() => exported(data, watched)} title="Everything about it as one file">Export<//></div>
    </div>
    <p class="explain"><strong>${is}</strong> ${next}</p>
    ${run.error !== null && ["failed", "pending", "queued", "review"].includes(run.status) && html`<p class="error-line"><bdi>${brief(run.error?.message ?? run.error, 400)}</bdi></p>`}
    <${Facts} items=${[
      ["created", html`<${Ago} at=${run.createdAt} />`],
      [over ? "took" : "for", html`<span class="num">${duration((run.finishedAt ? Date.parse(run.finishedAt) : file ? Date.parse(run.updatedAt) : time) - Date.parse(run.createdAt))}</span>`],
      ["attempt", html`<span class="num">${run.attempt}${run.maxAttempts ? ` of ${run.maxAttempts}` : ""}</span>`],
      ["steps", html`<span class="num">${count(run.stepsCompleted)}</span>`],
      ["queue", run.queue && html`<a href=${link(["queues"])}><${Text} text=${run.queue} most=${40} /></a>`],
      ["code", run.codeVersion && html`<${Text} text=${run.codeVersion} most=${40} />`],
      ["deadline", run.deadlineAt && !over && html`<${Ago} at=${run.deadlineAt} />`],
      ["fork of", data.forkedFrom && html`<a class="mono" href=${link(["runs", data.forkedFrom])}><${Text} text=${data.forkedFrom} most=${40} /></a> <a href=${link(["compare"], { left: data.forkedFrom, right: run.runId })}>compare</a>`],
      ["cost", (totals.treeRecords > 0 || limits) && html`<span class="num">${money(totals.treeCostUsd)}${totals.costLimitUsd !== null ? ` of ${money(totals.costLimitUsd)}` : ""}</span>`],
      ["tokens", (totals.treeRecords > 0 || limits) && html`<span class="num">${count(totals.treeInputTokens + totals.treeOutputTokens)}${totals.tokenLimit !== null ? ` of ${count(totals.tokenLimit)}` : ""}</span>`],
    ]} />
    ${!file && html`<${Asked} data=${data} done=${done} />`}
  </header>`;
}

/** What a person is asked about this run now. */
function Asked({ data, done }) {
  const gates = data.gates.filter((gate) => gate.kind === "gate" && gate.status === "pending");
  const asked = data.steps.filter((step) => step.status === "review");
  const reviews = useRead(() => (asked.length ? get("overview/inbox", { limit: 1000 }).then((found) => found.reviews.filter((review) => review.runId === data.run.runId)) : Promise.resolve([])), [data.run.runId, asked.map((step) => step.id).join()]);
  if (["completed", "cancelled"].includes(data.run.status) || (!gates.length && !asked.length)) return null;
  return html`<div class="asked">${gates.map((gate) => html`<${Gate} key=${gate.id} heading="h2" gate=${{ ...gate, ballots: data.ballots.filter((vote) => vote.name === gate.name) }} done=${done} />`)}
    ${(reviews.data ?? []).map((review) => html`<${Review} key=${review.id} heading="h2" review=${review} done=${() => { reviews.again(); done(); }} />`)}</div>`;
}

// -- timeline, with what is chosen beside it

function Timeline({ data, events, query, file, done }) {
  const chosen = query.sel ?? "";
  const choose = (bar) => {
    if ((bar.kind === "child" || bar.kind === "fork") && !file) go(["runs", bar.id]);
    else change({ sel: bar.key === chosen ? "" : bar.key });
  };
  useEffect(() => {
    const keys = (event) => {
      const steps = data.steps.map((step) => `step-${step.id}`);
      const n = steps.indexOf(chosen);
      if (event.detail === "j") change({ sel: steps[Math.min(n + 1, steps.length - 1)] ?? "" });
      if (event.detail === "k") change({ sel: steps[Math.max(n - 1, 0)] ?? "" });
    };
    addEventListener("studio-key", keys);
    return () => removeEventListener("studio-key", keys);
  });
  const [kind, key] = chosen.split(/-(.*)/s);
  const gate = kind === "gate" && data.gates.find((one) => one.id === key);
  const attempt = kind === "attempt" && data.attempts.find((one) => String(one.attempt) === key);
  const step = kind === "step" && data.steps.find((one) => one.id === key);
  if (!data.attempts.length && !data.steps.length && !data.gates.length && !data.children.length) return html`<${Empty} title="Nothing has happened yet" text="Steps, gates and children show here as they begin." />`;
  return html`<div class="beside ${chosen ? "open" : ""}">
    <${Waterfall} data=${data} events=${events} chosen=${chosen} choose=${choose} />
    ${(step || gate || attempt) && html`<aside class="detail" aria-label="What is chosen">
      <div class="detail-head"><h2><${Text} text=${step ? step.name : gate ? gate.name : `Attempt ${attempt.attempt}`} most=${120} /></h2><${Button} kind="quiet" aria-label="Close" onClick=${() => change({ sel: "" })}>✕<//></div>
      ${step && html`<${Step} data=${data} step=${step} events=${events} file=${file} done=${done} />`}
      ${gate && html`<${GateDetail} gate=${gate} ballots=${data.ballots} />`}
      ${attempt && html`<${Facts} items=${[["holder", html`<${Text} text=${attempt.holder} />`], ["token", attempt.leaseToken], ["code", attempt.codeVersion && html`<${Text} text=${attempt.codeVersion} />`], ["from", moment(attempt.startedAt)], ["to", attempt.endedAt && moment(attempt.endedAt)], ["outcome", attempt.outcome ?? "at work"], ["lapsed", attempt.lapsedAt && moment(attempt.lapsedAt)], ["trace", attempt.traceparent && html`<code>${visible(attempt.traceparent)}</code>`]]} />${attempt.error !== null && html`<h3>Error</h3><${Json} value=${attempt.error} />`}`}
    </aside>`}
  </div>`;
}

function Step({ data, step, events, file, done }) {
  const read = useRead(() => (file ? Promise.resolve({ step: file.steps.find((one) => one.id === step.id) ?? step }) : get(path`overview/runs/${data.run.runId}/steps/${step.id}`)), [data.run.runId, step.id, step.status, step.attempt]);
  const tries = events.filter((event) => event.type.startsWith("step.") && event.payload.name === step.name);
  const replays = data.attempts.filter((a) => step.completedAt && a.leaseToken > step.leaseToken && a.startedAt >= step.completedAt);
  return html`<p class="detail-line"><span class="status" data-status=${step.status}><i aria-hidden="true"></i>${WORDS[step.status] ?? step.status}</span> <span class="num">${step.completedAt ? duration(Date.parse(step.completedAt) - Date.parse(step.startedAt)) : ""}</span>${replays.length ? html` · replayed by ${times(replays.length, "later attempt")}` : ""}</p>
    <${Loaded} of=${read}>${({ step: full }) => html`
      ${full.error !== null && html`<h3>Error</h3><${Json} value=${full.error} />`}
      <h3>Input</h3><${Json} value=${full.input} open=${1} />
      <h3>Output</h3>${full.status === "completed" ? html`<${Json} value=${full.output} open=${1} />` : html`<p class="muted">None yet.</p>`}
      <h3>Contract</h3>
      <${Facts} items=${[["reaches", full.sideEffects?.length ? full.sideEffects.map(visible).join(", ") : "nothing outside"], ["idempotency key", full.idempotencyKey && html`<code><${Text} text=${full.idempotencyKey} /></code>`], ["replay", full.replay], ["must hold", full.checkpointInvariant && html`<${Text} text=${full.checkpointInvariant} />`], ["verified by", full.verifiedBy && html`<${Text} text=${full.verifiedBy} />`], ["credentials", full.credentials?.length && full.credentials.map(visible).join(", ")], ["retries", full.retries || null], ["timeout", full.timeoutS && `${full.timeoutS} s`], ["tried again", full.retryAt && full.status === "failed" && moment(full.retryAt)], ["begun", `${times(full.attempt, "time")}, last ${moment(full.startedAt)}`], ["input hash", html`<code>${brief(full.inputHash, 16)}</code>`]]} />
      <h3>Tries</h3>
      ${tries.length ? html`<ol class="tries-list">${tries.map((event) => html`<li key=${event.seq}><span class="num muted">${clock(event.createdAt)}</span> <span class="kind-${kindOf(event.type)}">${event.type.slice(5)}</span> ${event.payload.error ? brief(event.payload.error.message ?? event.payload.error) : ""}${event.payload.decision ? html` <span class="muted">→ ${event.payload.decision}</span>` : ""}</li>`)}</ol>` : html`<p class="muted">Not among the events that are loaded: see the log.</p>`}
      ${!file && may("operator") && full.status === "completed" && html`<${Button} onClick=${() => open(html`<${ForkDialog} data=${data} step=${step.id} />`)}>Fork behind this step<//>`}
    `}<//>`;
}

function GateDetail({ gate, ballots }) {
  const votes = ballots.filter((vote) => vote.name === gate.name);
  return html`<p class="detail-line"><span class="status" data-status=${gate.decision ?? gate.status}><i aria-hidden="true"></i>${visible(gate.decision ?? gate.status)}</span>${gate.actor && html` by <${Text} text=${gate.actor} />`}${gate.decidedBy && html` <span class="muted">(${gate.decidedBy})</span>`}</p>
    ${gate.prompt && html`<p class="prompt" dir="auto">${visible(gate.prompt)}</p>`}
    ${gate.comment && html`<p class="quote" dir="auto">${visible(gate.comment)}</p>`}
    <${Facts} items=${[["asked", moment(gate.createdAt)], ["decided", gate.decidedAt && moment(gate.decidedAt)], ["options", gate.options?.map(visible).join(", ")], [gate.kind === "timer" ? "fires" : "deadline", gate.timeoutAt && moment(gate.timeoutAt)], ["by default", gate.kind === "gate" && gate.defaultDecision], ["needs", gate.requiredApprovals > 1 && `${gate.requiredApprovals} people`]]} />
    ${votes.length > 0 && html`<h3>Votes</h3><ul>${votes.map((vote) => html`<li><${Text} text=${vote.voter} />: ${visible(vote.decision)} <span class="muted">${vote.comment ? visible(vote.comment) : ""}</span></li>`)}</ul>`}
    ${gate.payload !== null && html`<h3>Answer</h3><${Json} value=${gate.payload} />`}
    ${gate.data !== null && html`<h3>What was shown</h3><${Json} value=${gate.data} />`}
    ${gate.responseSchema !== null && html`<details><summary>What an answer must be like</summary><${Json} value=${gate.responseSchema} /></details>`}`;
}

// -- the log

const GROUPS = [["", "all"], ["run.", "run"], ["step.", "steps"], ["gate.|timer.", "gates and timers"], ["state.|snapshot.", "state"], ["usage.|budget.", "usage"], ["own", "its own"]];
const SYSTEM = /^(run|step|gate|timer|state|snapshot|usage|budget|recovery)\./;

function Log({ data, events, watched, query, file }) {
  const older = useValue(watched.older);
  const [busy, work] = useState(false);
  const [shown, more] = useState(400);
  const [sticks, stick] = useState(true);
  const box = useRef(null);
  const group = query.kind ?? "", text = (query.find ?? "").toLowerCase();
  const fits = (event) => (!group || (group === "own" ? !SYSTEM.test(event.type) : group.split("|").some((/** @type {string} */ prefix) => event.type.startsWith(prefix))))
    && (!text || `${event.seq} ${event.type} ${say(event)}`.toLowerCase().includes(text));
  const all = events.filter(fits);
  const rows = all.slice(-shown);
  const tail = rows[rows.length - 1]?.seq;
  useLayoutEffect(() => { if (sticks && box.current) box.current.scrollTop = box.current.scrollHeight; }, [tail, sticks]);
  const back = async () => {
    const before = box.current.scrollHeight - box.current.scrollTop;
    stick(false);
    if (all.length > rows.length) more(shown + 400);
    else {
      work(true);
      await watched.readOlder().catch((error) => tell(error.message, "error"));
      more(shown + LOG_PAGE);
      work(false);
    }
    requestAnimationFrame(() => { if (box.current) box.current.scrollTop = box.current.scrollHeight - before; });
  };
  return html`<div class="log">
    <div class="filter-row">
      <select aria-label="Kind of events" value=${group} onChange=${(event) => change({ kind: event.currentTarget.value })}>${GROUPS.map(([key, name]) => html`<option key=${key} value=${key} selected=${key === group}>${name}</option>`)}</select>
      <input type="search" aria-label="Search the events that are loaded" placeholder="Search …" value=${query.find ?? ""} dir="auto" onInput=${(event) => change({ find: event.currentTarget.value })} />
      ${!file && html`<label class="check"><input type="checkbox" checked=${sticks} onChange=${(event) => stick(event.currentTarget.checked)} /> follow</label>`}
      <span class="muted num" aria-live="off">${count(all.length)} of ${count(data.run.lastSeq)}</span>
    </div>
    <div class="log-rows" ref=${box} tabindex="0" role="log" aria-label="Events" aria-live="off" onScroll=${(event) => { const { scrollTop, scrollHeight, clientHeight } = event.currentTarget; const low = scrollHeight - scrollTop - clientHeight < 24; if (sticks && !low) stick(false); }}>
      ${(all.length > rows.length || older) && html`<p class="foot"><${Button} kind="small" busy=${busy} onClick=${back}>Older<//></p>`}
      ${!rows.length && html`<p class="foot muted">${events.length ? "Nothing fits." : "No events yet."}</p>`}
      ${rows.map((event) => html`<${Event} key=${event.seq} event=${event} watched=${watched} file=${file} />`)}
    </div>
  </div>`;
}

const Event = still(({ event, watched, file }) => {
  const [opened, set] = useState(false);
  return html`<details class="event kind-${kindOf(event.type)}" onToggle=${(toggled) => set(toggled.currentTarget.open)}>
    <summary><span class="num muted seq">${event.seq}</span><time class="num muted" datetime=${event.createdAt} title=${moment(event.createdAt)}>${clock(event.createdAt)}</time><span class="type">${visible(event.type)}</span><span class="said"><bdi>${say(event)}</bdi></span></summary>
    ${opened && html`<div class="event-body"><${Json} value=${event.payload} open=${1} />${!file && may("operator") && html`<${Button} kind="small" onClick=${() => open(html`<${ForkDialog} data=${watched.data.value} seq=${event.seq} />`)}>Fork from here<//>`}</div>`}
  </details>`;
}, "event");

// -- children, usage, deliveries, data

function Children({ data, file }) {
  if (!data.children.length) return html`<${Empty} title="No children" text="Runs that this one makes (run.child, run.fanout), and its forks, show here." />`;
  return html`<ul class="tree" aria-label="Children">${data.children.map((child) => html`<${Branch} key=${child.run.runId} child=${child} file=${file} />`)}</ul>${data.cut.includes("children") && html`<p class="muted">Only the newest are shown.</p>`}`;
}

function Branch({ child, file }) {
  const [opened, set] = useState(false);
  const { run } = child;
  const read = useRead(() => (opened ? get(path`overview/runs/${run.runId}/children`) : Promise.resolve({ children: [] })), [run.runId, opened]);
  return html`<li>
    <div class="branch">${file ? html`<span class="button small" aria-hidden="true">·</span>` : html`<${Button} kind="small" aria-expanded=${opened ? "true" : "false"} aria-label=${`Children of ${brief(run.runId, 60)}`} onClick=${() => set(!opened)}>${opened ? "−" : "+"}<//>`}
      <${Status} status=${run.status} lapsed=${run.leaseLapsed} /><strong><${Text} text=${child.edgeType === "fork" ? "fork" : child.name} most=${80} /></strong>
      <a class="mono" href=${link(["runs", run.runId])}><${Text} text=${run.runId} most=${80} /></a><span class="muted"><${Text} text=${run.workflow} most=${60} /></span><span class="num muted">${times(run.stepsCompleted, "step")}</span>${run.errorMessage && html`<span class="wrong"><${Text} text=${run.errorMessage} most=${120} /></span>`}</div>
    ${opened && (read.data ? (read.data.children.length ? html`<ul class="tree">${read.data.children.map((inner) => html`<${Branch} key=${inner.run.runId} child=${inner} file=${file} />`)}</ul>` : html`<p class="muted inset">No children.</p>`) : html`<${Reading} />`)}
  </li>`;
}

/** How much of something is used. */
function Meter({ label, used, limit, say: saying }) {
  const share = limit ? Math.min(used / limit, 1) : 0;
  return html`<div class="meter-line"><span>${label}</span><span class="num"><strong>${saying(used)}</strong>${limit !== null ? ` of ${saying(limit)}` : ""}</span>
    ${limit !== null && html`<div class="meter" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(share * 100)}><i class=${share >= 1 ? "full" : share > 0.8 ? "high" : ""} style=${{ width: `${share * 100}%` }}></i></div>`}</div>`;
}

/** How the cost grew, event by event. */
function Burn({ records, limit }) {
  const priced = records.filter((record) => record.cost !== null);
  if (priced.length < 3) return null;
  const begin = Date.parse(priced[0].createdAt), end = Math.max(Date.parse(priced[priced.length - 1].createdAt), begin + 1);
  let sum = 0;
  const points = priced.map((record) => [((Date.parse(record.createdAt) - begin) / (end - begin)) * 600, (sum += Number(record.cost))]);
  const top = Math.max(sum, limit ?? 0) * 1.05;
  const line = points.map((/** @type {[number, number]} */ [x, y], /** @type {number} */ n) => `${n ? `H${x.toFixed(1)}` : "M0"} ${n ? `V${(100 - (y / top) * 100).toFixed(1)}` : (100 - (y / top) * 100).toFixed(1)}`).join("");
  return html`<svg class="burn" viewBox="0 0 600 100" preserveAspectRatio="none" role="img" aria-label=${`Cost so far: ${money(sum)}`}><path d=${line} />${limit && html`<line x1="0" x2="600" y1=${100 - (limit / top) * 100} y2=${100 - (limit / top) * 100} />`}</svg>`;
}

function Usage({ data, file }) {
  const read = useRead(() => (file ? Promise.resolve(file.usage) : get(path`overview/runs/${data.run.runId}/usage`)), [data.run.runId, data.totals.records, data.totals.treeRecords, data.totals.costLimitUsd]);
  return html`<${Loaded} of=${read}>${(usage) => usage.totals.treeRecords === 0 && usage.totals.costLimitUsd === null && usage.totals.tokenLimit === null
    ? html`<${Empty} title="Nothing was recorded" text="What run.usage.record says about calls to models shows here." />`
    : html`<div class="columns">
      <section><h2>Budget</h2>
        <${Meter} label="Cost" used=${Number(usage.totals.treeCostUsd)} limit=${usage.totals.costLimitUsd} say=${money} />
        <${Meter} label="Tokens" used=${usage.totals.treeInputTokens + usage.totals.treeOutputTokens} limit=${usage.totals.tokenLimit} say=${count} />
        <p class="muted">The run with its descendants: ${times(usage.totals.treeRuns, "run")}, ${times(usage.totals.treeRecords, "record")}${usage.totals.treeUnpriced ? `, ${count(usage.totals.treeUnpriced)} of them without a price` : ""}.</p>
        <${Burn} records=${usage.records} limit=${usage.totals.costLimitUsd} />
      </section>
      <section><h2>By model</h2><${Table} label="By model" head=${["Model", "Records", "In", "Out", "Cost"]} rows=${usage.byModel.map((row) => [html`<${Text} text=${[row.provider, row.model].filter(Boolean).join(" / ") || "–"} most=${60} />`, count(row.records), count(row.inputTokens), count(row.outputTokens), row.currency === "USD" ? money(row.cost) : `${row.cost ?? "–"} ${row.currency ?? ""}`])} /></section>
      <section class="whole"><h2>By step</h2><${Table} label="By step" head=${["Step", "Records", "In", "Out", "Cost"]} rows=${usage.bySteps.map((row) => [html`<${Text} text=${row.step ?? "outside of steps"} most=${80} />`, count(row.records), count(row.inputTokens), count(row.outputTokens), row.currency === "USD" ? money(row.cost) : `${row.cost ?? "–"} ${row.currency ?? ""}`])} /></section>
    </div>`}<//>`;
}

/** @param {{head: string[], rows: any[][], label: string, text?: number[]}} props */
export function Table({ head, rows, label, text = [0] }) {
  return html`<div class="table-box" tabindex="0" role="region" aria-label=${label}><table><thead><tr>${head.map((name, n) => html`<th scope="col" class=${text.includes(n) ? "" : "num"}>${name}</th>`)}</tr></thead><tbody>${rows.map((row) => html`<tr>${row.map((cell, n) => html`<td class=${text.includes(n) ? "" : "num"}>${cell}</td>`)}</tr>`)}${!rows.length && html`<tr><td colspan=${head.length} class="muted">None.</td></tr>`}</tbody></table></div>`;
}

function Deliveries({ data }) {
  if (!data.recoveries.length && !data.channels.length) return html`<${Empty} title="Nothing was sent" text="Attempts to get the run going again, and the channels that are told about it, show here." />`;
  return html`<h2>Recoveries</h2><${Table} label="Recoveries" text=${[1, 2, 3, 4]} head=${["#", "Reason", "By", "Status", "What the webhook said", "When"]} rows=${data.recoveries.map((row) => [row.recovery, html`<${Text} text=${row.reason} most=${60} />`, html`<${Text} text=${row.actor ?? "–"} most=${40} />`, html`${row.status} <span class="muted">found ${WORDS[row.foundStatus] ?? row.foundStatus}</span>`, html`${row.httpStatus ?? ""} <${Text} text=${row.error ?? row.response ?? ""} most=${160} />`, html`<${Ago} at=${row.createdAt} />`])} />
    <h2>Channels</h2><${Table} label="Channels" text=${[1, 2, 5]} head=${["#", "To", "Status", "Told up to", "Failures", "Error"]} rows=${data.channels.map((row) => [row.channel, html`<${Text} text=${row.url} most=${80} />`, row.status, `${count(row.deliveredSeq)} of ${count(data.run.lastSeq)}`, count(row.failures), html`<${Text} text=${row.error ?? ""} most=${160} />`])} />`;
}

function Data({ data, file }) {
  const { run } = data;
  const [raw, show] = useState(false);
  return html`<div class="columns">
    <section><h2>Input</h2><${Json} value=${run.input} /></section>
    <section><h2>Result</h2>${run.status === "completed" ? html`<${Json} value=${run.result} />` : html`<p class="muted">None yet.</p>`}${run.error !== null && html`<h2>Error</h2><${Json} value=${run.error} />`}</section>
    <section><h2>Metadata</h2><${Json} value=${run.metadata} /></section>
    <section><h2>The rest</h2><${Facts} items=${[["holder", run.holder && html`<${Text} text=${run.holder} />`], ["token", run.leaseToken], ["lease until", run.leaseExpiresAt && moment(run.leaseExpiresAt)], ["may be taken up", run.availableAt && moment(run.availableAt)], ["deadline", run.deadlineAt && moment(run.deadlineAt)], ["key", run.queueKey && html`<${Text} text=${run.queueKey} />`], ["dedupe key", run.dedupeKey && html`<${Text} text=${run.dedupeKey} />`], ["webhook", run.recoveryWebhook && html`<${Text} text=${run.recoveryWebhook} />`], ["events", count(run.lastSeq)], ["compacted", run.compactedAt && moment(run.compactedAt)]]} /></section>
    <section class="whole"><h2>Raw</h2>${raw ? html`<pre class="raw" tabindex="0">${visible(JSON.stringify(file ?? data, null, 2)).slice(0, 500_000)}</pre>` : html`<${Button} onClick=${() => show(true)}>Show all rows as JSON<//>`}</section>
  </div>`;
}

/** All about a run as one file. */
async function exported(data, watched) {
  if (watched.file) return download(`${watched.file.run.runId}.tidebase.json`, JSON.stringify(watched.file));
  const id = data.run.runId;
  tell("Collecting …");
  try {
    const now = await get(path`overview/runs/${id}`);
    const steps = [];
    for (const step of now.steps) steps.push((await get(path`overview/runs/${id}/steps/${step.id}`)).step);
    const events = [], versions = [];
    for (let next = `log?limit=1000`; next && events.length < 100_000;) {
      const page = await get(path`runs/${id}/` + next);
      events.unshift(...page.events);
      next = page.next && page.next.replace(/^.*\/log/, "log");
    }
    for (let page = await get(path`runs/${id}/state/versions`, { limit: 1000 }); ; ) {
      versions.unshift(...page.stateVersions);
      if (!page.next || versions.length > 20_000) break;
      page = await get(path`runs/${id}/state/versions` + page.next.replace(/^[^?]*/, ""));
    }
    const usage = await get(path`overview/runs/${id}/usage`);
    const file = { format: "tidebase-run", version: 1, exportedAt: new Date().toISOString(), ...now, steps, events, versions, usage };
    download(`${id.replace(/[^\w.-]+/g, "_").slice(0, 80)}.tidebase.json`, JSON.stringify(file, null, 1));
    tell(`Exported ${times(events.length, "event")}, ${times(steps.length, "step")}.`);
  } catch (error) {
    tell(`The export did not work: ${/** @type {Error} */ (error).message}`, "error");
  }
}

const loaded = signal(/** @type {any} */ (null));

/** A file that was exported, to be looked at. */
export function FilePage() {
  const { query } = useValue(place);
  const file = useValue(loaded);
  const [error, fail] = useState("");
  const take = async (/** @type {File | undefined} */ chosen) => {
    if (!chosen) return;
    try {
      const read = JSON.parse(await chosen.text());
      const lists = ["attempts", "steps", "gates", "ballots", "children", "recoveries", "channels", "events", "versions", "cut"];
      if (read?.format !== "tidebase-run" || read.version !== 1 || typeof read.run?.runId !== "string" || !read.totals || !read.usage?.totals || !lists.every((name) => Array.isArray(read[name]))) throw new Error("it is no run that was exported here");
      loaded.value = { file: read, data: read, events: signal(read.events), older: signal(false) };
      fail("");
    } catch (problem) {
      fail(`${brief(chosen.name, 60)}: ${/** @type {Error} */ (problem).message}`);
    }
  };
  useTitle(file ? brief(file.data.run.runId, 60) : "A file");
  if (file) return html`<div class="file-note" role="note">A file, as it was ${moment(file.file.exportedAt)}: nothing here is live, and nothing can be done. <${Button} kind="small" onClick=${() => { loaded.value = null; }}>Close the file<//></div>
    <${Page} data=${file.data} events=${file} live="over" error=${null} query=${query} done=${() => {}} id=${file.data.run.runId} file=${file.file} />`;
  return html`<section class="page"><header class="page-head"><h1>Look at a file</h1></header>
    <div class="drop" onDragOver=${(event) => event.preventDefault()} onDrop=${(event) => { event.preventDefault(); take(event.dataTransfer.files[0]); }}>
      <p>A run that somebody exported, read-only. The file stays in this browser.</p>
      <label class="button primary">Choose a file<input class="visually-hidden" type="file" accept=".json,application/json" onChange=${(event) => take(event.currentTarget.files[0])} /></label>
      <p class="muted">or drop it here</p>
      ${error && html`<p class="wrong" role="alert">${error}</p>`}
    </div></section>`;
}

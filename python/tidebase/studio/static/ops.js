// Queues, schedules, workers, and how the database is.

import { html, link, now, tell, useState, useValue } from "./core.js";
import { get, may, path, post, put, remove } from "./api.js";
import { about, ago, brief, count, every, short, times, visible, ZONE } from "./format.js";
import { JsonField } from "./actions.js";
import { Ago, Button, Choice, Empty, Facts, Loaded, open, Question, Status, Text, TextField, useRead, useTitle } from "./ui.js";
import { Table } from "./run.js";

const HELD = /** @type {Record<string, string>} */ ({
  paused: "It is paused: nobody takes anything from it.",
  concurrency: "As many are at work as may be at once.",
  rate: "As many were begun as may be in this time.",
  endpoint: "Its endpoint fails.",
  "no worker": "No worker was seen for a minute.",
});

/** @param {string} text */
const amount = (text) => (text.trim() === "" ? undefined : Number(text));

/** How many a minute, of the last five minutes. @param {number} rate */
const pace = (rate) => html`<span title="of the last five minutes">${rate === 0 || rate >= 10 ? count(Math.round(rate)) : rate.toFixed(1)} / min</span>`;

export function Queues() {
  useTitle("Queues");
  const read = useRead(() => get("overview/queues"), ["queues"], 3000);
  const operator = may("operator");
  return html`<section class="page" aria-labelledby="page-title"><header class="page-head"><h1 id="page-title">Queues</h1>${operator && html`<${Button} onClick=${() => open(html`<${QueueDialog} queue=${null} done=${read.again} />`)}>New queue<//>`}</header>
    <${Loaded} of=${read}>${({ queues }) => (queues.length ? html`<div class="cards">${queues.map((queue) => html`<${Queue} key=${queue.queue} queue=${queue} done=${read.again} operator=${operator} />`)}</div>` : html`<${Empty} title="No queues" text="A queue is there as soon as something is enqueued into it, or limits are set for it." />`)}<//>
  </section>`;
}

function Queue({ queue, done, operator }) {
  const time = useValue(now);
  const toggle = async () => {
    try {
      await post(path`queues/${queue.queue}/${queue.paused ? "resume" : "pause"}`);
      tell(queue.paused ? `${brief(queue.queue, 60)} goes on.` : `${brief(queue.queue, 60)} is paused.`);
    } catch (error) { tell(/** @type {Error} */ (error).message, "error"); }
    done();
  };
  const per = queue.ratePeriodS ? (queue.ratePeriodS === 60 ? "min" : queue.ratePeriodS === 1 ? "s" : every(queue.ratePeriodS)) : "";
  const limits = [["at once", queue.concurrency], ["at once, a key", queue.keyConcurrency], ["rate", queue.rate && `${count(queue.rate)} / ${per}`], ["rate, a key", queue.keyRate && `${count(queue.keyRate)} / ${per}`], ["lease", queue.leaseS && every(queue.leaseS)], ["attempts", queue.maxAttempts], ["retry after", queue.retryDelayS && every(queue.retryDelayS)]];
  const wait = queue.oldestReady ? time - Date.parse(queue.oldestReady) : null;
  return html`<article class="card" data-queue=${queue.queue}>
    <header><h2><${Text} text=${queue.queue} most=${80} /></h2>${operator && html`<div class="actions"><${Button} kind="small" onClick=${() => open(html`<${QueueDialog} queue=${queue} done=${done} />`)}>Limits<//><${Button} kind="small" onClick=${toggle}>${queue.paused ? "Resume" : "Pause"}<//></div>`}</header>
    <div class="figures">
      ${[["ready", queue.ready, "queued"], ["delayed", queue.delayed, "queued"], ["running", queue.running, "running"], ["waiting", queue.waiting, "waiting"], ["in review", queue.review, "review"], ["failed", queue.failed, "failed"]].map(([name, number, status]) => html`<a key=${name} class="figure ${number ? "" : "none"}" href=${link(["runs"], { queue: queue.queue, status })}><span class="num">${number >= 10000 ? "10,000+" : count(number)}</span><span>${name}</span></a>`)}
    </div>
    <p class="held ${queue.heldBackBy ?? ""}">${queue.heldBackBy ? html`<strong>Held back.</strong> ${HELD[queue.heldBackBy] ?? queue.heldBackBy}` : queue.paused ? html`<strong>Paused.</strong>` : queue.ready ? "Nothing holds it back." : "Nothing waits."}${wait !== null && wait > 1000 ? html` <span class="muted num">The next one waits for ${about(wait)}.</span>` : ""}</p>
    ${queue.endpointError && html`<p class="wrong"><${Text} text=${queue.endpointError} /></p>`}
    <${Facts} items=${[["completed", pace(queue.completedPerMinute)], ["failed", pace(queue.failedPerMinute)], ["endpoint", queue.endpoint && html`<${Text} text=${queue.endpoint} most=${80} />`], ["told of, not begun", queue.invoked || null], ["failures in a row", queue.endpointFailures || null], ...(limits.some(([, value]) => value) ? limits : [["limits", "none"]])]} />
  </article>`;
}

function QueueDialog({ queue, done }) {
  const [name, setName] = useState(queue?.queue ?? "");
  const [form, set] = useState(Object.fromEntries(["concurrency", "keyConcurrency", "rate", "ratePeriodS", "keyRate", "leaseS", "maxAttempts", "retryDelayS"].map((key) => [key, queue?.[key] === null || queue?.[key] === undefined ? "" : String(queue[key])])));
  const field = (/** @type {string} */ key, /** @type {string} */ label, /** @type {string} */ hint = "") => html`<${TextField} label=${label} hint=${hint} inputmode="decimal" value=${form[key]} error=${form[key] && !(Number(form[key]) > 0) ? "It must be a number." : null} onInput=${(text) => set({ ...form, [key]: text })} />`;
  const wrong = !name.trim() || Object.values(form).some((text) => text && !(Number(text) > 0));
  return html`<${Question} title=${queue ? `Limits of ${brief(queue.queue, 60)}` : "A new queue"} action="Set the limits" disabled=${wrong} onDo=${async () => {
    await put(path`queues/${name.trim()}/limits`, Object.fromEntries(Object.entries(form).map(([key, text]) => [key, amount(text)])));
    tell(`The limits of ${brief(name, 60)} are set.`);
    done();
  }}>
    ${!queue && html`<${TextField} label="Name" value=${name} onInput=${setName} autofocus />`}
    <p class="hint">What is empty has no limit.</p>
    <div class="two">${field("concurrency", "At work at once")}${field("keyConcurrency", "At once with the same key")}${field("rate", "Begun in a time")}${field("keyRate", "Begun, with the same key")}${field("ratePeriodS", "That time, in seconds", "By default 60.")}${field("leaseS", "Lease, in seconds")}${field("maxAttempts", "Attempts")}${field("retryDelayS", "Retry after, in seconds")}</div>
  <//>`;
}

export function Schedules() {
  useTitle("Schedules");
  const read = useRead(() => get("overview/schedules"), ["schedules"], 5000);
  const operator = may("operator");
  return html`<section class="page" aria-labelledby="page-title"><header class="page-head"><h1 id="page-title">Schedules</h1><p class="muted">Times are yours: ${ZONE}.</p>${operator && html`<${Button} onClick=${() => open(html`<${ScheduleDialog} schedule=${null} done=${read.again} />`)}>New schedule<//>`}</header>
    <${Loaded} of=${read}>${({ schedules }) => (schedules.length ? html`<div class="cards">${schedules.map((schedule) => html`<${Schedule} key=${schedule.name} schedule=${schedule} done=${read.again} operator=${operator} />`)}</div>` : html`<${Empty} title="No schedules" text="Workflows that are enqueued by the clock show here: tide.schedules.put(…)." />`)}<//>
  </section>`;
}

const body = (s) => ({ workflow: s.workflow, cron: s.cron ?? undefined, everyS: s.everyS ?? undefined, input: s.input, queue: s.queue, timezone: s.timezone, overlap: s.overlap, catchUp: s.catchUp, catchUpWindowS: s.catchUpWindowS, jitterS: s.jitterS, enabled: s.enabled, key: s.key ?? undefined, priority: s.priority, maxAttempts: s.maxAttempts ?? undefined, metadata: s.metadata });

function Schedule({ schedule, done, operator }) {
  const time = useValue(now);
  const act = (/** @type {() => Promise<any>} */ what, /** @type {(answer: any) => string} */ said) => async () => {
    try { tell(said(await what())); } catch (error) { tell(/** @type {Error} */ (error).message, "error"); }
    done();
  };
  const large = schedule.input?.truncated === true;
  return html`<article class="card" data-schedule=${schedule.name}>
    <header><h2><${Text} text=${schedule.name} most=${80} /></h2>${operator && html`<div class="actions">
      <${Button} kind="small" onClick=${act(() => post(path`schedules/${schedule.name}/trigger`), ({ runId }) => `Enqueued ${brief(runId, 60)}.`)}>Trigger<//>
      <${Button} kind="small" disabled=${large} onClick=${act(() => put(path`schedules/${schedule.name}/settings`, { ...body(schedule), enabled: !schedule.enabled }), () => (schedule.enabled ? "It fires no more." : "It fires again."))}>${schedule.enabled ? "Disable" : "Enable"}<//>
      <${Button} kind="small" disabled=${large} onClick=${() => open(html`<${ScheduleDialog} schedule=${schedule} done=${done} />`)}>Edit<//>
      <${Button} kind="small danger-quiet" onClick=${() => open(html`<${DeleteSchedule} schedule=${schedule} done=${done} />`)}>Delete<//></div>`}</header>
    <p class="when"><strong class="mono">${schedule.cron ? visible(schedule.cron) : `every ${every(schedule.everyS)}`}</strong> <span class="muted">${schedule.cron ? visible(schedule.timezone) : ""}</span>${!schedule.enabled && html` <span class="tag">disabled</span>`}</p>
    ${schedule.nextFires.length > 0 ? html`<ol class="fires num">${schedule.nextFires.map((/** @type {string} */ at, /** @type {number} */ n) => html`<li key=${at}><time datetime=${at}>${short(at)}</time>${n === 0 ? html` <span class="muted">${ago(at, time)}</span>` : ""}</li>`)}</ol>` : html`<p class="muted">It fires no more.</p>`}
    ${schedule.failure && html`<p class="wrong"><${Text} text=${schedule.failure} /></p>`}
    <${Facts} items=${[["enqueues", html`<${Text} text=${schedule.workflow} most=${60} />`], ["into", html`<a href=${link(["queues"])}><${Text} text=${schedule.queue} most=${40} /></a>`], ["last run", schedule.lastRunId && html`<a class="mono" href=${link(["runs", schedule.lastRunId])}><${Text} text=${schedule.lastRunId} most=${50} /></a> ${schedule.lastStatus && html`<${Status} status=${schedule.lastStatus} />`}`], ["when the one before is not over", schedule.overlap !== "allow" && schedule.overlap], ["times that were missed", schedule.catchUp !== "last" && schedule.catchUp], ["jitter", schedule.jitterS > 0 && every(schedule.jitterS)]]} />
  </article>`;
}

function DeleteSchedule({ schedule, done }) {
  return html`<${Question} title="Delete this schedule?" action="Delete it" kind="danger" onDo=${async () => { await remove(path`schedules/${schedule.name}`); tell("Deleted. The runs that it made stay."); done(); }}><p><strong><${Text} text=${schedule.name} /></strong> fires no more. The runs that it made stay.</p><//>`;
}

function ScheduleDialog({ schedule, done }) {
  const [name, setName] = useState(schedule?.name ?? "");
  const [s, set] = useState(schedule ?? { workflow: "", cron: "0 8 * * *", everyS: null, input: null, queue: "default", timezone: ZONE, overlap: "allow", catchUp: "last", catchUpWindowS: 86400, jitterS: 0, enabled: true, key: null, priority: 0, maxAttempts: null, metadata: {} });
  const [by, choose] = useState(schedule && !schedule.cron ? "every" : "cron");
  const [every, setEvery] = useState(String(schedule?.everyS ?? 3600));
  const [problem, setProblem] = useState(null);
  const fires = useRead(() => (by === "cron" && s.cron.trim() ? get("overview/fires", { cron: s.cron, timezone: s.timezone }) : Promise.resolve({ fires: [] })), [by, s.cron, s.timezone]);
  const change = (/** @type {string} */ key) => (value) => set({ ...s, [key]: value });
  const wrong = !name.trim() || !s.workflow.trim() || problem !== null || (by === "cron" ? Boolean(fires.error) : !(Number(every) >= 1));
  return html`<${Question} title=${schedule ? `Edit ${brief(schedule.name, 60)}` : "A new schedule"} action="Save" disabled=${wrong} onDo=${async () => {
    await put(path`schedules/${name.trim()}/settings`, { ...body(s), cron: by === "cron" ? s.cron : undefined, everyS: by === "every" ? Number(every) : undefined });
    tell("The schedule is saved.");
    done();
  }}>
    ${!schedule && html`<${TextField} label="Name" value=${name} onInput=${setName} autofocus />`}
    <${TextField} label="Workflow" value=${s.workflow} onInput=${change("workflow")} />
    <div class="segments" role="radiogroup" aria-label="By what clock">${[["cron", "By a cron expression"], ["every", "Every so often"]].map(([key, word]) => html`<label key=${key}><input type="radio" name="clock" checked=${by === key} onChange=${() => choose(key)} /> <span>${word}</span></label>`)}</div>
    ${by === "cron" ? html`<div class="two"><${TextField} label="Cron" mono value=${s.cron ?? ""} onInput=${change("cron")} error=${fires.error?.message} hint="minute hour day month weekday" /><${TextField} label="Time zone" value=${s.timezone} onInput=${change("timezone")} /></div>
      <p class="hint num" aria-live="polite">${(fires.data?.fires ?? []).slice(0, 3).map(short).join(" · ")}</p>` : html`<${TextField} label="Seconds" value=${every} onInput=${setEvery} inputmode="numeric" />`}
    <div class="two"><${TextField} label="Queue" value=${s.queue} onInput=${change("queue")} /><${Choice} label="When the one before is not over" value=${s.overlap} onChange=${change("overlap")} options=${[["allow", "run both"], ["skip", "skip this one"], ["cancel", "cancel the one before"]]} /></div>
    <${Choice} label="Times that were missed" value=${s.catchUp} onChange=${change("catchUp")} options=${[["last", "the latest is made up for"], ["none", "are gone"], ["all", "all are made up for"]]} />
    <${JsonField} label="Input" rows="3" value=${s.input} onChange=${(value, error) => { setProblem(error); if (!error) set({ ...s, input: value }); }} />
  <//>`;
}

export function Workers() {
  useTitle("Workers");
  const time = useValue(now);
  const read = useRead(() => get("overview/workers"), ["workers"], 3000);
  return html`<section class="page" aria-labelledby="page-title"><header class="page-head"><h1 id="page-title">Workers</h1><p class="muted">Who took runs from queues within a day.</p></header>
    <${Loaded} of=${read}>${({ workers }) => (workers.length ? html`<${Table} label="All workers" text=${[0, 1, 2]} head=${["Worker", "Queues", "Code", "Holds", "Since", "Seen"]} rows=${workers.map((worker) => {
      const quiet = time - Date.parse(worker.seenAt) > 60_000;
      return [html`<span class="status" data-status=${quiet ? "lapsed" : "running"}><i aria-hidden="true"></i><span class="mono"><${Text} text=${worker.holder} most=${60} /></span></span>${quiet ? html` <span class="tag">silent</span>` : ""}`, worker.queues.map((/** @type {string} */ queue, /** @type {number} */ n) => html`${n ? ", " : ""}<${Text} text=${queue} most=${40} />`), html`<${Text} text=${worker.codeVersion ?? "–"} most=${40} />`, html`<a href=${link(["runs"], { status: "running", text: worker.holder })}>${count(worker.running)}</a>`, html`<${Ago} at=${worker.startedAt} />`, html`<${Ago} at=${worker.seenAt} />`];
    })} />` : html`<${Empty} title="No workers" text="Whoever takes runs from queues shows here: tidebase work, or tide.work()." />`)}<//>
  </section>`;
}

export function Health() {
  useTitle("Health");
  const read = useRead(() => get("overview/health"), ["health"], 15_000);
  return html`<section class="page" aria-labelledby="page-title"><header class="page-head"><h1 id="page-title">Health</h1><${Button} onClick=${read.again}>Look again<//></header>
    <${Loaded} of=${read}>${({ findings }) => {
      const order = ["problem", "note", "ok"];
      const number = (/** @type {string} */ level) => findings.filter((finding) => finding.level === level).length;
      return html`<p class="verdict" data-level=${order.find(number)}><strong>${number("problem") ? times(number("problem"), "problem") : number("note") ? `No problem, ${times(number("note"), "note")}` : "All is well"}</strong> <span class="muted">What <code>tidebase doctor</code> says.</span></p>
      <ul class="findings">${[...findings].sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level)).map((finding, n) => html`<li key=${n} data-level=${finding.level}><span class="level">${finding.level}</span><div><strong>${visible(finding.check)}</strong> <span><${Text} text=${finding.text} /></span>${finding.advice && html`<p class="muted">${visible(finding.advice)}</p>`}</div></li>`)}</ul>`;
    }}<//>
  </section>`;
}

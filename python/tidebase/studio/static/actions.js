// What people do. Each asks once; the answer of the database is what is told, also when somebody else was first.

import { go, html, link, now, remember, remembered, tell, useState, useValue } from "./core.js";
import { ApiError, may, me, path, post } from "./api.js";
import { ago, brief, count, moment, parsed, times, visible } from "./format.js";
import { Button, Choice, Facts, Json, open, Question, Text, TextField, Trouble, useRead } from "./ui.js";
import { Form, isObject, own, resolved } from "./form.js";

/** Who is said to do it where the key is nobody's: what this browser was told. */
function who() {
  return me.value?.name ? {} : { actor: remembered("actor") || undefined };
}

/** Whom the log will name. */
export function Who() {
  const person = useValue(me)?.name;
  const [name, set] = useState(remembered("actor", ""));
  if (person) return html`<p class="hint">The log will say that it was <strong><${Text} text=${person} /></strong>.</p>`;
  return html`<${TextField} label="Your name" value=${name} maxlength="200" hint="The key is nobody’s in particular: the log will say that it was you." onInput=${(text) => { set(text); remember("actor", text.trim()); }} />`;
}

/** Several, one after the other; what could not be done is told. @param {string[]} ids @param {(id: string) => Promise<any>} act @param {string} done */
async function each(ids, act, done) {
  const failed = /** @type {[string, any][]} */ ([]);
  for (const id of ids) {
    try { if ((await act(id)) === false) failed.push([id, { message: "it is not waiting for a worker" }]); } catch (error) { failed.push([id, error]); }
  }
  if (failed.length < ids.length) tell(`${times(ids.length - failed.length, "run")} ${done}.`);
  if (failed.length) tell(`${times(failed.length, "run")} could not be: ${brief(failed[0][0], 40)}: ${brief(failed[0][1].message)}`, "error");
}

export const cancelMany = (/** @type {string[]} */ ids, /** @type {string} */ reason) => each(ids, (id) => post(path`runs/${id}/cancel`, { reason: reason || undefined, ...who() }), "cancelled");
export const resumeMany = (/** @type {string[]} */ ids, /** @type {string} */ reason) => each(ids, (id) => post(path`runs/${id}/resume`, { reason: reason || undefined, ...who() }), "resumed");
export const moveMany = (/** @type {string[]} */ ids, /** @type {string} */ queue) => each(ids, async (id) => (await post(path`runs/${id}/move`, { queue, ...who() })).moved, `moved to ${brief(queue)}`);

// -- many by their filters

/** How long ago, in seconds: "15m", "-7d". @param {string} age */
export const seconds = (age) => Number(age.slice(0, -1).replace("-", "")) * (({ m: 60, h: 3600, d: 86400 })[age.slice(-1)] ?? NaN);

/** `team=billing` and `{"team": "billing"}` mean the same. @param {string} text */
export function metadataOf(text) {
  if (text.trim().startsWith("{")) return JSON.parse(text);
  return Object.fromEntries(text.split(",").map((pair) => {
    const [key, value = ""] = pair.split(/=(.*)/s).map((part) => part.trim());
    try { return [key, JSON.parse(value)]; } catch { return [key, value]; }
  }));
}

/** @param {{query: Record<string, string>}} props */
export function BulkDialog({ query }) {
  const [what, choose] = useState(query.status === "failed" ? "retry" : "cancel");
  const [reason, setReason] = useState("");
  const [queue, setQueue] = useState("default");
  const { metadata, why } = bulkFilter(query);
  const filter = {
    workflow: query.workflow || undefined, queue: query.queue || undefined, metadata,
    olderThanS: query.age?.startsWith("-") ? seconds(query.age) : undefined,
    ...(what === "cancel" ? { status: query.status || undefined } : {}),
    max: 10000,
  };
  const body = what === "move" ? { ...filter, toQueue: queue } : { ...filter, reason: reason || undefined };
  const preview = useRead(() => (why ? Promise.resolve({ matched: 0 }) : post(`bulk/${what}`, { ...body, dryRun: true })), [what, why, JSON.stringify(filter), what === "move" ? queue : ""]);
  const matched = preview.data?.matched ?? 0;
  const verb = { cancel: "Cancel", retry: "Retry", move: "Move" }[what];
  return html`<${Question} title="All that these filters find" action=${why || !matched ? `${verb}` : `${verb} ${times(matched, "run")}`} kind=${what === "cancel" ? "danger" : "primary"} disabled=${Boolean(why) || !matched} onDo=${async () => {
    const { matched, done } = await post(`bulk/${what}`, { ...body, ...who() });
    tell(`${times(done, "run")} of ${count(matched)}: ${({ cancel: "cancelled", retry: "may be taken up again", move: `moved to ${brief(queue)}` })[what]}.${done < matched ? " Somebody else had the rest locked, or was quicker." : ""}`);
  }}>
    <div class="segments" role="radiogroup" aria-label="What to do">${[["cancel", "Cancel"], ["retry", "Retry"], ["move", "Move"]].map(([key, name]) => html`<label key=${key}><input type="radio" name="what" checked=${what === key} onChange=${() => choose(key)} /> <span>${name}</span></label>`)}</div>
    <${Facts} items=${[["workflow", query.workflow && html`<${Text} text=${query.workflow} />`], ["queue", query.queue], ["status", what === "cancel" ? query.status : what === "retry" ? "failed" : "pending, queued"], ["metadata", query.metadata && html`<code>${visible(query.metadata)}</code>`], ["age", filter.olderThanS && `older than ${query.age.slice(1)}`]]} />
    ${why ? html`<p class="wrong">${why}</p>` : html`<p class="preview num" aria-live="polite">${preview.error ? html`<${Trouble} error=${preview.error} />` : preview.data ? html`<strong>${times(matched, "run")}</strong> would be ${({ cancel: "cancelled", retry: "taken up again", move: "moved" })[what]}${matched === 10000 ? " at once: do it again for the rest" : ""}.` : "Counting …"}</p>`}
    ${what === "move" ? html`<${TextField} label="Into the queue" value=${queue} onInput=${setQueue} />` : html`<${TextField} label="Reason" value=${reason} onInput=${setReason} hint="It stands in the log of each." />`}
    <${Who} />
  <//>`;
}

/** What cannot be said to the database as a filter of many. @param {Record<string, string>} query */
function bulkFilter(query) {
  let metadata, why = "";
  if (query.metadata) {
    try {
      metadata = metadataOf(query.metadata);
    } catch { why = "The metadata is no JSON."; }
  }
  if (query.age && !(seconds(query.age) > 0)) why = "The age is none.";
  else if (query.text || query.roots || (query.age && !query.age.startsWith("-"))) why = "Many are chosen by workflow, queue, status, metadata, and being older than something: not by a text, or by being recent. Pick those rows instead.";
  else if (!query.workflow && !query.queue && !query.status && !query.metadata && !query.age) why = "Set a filter first: nothing is done to all runs by mistake.";
  return { metadata, why };
}

// -- one run

export function RunActions({ data, done }) {
  const { run, totals } = data;
  if (!may("operator")) return null;
  const over = ["completed", "cancelled"].includes(run.status);
  const stoppable = !over;
  const resumable = run.status === "failed" || ((run.status === "pending" || run.status === "queued") && run.availableAt) || run.leaseLapsed || (run.status === "pending" && run.attempt > 0);
  const ask = (dialog) => () => open(dialog);
  return html`
    ${resumable && html`<${Button} kind="primary" onClick=${ask(html`<${Resume} run=${run} done=${done} />`)}>${run.leaseLapsed ? "Recover" : "Resume"}<//>`}
    ${["pending", "queued"].includes(run.status) && html`<${Button} onClick=${ask(html`<${MoveDialog} run=${run} done=${done} />`)}>Move<//>`}
    <${Button} onClick=${ask(html`<${ForkDialog} data=${data} />`)}>Fork<//>
    ${stoppable && html`<${Button} onClick=${ask(html`<${Budget} run=${run} totals=${totals} done=${done} />`)}>Budget<//>
    <${Button} kind="danger-quiet" onClick=${ask(html`<${Cancel} run=${run} done=${done} />`)}>Cancel<//>`}`;
}

function Cancel({ run, done }) {
  const [reason, set] = useState("");
  return html`<${Question} title="Cancel this run for good?" action="Cancel the run" kind="danger" onDo=${async () => {
    try {
      await post(path`runs/${run.runId}/cancel`, { reason: reason || undefined, ...who() });
      tell(`Cancelled ${brief(run.runId, 60)}.`);
    } catch (error) {
      if (/** @type {ApiError} */ (error).code !== "run_final") throw error;
      tell(`${brief(run.runId, 60)} was completed before: that stands.`, "lost");
    }
    done();
  }}>
    <p>Its worker is told at its next call, and its descendants are cancelled, too. What is completed stays in the log.</p>
    <${TextField} label="Reason" value=${reason} onInput=${set} area rows="2" autofocus />
    <${Who} />
  <//>`;
}

function Resume({ run, done }) {
  const [reason, set] = useState("");
  return html`<${Question} title=${run.leaseLapsed ? "Let another worker take it over?" : "Let a worker take it up again?"} action="Resume the run" onDo=${async () => {
    const { recovery } = await post(path`runs/${run.runId}/resume`, { reason: reason || undefined, ...who() });
    tell(`Recovery ${recovery} of ${brief(run.runId, 60)}: it may be acquired at once.`);
    done();
  }}>
    <p>${times(run.stepsCompleted, "completed step")} will be replayed, not executed. Its attempts so far do not count any more${run.recoveryWebhook ? ", and its webhook is told" : ""}.</p>
    <${TextField} label="Reason" value=${reason} onInput=${set} placeholder="manual" />
    <${Who} />
  <//>`;
}

function MoveDialog({ run, done }) {
  const [queue, setQueue] = useState(run.queue ?? "default");
  const [priority, setPriority] = useState(String(run.priority ?? 0));
  return html`<${Question} title="Where should it wait?" action="Move the run" disabled=${!queue.trim() || !/^-?\d+$/.test(priority)} onDo=${async () => {
    const { moved } = await post(path`runs/${run.runId}/move`, { queue: queue.trim(), priority: Number(priority), ...who() });
    if (moved) tell(`It waits in ${brief(queue)} now.`);
    else tell("It stayed where it was: it is not waiting for a worker any more, or its key is taken there.", "lost");
    done();
  }}>
    <${TextField} label="Queue" value=${queue} onInput=${setQueue} autofocus />
    <${TextField} label="Priority" value=${priority} onInput=${setPriority} inputmode="numeric" hint="Higher ones are taken first." />
    <${Who} />
  <//>`;
}

function Budget({ run, totals, done }) {
  const [cost, setCost] = useState(totals.costLimitUsd === null ? "" : String(totals.costLimitUsd));
  const [tokens, setTokens] = useState(totals.tokenLimit === null ? "" : String(totals.tokenLimit));
  const [reason, setReason] = useState("");
  const wrong = (cost !== "" && !/^\d+(\.\d+)?$/.test(cost)) || (tokens !== "" && !/^\d+$/.test(tokens));
  return html`<${Question} title="What may it use?" action="Set the budget" disabled=${wrong} onDo=${async () => {
    await post(path`runs/${run.runId}/budget`, { costUsd: cost === "" ? undefined : Number(cost), tokens: tokens === "" ? undefined : Number(tokens), reason: reason || undefined, ...who() });
    tell("The budget is set.");
    done();
  }}>
    <p>It counts for the run with all its descendants. They have used $${Number(totals.treeCostUsd).toFixed(4)} and ${count(totals.treeInputTokens + totals.treeOutputTokens)} tokens.</p>
    <${TextField} label="Cost in USD" value=${cost} onInput=${setCost} inputmode="decimal" hint="Empty: no limit." />
    <${TextField} label="Tokens" value=${tokens} onInput=${setTokens} inputmode="numeric" hint="Empty: no limit." />
    <${TextField} label="Reason" value=${reason} onInput=${setReason} />
    <${Who} />
  <//>`;
}

export function ForkDialog({ data, step = "", seq = null }) {
  const { run, steps } = data;
  const done = steps.filter((one) => one.status === "completed").sort((a, b) => a.completedSeq - b.completedSeq);
  const [from, setFrom] = useState(seq !== null ? "seq" : step || "");
  const [other, setOther] = useState(false);
  const [input, setInput] = useState(JSON.stringify(run.input, null, 2) ?? "null");
  const [reason, setReason] = useState("");
  const read = parsed(input);
  return html`<${Question} title="Branch off" action="Make the fork" disabled=${other && Boolean(read.error)} onDo=${async () => {
    const through = from === "seq" ? { throughSeq: seq } : from === "0" ? { throughSeq: 0 } : from ? { throughStep: from } : {};
    const { runId } = await post(path`runs/${run.runId}/fork`, { ...through, ...(other ? { input: read.value } : {}), reason: reason || undefined, ...who() });
    tell("The fork is made: it waits for a worker.");
    go(["runs", runId]);
  }}>
    <p>A new run begins with what this one had at a point. Only what comes after is executed; this run stays as it is.</p>
    <${Choice} label="It takes over" value=${from} onChange=${setFrom} options=${[["", "everything up to now"], ...(seq !== null ? [["seq", `everything through event ${seq}`]] : []), ["0", "nothing but the input"], ...done.map((one) => [one.id, `through the step ${brief(one.name, 60)}`])]} />
    <label class="check"><input type="checkbox" checked=${other} onChange=${(event) => setOther(event.currentTarget.checked)} /> with another input</label>
    ${other && html`<${TextField} label="Input" area mono rows="6" value=${input} onInput=${setInput} error=${read.error} />`}
    <${TextField} label="Reason" value=${reason} onInput=${setReason} />
    <${Who} />
  <//>`;
}

// -- what waits for a person

/** A gate: what is asked, and how it may be answered. */
export function Gate({ gate, done, heading = "h3", runLink = false }) {
  const time = useValue(now);
  const [decision, choose] = useState("");
  const [comment, setComment] = useState("");
  const [busy, work] = useState(false);
  const [error, fail] = useState(null);
  const schema = gate.responseSchema;
  const start = gate.options.includes("edited") && decision === "edited" && !schema ? gate.data : undefined;
  const [answer, setAnswer] = useState(/** @type {any} */ ({ value: start, problems: [] }));
  const votes = (gate.ballots ?? []);
  const mine = me.value?.name && votes.some((vote) => vote.voter === me.value.name);
  const approver = may("approver");
  const decide = async () => {
    if (busy) return;
    work(true);
    fail(null);
    try {
      const wants = wantsAnswer(gate, decision) || schema;
      const said = await post(path`runs/${gate.runId}/gates/${gate.id}/decide`, { decision, comment: comment || undefined, ...(wants && answer.value !== undefined ? { payload: answer.value } : {}), ...who() });
      if (said.accepted && said.status === "pending") tell(`Your vote counts: ${said.approvals} of ${said.required}.`);
      else if (said.accepted) tell(`Decided: ${brief(said.decision)}.`);
      else tell(`Somebody was quicker: ${brief(said.decision ?? "another vote")}${said.actor ? ` by ${brief(said.actor)}` : ""} stands.`, "lost");
      done();
    } catch (problem) {
      fail(problem);
    }
    work(false);
  };
  return html`<article class="ask" data-gate=${gate.id}>
    <header>
      <${heading} class="ask-title"><${Text} text=${gate.name} /><//>
      ${gate.timeoutAt && html`<p class="deadline num ${Date.parse(gate.timeoutAt) - time < 3600_000 ? "near" : ""}">${Date.parse(gate.timeoutAt) > time ? html`${ago(gate.timeoutAt, time)}: <strong>${visible(gate.defaultDecision ?? "timed_out")}</strong> by itself, ${moment(gate.timeoutAt)}` : "its time is over"}</p>`}
    </header>
    ${runLink && html`<p class="muted"><a class="mono" href=${link(["runs", gate.runId])}><${Text} text=${gate.runId} most=${80} /></a> · <${Text} text=${gate.workflow} most=${80} /> · asked ${ago(gate.createdAt, time)}</p>`}
    ${gate.prompt && html`<p class="prompt" dir="auto">${visible(gate.prompt)}</p>`}
    ${gate.data !== null && html`<details open><summary>What is shown</summary><${Json} value=${gate.data} open=${2} /></details>`}
    ${gate.capability !== null && html`<details><summary>What an approval allows</summary><${Json} value=${gate.capability} /></details>`}
    ${gate.requiredApprovals > 1 && html`<p class="quorum"><strong class="num">${votes.filter((vote) => vote.decision !== "rejected").length} of ${gate.requiredApprovals}</strong> people agree${votes.length ? html`: ${votes.map((vote, /** @type {number} */ n) => html`${n ? ", " : ""}<${Text} text=${vote.voter} /> (${visible(vote.decision)})`)}` : " so far"}.</p>`}
    ${!approver && html`<p class="hint">Your key may look at it, and not decide.</p>`}
    ${approver && (mine ? html`<p class="hint">You have voted.</p>` : html`
      <fieldset class="options"><legend class="visually-hidden">Decision</legend>${gate.options.map((/** @type {string} */ option) => html`<label key=${option} class="option" data-chosen=${decision === option ? "true" : undefined}><input type="radio" name=${`decision-${gate.runId}-${gate.id}`} checked=${decision === option} onChange=${() => { choose(option); setAnswer({ value: option === "edited" && !schema ? gate.data : undefined, problems: [] }); }} /> <${Text} text=${option} most=${60} /></label>`)}</fieldset>
      ${decision && html`<div class="answer">
        ${(schema && decision !== "rejected") && html`<${Form} key=${decision} schema=${schema} onChange=${setAnswer} start=${starting(schema, gate.data, decision === "edited")} />`}
        ${!schema && wantsAnswer(gate, decision) && html`<${JsonField} label="Changed arguments" value=${answer.value} onChange=${(value, problem) => setAnswer({ value, problems: problem ? [problem] : [] })} />`}
        <${TextField} label="Comment" value=${comment} onInput=${setComment} area rows="2" />
        <${Who} />
        ${error && html`<${Trouble} error=${error} />`}
        <${Button} kind="primary" busy=${busy} disabled=${answer.problems.length > 0 && decision !== "rejected"} onClick=${decide}>Decide: ${visible(decision).slice(0, 40)}<//>
        ${answer.problems.length > 0 && decision !== "rejected" && html`<span class="wrong">${answer.problems[0]}</span>`}
      </div>`}`)}
  </article>`;
}

const wantsAnswer = (gate, /** @type {string} */ decision) => decision === "edited" || !["approved", "rejected", "canceled", "cancelled"].includes(decision) || Boolean(gate.responseSchema && decision !== "rejected");

/** What of the data fits into the form, as a beginning; all of it where it is to be edited. @param {boolean} edited */
function starting(given, data, edited) {
  const schema = resolved(given, given)?.schema;
  if (!isObject(data)) return edited && data !== null ? data : undefined;
  if (edited && schema?.additionalProperties !== false) return data;
  return Object.fromEntries(Object.entries(data).filter(([name]) => own(schema?.properties, name) !== undefined));
}

export function JsonField({ label, value, onChange, hint = null, rows = 6 }) {
  const [text, set] = useState(JSON.stringify(value ?? null, null, 2));
  const { error } = parsed(text);
  return html`<${TextField} label=${label} area mono rows=${rows} value=${text} hint=${hint} error=${error} onInput=${(typed) => { set(typed); const read = parsed(typed); onChange(read.value, read.error); }} />`;
}

/** A step of which nobody knows whether it took effect. */
export function Review({ review, done, heading = "h3", runLink = false }) {
  const time = useValue(now);
  const [decision, choose] = useState("");
  const [output, setOutput] = useState({ value: null, error: null });
  const [reason, setReason] = useState("");
  const [busy, work] = useState(false);
  const [error, fail] = useState(null);
  const may_decide = may("approver") || may("operator");
  const decide = async () => {
    if (busy) return;
    work(true);
    fail(null);
    try {
      await post(path`runs/${review.runId}/steps/${review.id}/resolve`, { decision, ...(decision === "accept" ? { output: output.value } : {}), reason: reason || undefined, ...who() });
      tell(`Resolved: ${decision}.`);
      done();
    } catch (problem) {
      if (/** @type {ApiError} */ (problem).code === "review_not_open") { tell("Somebody was quicker: the log says what was decided.", "lost"); done(); } else fail(problem);
    }
    work(false);
  };
  const CAUSES = /** @type {Record<string, string>} */ ({ crash: "Its worker died in the middle of it.", error: "It raised an error after it may have reached the outside.", contract: "It is begun now with another contract than before." });
  return html`<article class="ask review" data-review=${review.id}>
    <header><${heading} class="ask-title"><${Text} text=${review.step} /><//><p class="deadline num">in review since <time datetime=${review.openedAt}>${ago(review.openedAt, time)}</time></p></header>
    ${runLink && html`<p class="muted"><a class="mono" href=${link(["runs", review.runId])}><${Text} text=${review.runId} most=${80} /></a> · <${Text} text=${review.workflow} most=${80} /></p>`}
    <p class="prompt">Did this happen? ${CAUSES[review.cause] ?? ""} ${visible(review.explanation ?? "")}</p>
    <${Facts} items=${[["reaches", (review.sideEffects ?? []).map(visible).join(", ")], ["must hold", review.checkpointInvariant && html`<${Text} text=${review.checkpointInvariant} />`], ["ask", review.verifiedBy && html`<strong><${Text} text=${review.verifiedBy} /></strong>`], ["begun", `${times(review.attempt, "time")}`]]} />
    <div class="evidence"><details open><summary>What it was given</summary><${Json} value=${review.input} /></details>${review.error !== null && html`<details open><summary>What it raised</summary><${Json} value=${review.error} /></details>`}</div>
    ${!may_decide ? html`<p class="hint">Your key may look at it, and not decide.</p>` : html`
      <fieldset class="options"><legend class="visually-hidden">Decision</legend>${[["retry", "Retry: it did not happen"], ["accept", "Accept: it did happen"], ["fail", "Fail the run"]].map(([key, name]) => html`<label key=${key} class="option" data-chosen=${decision === key ? "true" : undefined}><input type="radio" name=${`review-${review.runId}-${review.id}`} checked=${decision === key} onChange=${() => choose(key)} /> ${name}</label>`)}</fieldset>
      ${decision && html`<div class="answer">
        ${decision === "accept" && html`<${JsonField} label="What it really returned" value=${null} hint="This becomes the step’s result for good." onChange=${(value, problem) => setOutput({ value, error: problem })} />`}
        <${TextField} label="Reason" value=${reason} onInput=${setReason} hint="What you saw, and where." />
        <${Who} />
        ${error && html`<${Trouble} error=${error} />`}
        <${Button} kind="primary" busy=${busy} disabled=${decision === "accept" && Boolean(output.error)} onClick=${decide}>Resolve: ${decision}<//>
      </div>`}`}
  </article>`;
}

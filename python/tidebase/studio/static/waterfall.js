// When what of a run happened: attempts with their holders, steps, gates, timers, children. What was executed is solid;
// where an attempt took a result over, a mark stands at its beginning. Long waits are drawn shorter than they were.

import { html, now, still, useMemo, useRef, useState, useValue } from "./core.js";
import { brief, clock, count, duration, moment, visible } from "./format.js";
import { Button, useSize, WORDS } from "./ui.js";

const ROW = 26, TOP = 24, LEAST = 3, MANY = 250;

/** @param {any[]} events @returns {Bar[]} */
export function barsOf(data, events) {
  const at = (/** @type {string | null} */ iso) => (iso ? Date.parse(iso) : null);
  const failed = new Map();
  for (const event of events) if (event.type === "step.failed" || event.type === "step.reviewed") failed.set(event.payload.name, Date.parse(event.createdAt));
  const attempts = data.attempts.map((a) => ({
    kind: "attempt", key: `attempt-${a.attempt}`, name: `${a.attempt}. ${a.holder}`, status: a.outcome ?? (a.lapsedAt ? "lapsed" : "running"),
    start: at(a.startedAt), end: at(a.endedAt), token: a.leaseToken, note: [a.codeVersion && `code ${a.codeVersion}`, `token ${a.leaseToken}`].filter(Boolean).join(", "),
  }));
  // Tries before the last one: the row of a step has only that.
  const earlier = (step) => events.filter((event) => event.type === "step.started" && event.payload.name === step.name && Date.parse(event.createdAt) < Date.parse(step.startedAt)).map((event) => {
    const begun = Date.parse(event.createdAt);
    const fault = events.find((later) => later.seq > event.seq && later.type === "step.failed" && later.payload.name === step.name);
    const attempt = attempts.find((one) => one.token === event.payload.token);
    return { start: begun, end: Math.min(fault ? Date.parse(fault.createdAt) : Infinity, attempt?.end ?? Infinity, Date.parse(step.startedAt)), status: fault ? "failed" : "lapsed" };
  });
  const bars = data.steps.map((s) => {
    const completed = at(s.completedAt);
    return {
      kind: "step", key: `step-${s.id}`, id: s.id, name: s.name, status: s.status, start: at(s.startedAt), tries: s.attempt,
      earlier: s.attempt > 1 ? earlier(s) : [],
      end: s.status === "failed" || s.status === "review" ? failed.get(s.name) ?? null : completed,
      replayed: completed === null ? [] : attempts.filter((a) => a.token > s.leaseToken && a.start >= completed).map((a) => a.start),
    };
  });
  for (const gate of data.gates) bars.push({ kind: gate.kind, key: `gate-${gate.id}`, id: gate.id, name: gate.name, status: gate.decision ?? gate.status, start: at(gate.createdAt), end: at(gate.decidedAt), note: gate.actor ? `by ${gate.actor}` : "" });
  for (const { name, edgeType, run } of data.children) bars.push({ kind: edgeType === "fork" ? "fork" : "child", key: `child-${run.runId}`, id: run.runId, name: edgeType === "fork" ? run.runId : name, status: run.status, start: at(run.createdAt), end: at(run.finishedAt) });
  bars.sort((/** @type {Bar} */ a, /** @type {Bar} */ b) => a.start - b.start || (a.name < b.name ? -1 : 1));
  return [...attempts, ...bars];
}

/** The times in which a run did nothing but wait, cut where they would take two thirds of the picture. @param {Bar[]} bars @param {number} begin @param {number} end */
export function foldsOf(bars, begin, end) {
  /** @type {[number, string, number][]} */
  const changes = [];
  for (const bar of bars) {
    const lasting = bar.end === null && ["waiting", "review", "pending", "queued"].includes(bar.status) && bar.kind !== "gate";
    const kind = bar.kind === "fork" || lasting ? "nothing" : bar.kind;
    changes.push([bar.start, kind, 1], [bar.end ?? end, kind, -1]);
  }
  changes.sort((a, b) => a[0] - b[0] || a[2] - b[2]);
  changes.push([end, "nothing", 0]);
  const open = /** @type {Record<string, number>} */ ({ attempt: 0, step: 0, gate: 0, timer: 0, child: 0, nothing: 0 });
  const unknown = !bars.some((bar) => bar.kind === "attempt");
  /** @type {{start: number, end: number}[]} */
  const waits = [];
  let before = begin;
  for (const [moment, kind, more] of changes) {
    const attended = open.attempt > 0 || unknown;
    const working = open.child > 0 || (open.step > 0 && attended);
    if (moment > before && !working && (open.gate > 0 || open.timer > 0 || !attended)) {
      const last = waits[waits.length - 1];
      if (last && last.end === before) last.end = moment;
      else waits.push({ start: before, end: moment });
    }
    before = Math.max(before, moment);
    open[kind] += more;
  }
  const waited = waits.reduce((sum, wait) => sum + wait.end - wait.start, 0);
  const rest = end - begin - waited;
  if (rest <= 0 || waited <= 2 * rest) return [];
  let left = rest, most = Infinity;
  const lengths = waits.map((wait) => wait.end - wait.start).sort((a, b) => a - b);
  for (const [n, length] of lengths.entries()) {
    if (length > left / (lengths.length - n)) { most = left / (lengths.length - n); break; }
    left -= length;
  }
  return waits.filter((wait) => wait.end - wait.start > most).map((wait) => ({ ...wait, shown: most }));
}

/** @param {number} ms */
function tick(ms) {
  const most = ms / 4;
  for (const size of [86400e3, 43200e3, 21600e3, 10800e3, 3600e3, 1800e3, 600e3, 300e3, 120e3, 60e3, 30e3]) if (most >= size) return size;
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...[1, 2, 5].map((factor) => factor * power).filter((size) => size <= most), power);
}

/** What events add to the rows is drawn with the next rows, which are read soon. @type {(props: {data: any, events: any[], chosen: string, choose: (bar: Bar) => void}) => any} */
export const Waterfall = still(({ data, events, chosen, choose }) => {
  const box = useRef(null);
  const { width } = useSize(box);
  const time = useValue(now);
  const [hovered, hover] = useState("");
  const [most, show] = useState(MANY);
  const all = useMemo(() => barsOf(data, events), [data]);
  const cut = all.length - most;
  const begin = cut > 0 ? Math.min(...all.slice(cut).filter((bar) => bar.kind !== "attempt").map((bar) => bar.start)) : Math.min(Date.parse(data.run.createdAt), ...all.map((bar) => bar.start));
  const bars = all.filter((bar, n) => n >= cut || (bar.kind === "attempt" && (bar.end ?? Infinity) >= begin));
  const alive = !["completed", "failed", "cancelled"].includes(data.run.status);
  const ends = bars.flatMap((bar) => [bar.start, bar.end ?? 0]);
  const end = Math.max(begin + 1, alive ? time : Date.parse(data.run.updatedAt), ...ends);
  const folds = foldsOf(bars, begin, end);
  const drawn = (/** @type {number} */ moment) => moment - begin - folds.reduce((out, fold) => out + (fold.end - fold.start - fold.shown) * Math.min(Math.max((moment - fold.start) / (fold.end - fold.start), 0), 1), 0);
  const room = Math.max(width - 64, 40);
  const x = (/** @type {number} */ moment) => Math.max((drawn(moment) / drawn(end)) * room, 0);
  const step = tick(drawn(end));
  const tall = TOP + bars.length * ROW + 6;
  const marks = /** @type {{x: number, said: string}[]} */ ([]);
  for (const [from, to] of [[begin, folds[0]?.start ?? end], ...folds.map((fold, n) => [fold.end, folds[n + 1]?.start ?? end])]) {
    for (let n = from === begin ? 0 : 1; n * step <= to - from && marks.length < 40; n++) marks.push({ x: x(from + n * step), said: `${from === begin ? "" : "+"}${n ? duration(n * step).replace(/\.0+ /, " ") : "0"}` });
  }
  const roomy = marks.filter((mark, n) => n === 0 || mark.x - marks[n - 1].x > 44);
  return html`<div class="timeline">${cut > 0 && html`<p class="muted">The newest ${most} of ${count(all.length)}. <${Button} kind="small" onClick=${() => show(Infinity)}>Show all<//></p>`}<div class="waterfall">
    <div class="labels" style=${{ paddingTop: `${TOP}px` }}>${bars.map((bar) => html`<button key=${bar.key} type="button" class="label ${bar.kind} ${hovered === bar.key ? "hovered" : ""}" aria-pressed=${chosen === bar.key ? "true" : "false"} onClick=${() => choose(bar)} onMouseEnter=${() => hover(bar.key)} onMouseLeave=${() => hover("")} title=${`${bar.kind} ${brief(bar.name, 500)}: ${WORDS[bar.status] ?? brief(bar.status, 60)}, ${duration((bar.end ?? end) - bar.start)}`}>
      ${bar.kind !== "step" && html`<span class="kind">${bar.kind}</span>`}<bdi>${brief(bar.name, 120)}</bdi>${(bar.tries ?? 0) > 1 && html`<span class="tries num">×${bar.tries}</span>`}</button>`)}</div>
    <div class="chart" ref=${box}>
      <svg width=${width} height=${tall} role="img" aria-label=${`Waterfall of ${bars.length} bars over ${duration(end - begin)}`}>
        ${roomy.map((mark) => html`<g><line class="grid" x1=${mark.x} x2=${mark.x} y1=${TOP - 4} y2=${tall} /><text class="axis num" x=${Math.max(mark.x, 1)} y="14" text-anchor=${mark.x < 20 ? "start" : "middle"}>${mark.said}</text></g>`)}
        ${bars.map((bar, n) => {
          const y = TOP + n * ROW, from = x(bar.start), to = x(bar.end ?? end), wide = Math.max(to - from, LEAST);
          const said = `${duration((bar.end ?? end) - bar.start)}`;
          return html`<g key=${bar.key} class="bar ${bar.kind} ${hovered === bar.key || chosen === bar.key ? "hovered" : ""}" data-status=${bar.status} onClick=${() => choose(bar)} onMouseEnter=${() => hover(bar.key)} onMouseLeave=${() => hover("")}>
            <rect class="hit" x="0" y=${y} width=${width} height=${ROW} />
            <rect class="mark ${bar.end === null ? "open" : ""}" x=${from} y=${y + (bar.kind === "attempt" ? 10 : 6)} width=${wide} height=${bar.kind === "attempt" ? 6 : 14} rx="2" />
            ${(bar.earlier ?? []).slice(-20).map((one) => html`<rect class="mark earlier" data-status=${one.status} x=${x(one.start)} y=${y + 9} width=${Math.max(x(one.end) - x(one.start), LEAST)} height="8" rx="2"><title>an earlier try: ${one.status === "failed" ? "it failed" : "it was cut off"} after ${duration(one.end - one.start)}</title></rect>`)}
            ${(bar.replayed ?? []).slice(0, 20).map((at) => html`<path class="replayed" d=${`M${x(at)} ${y + 7}l6 6l-6 6z`}><title>its result was taken over by the attempt of ${clock(new Date(at).toISOString())}: not executed</title></path>`)}
            <text class="took num" x=${Math.min(to + 6, room + 8)} y=${y + 17}>${said}</text>
            <title>${visible(bar.kind)} ${brief(bar.name, 200)}: ${WORDS[bar.status] ?? brief(bar.status, 60)}. From ${moment(new Date(bar.start).toISOString())}, ${said}. ${visible(bar.note ?? "")}</title>
          </g>`;
        })}
        ${folds.map((fold) => html`<g><rect class="fold" x=${x(fold.start)} y=${TOP - 4} width=${x(fold.end) - x(fold.start)} height=${tall} /><text class="axis num" x=${(x(fold.start) + x(fold.end)) / 2} y=${TOP + 6} text-anchor="middle">⋯ ${duration(fold.end - fold.start)}</text><title>${duration(fold.end - fold.start)} of waiting, drawn shorter</title></g>`)}
      </svg>
    </div>
  </div>
  <p class="legend muted"><span><i class="key-solid" aria-hidden="true"></i>executed</span>${bars.some((bar) => bar.earlier?.length) && html`<span><i class="key-cut" aria-hidden="true"></i>an earlier try: failed, or cut off</span>`}<span><i class="key-replay" aria-hidden="true"></i>replayed: taken over, not executed</span>${folds.length > 0 && html`<span>⋯ waiting, drawn shorter</span>`}${data.cut.length > 0 && html`<span>only the newest ${data.cut.join(", ")} are shown</span>`}</p></div>`;
}, "data", "chosen");

// A run in words: how it is, what it waits for, and what would move it on.

import { ago, brief, count, duration, moment, money, short, times } from "./format.js";

const name = (text) => `“${brief(text, 80)}”`;

/** The API has the names of Tidebase v0.6, where the main stream is called "run". @param {string} name */
export const streamOf = (name) => ({ run: "main", main: "run" })[name] ?? name;

const FAILURES = /** @type {Record<string, string>} */ ({
  error: "Its work raised an error.",
  max_attempts: "The last of its attempts failed.",
  crashed: "It lost its worker too often.",
});

/**
 * What a run is at, and what would move it on: sentences.
 * @param {number} at
 * @returns {{is: string, next: string}}
 */
export function explain(run, data, at) {
  const gates = data?.gates ?? [], steps = data?.steps ?? [];
  switch (run.status) {
    case "pending":
      if (run.availableAt && Date.parse(run.availableAt) > at) return { is: `It is tried again ${ago(run.availableAt, at)}, at ${moment(run.availableAt)}.`, next: "A worker that calls its workflow with this id takes it up then. “Resume” allows it now." };
      return run.attempt === 0
        ? { is: "Nobody has begun it.", next: "A worker that calls its workflow with this id takes it up." }
        : { is: "Nobody is at work on it.", next: `A worker that calls its workflow with this id goes on where it stopped: ${times(run.stepsCompleted, "step")} will be replayed.` };
    case "queued":
      return run.availableAt && Date.parse(run.availableAt) > at
        ? { is: `It waits in the queue ${name(run.queue)} until ${moment(run.availableAt)}.`, next: "A worker of this queue takes it then. “Resume” lets it go now." }
        : { is: `It waits for a worker of the queue ${name(run.queue)}${run.priority ? `, with priority ${run.priority}` : ""}.`, next: "See the queue for what holds it back." };
    case "running": {
      const at_work = steps.filter((step) => step.status === "running").map((step) => name(step.name));
      const asks = gates.filter((gate) => gate.status === "pending" && gate.kind === "gate");
      const doing = at_work.length ? ` It executes ${at_work.slice(0, 3).join(", ")}${at_work.length > 3 ? ` and ${at_work.length - 3} more` : ""}.` : "";
      if (run.leaseLapsed) return { is: `Its worker ${name(run.holder)} has gone silent: the lease ran out ${ago(run.leaseExpiresAt, at)}.`, next: "Any worker may take it over now. What is completed is kept." };
      return { is: `${name(run.holder)} is at work on it.${doing}`, next: asks.length ? `Its worker waits for the decision about ${name(asks[0].name)}.` : `The lease lasts ${run.leaseExpiresAt ? ago(run.leaseExpiresAt, at).replace("in ", "for ") : ""} and is renewed while the worker lives.` };
    }
    case "waiting": {
      const gate = gates.find((one) => one.name === run.waitingFor);
      if (gate?.kind === "timer") return { is: `It waits for the timer ${name(gate.name)}.`, next: `It may go on ${ago(gate.timeoutAt, at)}, at ${moment(gate.timeoutAt)}.` };
      if (gate) {
        const falls = gate.timeoutAt ? ` If nobody does, ${name(gate.defaultDecision ?? "timed_out")} falls at ${moment(gate.timeoutAt)}.` : "";
        const many = gate.requiredApprovals > 1 ? `${gate.requiredApprovals} people must agree.` : "Whoever may approve decides.";
        return { is: `It asks ${name(gate.name)}, and no process has to live while it waits.`, next: `${many}${falls}` };
      }
      return { is: `It waits for its children: ${brief(run.waitingFor, 200)}.`, next: "It may go on as soon as one of them has ended, or can go on." };
    }
    case "review": {
      const asked = steps.filter((step) => step.status === "review").map((step) => name(step.name));
      return { is: `${asked.length > 1 ? "Steps" : "The step"} ${asked.join(", ")} may have taken effect, and nobody knows.`, next: "A person must look, and say: retry it, accept it with what it really returned, or fail the run." };
    }
    case "completed":
      return { is: `It took ${duration(Date.parse(run.finishedAt) - Date.parse(run.createdAt))} and ${times(run.attempt, "attempt")}.`, next: "" };
    case "failed":
      return { is: FAILURES[run.failureClass] ?? "It failed.", next: `“Resume” lets a worker take it up again: ${times(run.stepsCompleted, "completed step")} would be replayed, not executed.` };
    case "cancelled":
      return { is: run.failureClass === "deadline" ? "Its deadline passed." : `${run.cancelActor ? name(run.cancelActor) : "Somebody"} cancelled it${run.cancelReason ? `: ${brief(run.cancelReason, 300)}` : "."}`, next: "That is for good. A fork would go on from any of its steps." };
    default:
      return { is: "", next: "" };
  }
}

/** What an event says, on one line. */
export function say(event) {
  const p = event.payload ?? {};
  const error = p.error ? `: ${brief(p.error.message ?? p.error, 200)}` : "";
  switch (event.type) {
    case "run.created": return p.workflowName ?? p.workflow ?? "";
    case "run.started": return `attempt ${p.attempt}, ${brief(p.holder, 80)}, token ${p.token}${p.lapsed ? `; took over from ${brief(p.lapsed.holder, 80)}` : ""}`;
    case "run.failed": return `${p.status}${error}`;
    case "run.completed": return p.result === undefined ? "" : brief(p.result, 200);
    case "run.suspended": return `until ${brief(p.name)}`;
    case "run.cancelled": return [p.actor && `by ${p.actor}`, p.reason].filter(Boolean).map((text) => brief(text)).join(": ");
    case "run.enqueued": return `${brief(p.queue)}, priority ${p.priority ?? 0}`;
    case "run.moved": return `to ${brief(p.queue)}${p.actor ? ` by ${brief(p.actor)}` : ""}`;
    case "run.forked": return `from ${brief(p.source_run_id)}, through ${p.through_step ? brief(p.through_step) : `event ${p.through_seq}`}`;
    case "run.child.created": return `${brief(p.name)}: ${brief(p.child_run_id)}`;
    case "step.started": case "step.completed": return `${brief(p.name)}${p.attempt > 1 ? `, ${p.attempt}. time` : ""}`;
    case "step.failed": return `${brief(p.name)}${error}${p.decision ? ` → ${p.decision}` : ""}`;
    case "step.review": return `${brief(p.name)}: ${brief(p.explanation ?? p.cause)}`;
    case "step.reviewed": return `${brief(p.name)}: ${p.decision}${p.actor ? ` by ${brief(p.actor)}` : ""}${p.reason ? `: ${brief(p.reason)}` : ""}`;
    case "gate.created": return `${brief(p.name)}: ${brief(p.prompt)}`;
    case "gate.voted": return `${brief(p.name)}: ${brief(p.decision)} by ${brief(p.voter)} (${p.approvals} of ${p.required})`;
    case "gate.resolved": return `${brief(p.name)}: ${brief(p.decision)}${p.actor ? ` by ${brief(p.actor)}` : p.by ? ` (${p.by})` : ""}`;
    case "timer.started": return `${brief(p.name)} until ${p.fires_at ? short(p.fires_at) : ""}`;
    case "state.updated": case "state.restored": case "state.saved": case "snapshot.created": return `${brief(streamOf(p.stream))} version ${p.version ?? p.stateVersion?.version}${p.label ? `, ${brief(p.label)}` : ""}`;
    case "usage.recorded": return [p.model, p.input_tokens && `${count(p.input_tokens)} in`, p.output_tokens && `${count(p.output_tokens)} out`, p.cost && money(Number(p.cost))].filter(Boolean).join(", ");
    case "budget.changed": return `${p.cost_usd === null ? "no limit of cost" : money(p.cost_usd)}, ${p.tokens === null ? "no limit of tokens" : `${count(p.tokens)} tokens`}${p.actor ? ` by ${brief(p.actor)}` : ""}`;
    case "recovery.started": return `${brief(p.reason)}${p.actor ? ` by ${brief(p.actor)}` : ""}`;
    default: {
      const shown = { ...p };
      delete shown.stateVersion;
      return Object.keys(shown).length ? brief(p.name ?? p.note ?? p.text ?? p.message ?? shown) : "";
    }
  }
}

const KINDS = /** @type {[RegExp, string][]} */ ([
  [/\.(failed|lapsed|cancelled|review)$|^budget\.exhausted/, "bad"],
  [/^gate\.|\.reviewed$|^timer\./, "ask"],
  [/^run\./, "run"],
  [/\.completed$|\.delivered$/, "good"],
  [/^step\.|^state\.|^snapshot\.|^usage\.|^budget\.|^recovery\./, "plain"],
]);

/** How an event is coloured. @param {string} type */
export const kindOf = (type) => KINDS.find(([pattern]) => pattern.test(type))?.[1] ?? "own";

"""Every probe is seen failing with its mechanism taken out: a probe that cannot fail proves nothing.

A mutation replaces a snippet in one function of the database, and the probe reports violations. That it is silent
otherwise is seen by the tests of each domain, and here, on the same database, before its first mutation. Where a
mechanism guards against a race, the probe forces the race with locks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest

from .conftest import on_newest
from .probes import gates as probe_gates
from .probes import kernel as probes
from .probes import queues as probe_queues
from .probes import state as probe_state
from .probes import threads as probe_threads
from .probes import waiting as probe_waiting
from .probes import workers as probe_workers
from .probes.kernel import Probe
from .probes.support import Connection, connect, values


@dataclass(frozen=True)
class Edit:
    """In the function of this name, the first text becomes the second, wherever it stands."""

    function: str
    text: str
    instead: str

    def apply(self, connection: Connection) -> None:
        definitions = values(
            connection,
            "select pg_get_functiondef(oid) from pg_proc where proname = %s"
            " and pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)",
            self.function,
        )
        assert len(definitions) == 1, f"there are {len(definitions)} functions {self.function}"
        assert self.text in definitions[0], f"{self.function} has changed, and has no more: {self.text}"
        connection.execute(definitions[0].replace(self.text, self.instead))


@dataclass(frozen=True)
class Statement:
    """A statement that takes out a mechanism which is not in a function's body."""

    text: str

    def apply(self, connection: Connection) -> None:
        connection.execute(self.text)  # type: ignore[arg-type]


FENCE = """update tidebase.run_heads h
  set last_seq = h.last_seq + events,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + events else h.durable_seq end,
      steps_completed = h.steps_completed + checkpoints,
      updated_at = clock_timestamp()
  where h.run_id = fence.run_id and h.lease_token = fence.token and h.status = 'running'
  returning h.* into head;"""

GRANT = "greatest(h.lease_token, tidebase_private.tokens_before()) + 1"

LIVE = "return head.lease_expires_at > clock_timestamp() and"

VOTER = "then tidebase_private.voter_of(secret)"

READ_THEN_WRITE = """select h.* into head from tidebase.run_heads h where h.run_id = fence.run_id;
  if head.lease_token is distinct from fence.token or head.status <> 'running' then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  update tidebase.run_heads h
  set last_seq = h.last_seq + events, steps_completed = h.steps_completed + checkpoints, updated_at = clock_timestamp()
  where h.run_id = fence.run_id
  returning h.* into head;"""

WITHOUT_LOCK = """select h.* into head from tidebase.run_heads h
  where h.run_id = fence.run_id and h.lease_token = fence.token and h.status = 'running';
  head.last_seq := {};"""

HIGHEST = "(select coalesce(max(e.seq), 0) + events from tidebase.events e where e.run_id = fence.run_id)"
SEQUENCE = Statement(
    "create sequence tidebase_private.numbers start 3; grant usage on tidebase_private.numbers to tidebase_owner"
)
NEXT = "nextval('tidebase_private.numbers')"

Mutation = tuple[Edit | Statement, ...]

MUTATIONS: dict[str, tuple[Mutation, Probe]] = {
    # I1: one holder
    "a grant does not lock the head": (
        (Edit("lock_head", "for no key update", ""),),
        partial(probes.one_holder, queued=True),
    ),
    "a grant does not look whether the lease is live": (
        (Edit("is_taken", LIVE, "return false and"),),
        probes.one_holder,
    ),
    "a grant does not look whether the lease is live (take-over)": (
        (Edit("is_taken", LIVE, "return false and"),),
        probes.takeovers,
    ),
    "a loser is not told the holder": ((Edit("lease_refused", "head.holder", "null"),), probes.one_holder),
    "a grant does not raise the token": (
        (Edit("acquire_run", GRANT, "greatest(h.lease_token, 1)"),),
        probes.takeovers,
    ),
    "a grant does not raise the token (short leases)": (
        (Edit("acquire_run", GRANT, "greatest(h.lease_token, 1)"),),
        probes.short_leases,
    ),
    "tokens start anew": (
        (Edit("acquire_run", GRANT, "case when h.lease_token > 3 then 1 else h.lease_token + 1 end"),),
        probes.takeovers,
    ),
    "expiry is compared with the transaction's time": (
        (Edit("is_taken", "head.lease_expires_at > clock_timestamp()", "head.lease_expires_at > now()"),),
        probes.time_after_waiting,
    ),
    "a grant lasts from the transaction's time": (
        (Edit("acquire_run", "clock_timestamp() + ttl", "now() + ttl"),),
        probes.time_after_waiting,
    ),
    "a renewal lasts from the transaction's time": (
        (Edit("renew_lease", "clock_timestamp() + ttl", "now() + ttl"),),
        probes.time_after_waiting,
    ),
    # I2: fencing
    "the fence does not compare the token": (
        (Edit("fence", "and h.lease_token = fence.token", ""),),
        probes.zombie,
    ),
    "the fence lets any older token pass": (
        (Edit("fence", "h.lease_token = fence.token", "h.lease_token >= fence.token"),),
        probes.zombie,
    ),
    "the fence takes a NULL token for the current one": (
        (Edit("fence", "h.lease_token = fence.token", "h.lease_token = coalesce(fence.token, h.lease_token)"),),
        probes.zombie,
    ),
    "the refusal ignores a NULL token": (
        (Edit("raise_fenced", "token is distinct from head.lease_token", "token <> head.lease_token"),
         Edit("raise_fenced", "the lease of run %L was given up", "%L"),
         Edit("raise_fenced", "'TB003', format('%L", "'TB005', format('%L")),
        probes.zombie,
    ),
    "the refusal is not raised": (
        (Edit("fence", "perform tidebase_private.raise_fenced(run_id, token);", "null;"),),
        probes.zombie,
    ),
    "the fence compares the token before it has the lock": (
        (Edit("fence", FENCE, READ_THEN_WRITE),),
        probes.replaced_while_waiting,
    ),
    "the fence does not look at the status": (
        (Edit("fence", "and h.status = 'running'", ""),),
        probes.given_up,
    ),
    "a renewal does not compare the token": (
        (Edit("renew_lease", "and h.lease_token = renew_lease.token", ""),),
        probes.zombie,
    ),
    "a renewal does not compare the token (while it waits)": (
        (Edit("renew_lease", "and h.lease_token = renew_lease.token", ""),),
        probes.replaced_while_waiting,
    ),
    "a release repeated does not compare the token": (
        (Edit("release_run", "head.status in ('pending', 'queued') and head.lease_token = token", "true"),),
        probes.zombie,
    ),
    "a run's end repeated does not compare the token": (
        (Edit("complete_run", "h.lease_token = complete_run.token and h.status = 'completed'",
              "h.status = 'completed'"),
         Edit("complete_run", "r.result = wanted", "true")),
        probes.zombie,
    ),
    "a lapsed holder is turned away": (
        (Edit("fence", "and h.status = 'running'", "and h.lease_expires_at > clock_timestamp()"),),
        probes.lapsed_holder,
    ),
    "a lease that has run out is ended by the reconciler": (
        (Edit("mark_lapsed", "return true",
              "perform tidebase_private.give_up(tidebase_private.advance(head.run_id)); return true"),),
        probes.lapsed_holder,
    ),
    "what was done when the lease was given up is refused": (
        (Edit("fence_done", "h.status not in ('completed', 'cancelled')", "h.status = 'running'"),),
        probes.paid_for,
    ),
    # queues: who is given what, what comes back, limits, order, the clock
    "a claim waits for what another one has": (
        (Edit("lock_entries", "for no key update skip locked", "for no key update"),),
        probe_queues.claims_wait_for_nobody,
    ),
    "a claim believes the entry": (
        (Edit("grant_runs", "where h.run_id = any (chosen) and h.status = 'queued'", "where h.run_id = any (chosen)"),),
        probe_queues.only_what_is_free,
    ),
    "a claim leaves the entry": (
        (Edit("grant_runs", "delete from tidebase.queue_entries e using granting g where e.run_id = g.run_id",
              "delete from tidebase.queue_entries e using granting g where false"),
         Edit("grant_runs", "and h.status = 'queued'", "and h.status in ('queued', 'running')")),
        probe_queues.each_once,
    ),
    **{
        f"a run that {what} does not come back": (
            (Edit(function, f"perform tidebase_private.requeue({head});", "null;"),),
            probe_queues.comes_back,
        )
        for what, function, head in (
            ("is released", "give_up", "head"),
            ("fails", "fail_run", "head"),
            ("has its gate decided", "settle_gate", "head"),
            ("has its child completed", "go_on", "head"),
            ("loses its worker", "mark_lapsed", "head"),
            ("is reviewed", "resolve_review", "freed"),
            ("is recovered", "recover_run", "head"),
            ("is retried", "retry_runs", "head"),
        )
    },
    "a claim does not look whose lease has run out": (
        (Edit("claim_runs", "perform tidebase_private.reconcile_due(50);", "null;"),),
        probe_queues.comes_back,
    ),
    "a lane is searched from its mark only": (
        (Edit("tend_if_due", "whole => sweep_at <= clock_timestamp()", "whole => false"),
         Edit("claim_runs", "whole => round = 2", "whole => false")),
        probe_queues.late_comers,
    ),
    "a limited queue is not locked": (
        (Edit("lock_queue", "lock_queue.queue for no key update;", "lock_queue.queue;"),),
        probe_queues.limits_hold,
    ),
    "slots are not counted": ((Edit("room_of", "room := queue.concurrency - (", "room := queue.concurrency - 0 * ("),),
                              probe_queues.limits_hold),
    "slots of a key are not counted": (
        (Edit("room_of_key", "room := queue.key_concurrency - (", "room := queue.key_concurrency - 0 * ("),),
        probe_queues.limits_hold,
    ),
    "what began is not counted": (
        (Edit("take_slots", "insert into tidebase.queue_starts (queue, started_at, key)\n    select",
              "insert into tidebase.queue_starts (queue, started_at, key)\n    select distinct"),
         Edit("take_slots", "where r.run_id = any (take_slots.run_ids);", "where false;")),
        probe_queues.limits_hold,
    ),
    "who asks by the id is not held to the limits": (
        (Edit("acquire_run", "elsif queue.paused or", "elsif"),),
        probe_queues.limits_hold,
    ),
    "what was under way when a limit was set is not counted": (
        (Edit("lock_queue", "perform tidebase_private.adopt_leases(queue);", "null;"),),
        probe_queues.young_limits_hold,
    ),
    "who may not be taken over just now is forgotten": (
        (Edit("grant_runs", "elsif outcome <> 'queued' then", "else"),),
        probe_queues.limits_end_with_their_time,
    ),
    "a take-over counts twice": (
        (Edit("claim_from_queue", "room := least(max",
              "perform tidebase_private.take_slots(queue, taken); room := least(max"),),
        probe_queues.limits_end_with_their_time,
    ),
    "a lease that runs out while it is looked at is never seen": (
        (Edit("next_due", "when not tidebase_private.is_marked(head) then head.lease_expires_at end,", "end,"),),
        probe_queues.limits_end_with_their_time,
    ),
    "who is late is not found in its queue": (
        (Edit("grant_runs",
              "perform tidebase_private.put_entry_off(other.run_id, clock_timestamp() + interval '1 minute');",
              "delete from tidebase.queue_entries e where e.run_id = other.run_id;"),),
        probe_queues.who_is_late_stays_in_order,
    ),
    "a run that was moved is held to the limits of before": (
        (Edit("acquire_run", "head.in_queue and queue.queue is distinct", "false and queue.queue is distinct"),),
        probe_queues.limits_hold_for_who_is_moved,
    ),
    "the clock waits for who is at a run": (
        (Edit("fire_schedule", "for no key update skip locked", "for no key update"),),
        probe_queues.the_clock_waits_for_nobody,
    ),
    "a slot is free when its lease has run out": (
        (Edit("free_slots", "and h.lease_token = t.lease_token", "and h.lease_token = t.lease_token"
              " and h.lease_expires_at > clock_timestamp()"),),
        probe_queues.limits_under_fire,
    ),
    "a key's runs have no distance": (
        (Edit("next_place", "select e.place + 1 from", "select e.place from"),
         Edit("enqueue_all", "row_number() over", "0 * row_number() over")),
        probe_queues.small_keys_are_served,
    ),
    "a low priority starves": (
        (Edit("lanes_in_order", "random() < 0.125", "false"),),
        probe_queues.a_low_priority_is_served,
    ),
    "a key is anybody's": (
        (Edit("take_dedupe_key", "exit when found;  -- else it was purged in between", "return null;"),),
        probe_queues.one_of_a_key,
    ),
    "two fire the same time": (
        (Edit("fire_due", "for no key update skip locked", ""),
         Edit("fire_id", "format('sched:%s:%s', name", "format('sched:%s:%s', gen_random_uuid()")),
        probe_queues.fires_once,
    ),
    "the bell of a queue does not ring": (
        (Edit("ring_queue", "perform pg_notify", "perform concat"),),
        probe_queues.wakes_who_sleeps,
    ),
    "the bell of a queue rings for nobody": (
        (Edit("ring_queue", "w.listening_until > clock_timestamp() and w.queues @> array[queue]", "true"),
         Edit("ring_queue", "if exists (", "if not exists (")),
        probe_queues.wakes_who_sleeps,
    ),
    "bulk waits for who is at work": (
        (Edit("lock_runs", "for no key update skip locked", "for no key update"),),
        probe_queues.bulk_waits_for_nobody,
    ),
    "a run is completed with others under a token that is not its own": (
        (Edit("complete_runs", "and h.lease_token = g.token", ""),),
        probe_queues.ended_together,
    ),
    "a run that was given up is completed with others": (
        (Edit("complete_runs", "h.lease_token = g.token and h.status = 'running'", "h.lease_token = g.token"),),
        probe_queues.ended_together,
    ),
    "runs that end together wait for one that is locked": (
        (Edit("complete_runs", "for no key update of h skip locked", "for no key update of h"),),
        probe_queues.ended_together,
    ),
    "one that cannot be completed fails the others": (
        (Edit("try_to_complete", "if sqlstate !~ '^TB' then", "if true then"),),
        probe_queues.ended_together,
    ),
    "an endpoint is told of a run that it was told of": (
        (Edit("invoke", "perform tidebase_private.put_entry_off(head.run_id, told.next_at);", "null;"),
         Edit("invoke", "and told.next_at > as_of", "and false")),
        probe_queues.told_once,
    ),
    "what is on its way is not counted": (
        (Edit("room_of", "- tidebase_private.in_flight(queue.queue, null, own)", ""),),
        probe_queues.told_once,
    ),
    "a late report counts": (
        (Edit("finish_invocation", "told.invocation is distinct from invocation or", ""),),
        probe_queues.told_once,
    ),
    "an answer that was cut off hides that the run was begun": (
        (Edit("finish_invocation", "head.attempt >= told.attempt", "false"),),
        probe_queues.told_once,
    ),
    "a dispatcher waits for another one": (
        (Edit("claim_invocations", "for no key update skip locked", "for no key update"),),
        probe_queues.endpoints_wait_for_nobody,
    ),
    "a dead endpoint is asked like any other": (
        (Edit("note_endpoint", "set failures = p.failures + 1, failing_since = coalesce(p.failing_since, as_of),",
              "set"),
         Edit("note_endpoint", "as_of + tidebase_private.retry_delay(p.failures + 1, '1 second', '1 minute')",
              "as_of")),
        probe_queues.endpoints_wait_for_nobody,
    ),
    # parents that wait, workers that die, tokens that come again
    **{
        f"{function} wakes no parent": ((Edit(function, f"perform tidebase_private.wake_parents({run});", ""),), probe)
        for function, run, probe in (
            ("complete_run", "run_id", probe_waiting.parents_are_woken),
            ("complete_runs", "child", probe_waiting.parents_are_woken),
            ("fail_run", "run_id", probe_waiting.parents_are_woken),
            ("give_up", "head.run_id", probe_waiting.parents_are_woken),
            ("cancel_one", "head.run_id", probe_waiting.parents_are_woken),
            ("settle_gate", "gate.run_id", probe_waiting.parents_are_woken),
            ("resolve_review", "run_id", probe_waiting.parents_are_woken),
            ("look_at", "head.run_id", probe_waiting.parents_are_woken),
        )
    },
    "a parent lies down without a look at its child": (
        (Edit("suspend_for_children", "order by h.run_id for share", "order by h.run_id"),),
        probe_waiting.no_wake_is_lost,
    ),
    "an attempt whose worker died does not count": (
        (Edit("attempts_used", "('failed', 'lapsed')", "('failed')"),),
        probe_waiting.crashes_are_counted,
    ),
    "a grant is withdrawn by any call": (
        (Edit("withdraw_grant", "and a.request_id = withdraw_grant.request_id", ""),),
        probe_waiting.a_grant_is_withdrawn_by_its_own_call,
    ),
    "the tokens of a purged run come again": (
        (Edit("forget", "where i.tokens_before < highest.token", "where false"),),
        probe_waiting.tokens_of_what_is_gone,
    ),
    "a dump goes on with the tokens of where it was made": (
        (Edit("tokens_before", "known.whereabouts is distinct from here", "false"),),
        probe_waiting.tokens_of_another_place,
    ),
    "what was done is stored under any lease": (
        (Edit("fence_done", "h.lease_token = fence_done.token and", ""),),
        probes.paid_for,
    ),
    # I3: checkpoints
    "a running step may be begun again under the same lease": (
        (Edit("may_begin_again", "step.lease_token <> may_begin_again.lease_token", "true"),),
        probes.one_begin,
    ),
    "a running step may be begun again under the same lease (barrier)": (
        (Edit("may_begin_again", "step.lease_token <> may_begin_again.lease_token", "true"),),
        partial(probes.one_begin, queued=False),
    ),
    "a running step may not be begun again by a successor": (
        (Edit("may_begin_again", "step.lease_token <> may_begin_again.lease_token", "false"),),
        probes.successor_repeats,
    ),
    "a call repeated is not recognised": (
        (Edit("begun_already", "step.request_id = request_id", "false"),),
        probes.same_request,
    ),
    "an append repeated is not recognised": (
        (Edit("find_request", "e.request_id = find_request.request_id", "false"),),
        probes.same_request,
    ),
    "a number that is not needed is not given back": (
        (Edit("give_back", "h.last_seq - events", "h.last_seq"),),
        probes.same_request,
    ),
    "a completed step is completed again": (
        (Edit("complete_step", "and s.status = 'running' and", "and"),),
        probes.checkpoint_is_final,
    ),
    "a step is completed under any lease": (
        (Edit("complete_step", "and s.status = 'running' and s.lease_token = complete_step.token", ""),),
        probes.checkpoint_is_final,
    ),
    "a completed step is recorded again": (
        (Edit("record_step", "and tidebase_private.may_begin_again(s, head.lease_token, null, null, null)", ""),),
        probes.checkpoint_is_final,
    ),
    "a step is recorded whatever its input": (
        (Edit("record_step", "and s.input_hash = hash", ""),
         Edit("may_begin_again", "when 'failed' then", "when 'completed' then true when 'failed' then")),
        probes.checkpoint_is_final,
    ),
    "steps are recorded together whatever the token": (
        (Edit("record_steps_of_runs", "h.lease_token::numeric = item.token", "true"),),
        probes.steps_together,
    ),
    "steps of several runs wait for a head": (
        (Edit("record_steps_of_runs", "for no key update skip locked", "for no key update"),),
        probes.steps_together,
    ),
    "steps recorded together are numbered as it comes": (
        (Edit("add_steps", "over (order by e.nth)", "over (order by e.nth desc)"),),
        probes.steps_together,
    ),
    "steps recorded together keep numbers that they did not need": (
        (Edit("record_steps", "perform tidebase_private.give_back(head, events, checkpoints => many);", ""),),
        probes.steps_together,
    ),
    "steps recorded together are not looked for": (
        (Edit("are_new", "s.name = step ->> 'name'", "s.name = step ->> 'name' and false"),),
        probes.steps_together,
    ),
    "a repeated completion is not compared": (
        (Edit("complete_step", "and s.output = wanted", ""),),
        probes.checkpoint_is_final,
    ),
    "a completed step fails": (
        (Edit("fail_step", "and s.status in ('running', 'failed', 'review')", ""),
         Edit("fail_step", "elsif step.status <> 'running'", "elsif false"),
         Edit("fail_step", "set status = 'failed'", "set status = 'failed', output = null, completed_seq = null")),
        probes.checkpoint_is_final,
    ),
    "a completed step is begun again": (
        (Edit("find_checkpoint", "s.status = 'completed';", "false;"),
         Edit("may_begin_again", "when 'failed' then", "when 'completed' then true when 'failed' then"),
         Edit("begin_step", "error = null,", "error = null, output = null, completed_seq = null,")),
        probes.checkpoint_is_final,
    ),
    "the input of a completed step is not compared": (
        (Edit("find_checkpoint", "step.input_hash <> input_hash", "false"),),
        probes.same_input,
    ),
    "the input of an unfinished step is not compared": (
        (Edit("begin_step", "s.input_hash = hash", "true"),),
        probes.other_input,
    ),
    "the input of a step completed meanwhile is not compared": (
        (Edit("begun_already", "step.input_hash <> input_hash", "false"),),
        probes.other_input,
    ),
    "the zeros that end a fraction are not cut": (
        (Edit("canonical", "printed collate \"C\" not like '%.%0%'", "true"),),
        probes.same_input,
    ),
    "zeros are cut inside strings, too": (
        (Edit("cut_zeros", r'("(?:[^"\\\\]|\\\\.)*")|', r"(\\n)|"),),
        probes.same_input,
    ),
    "zeros are cut from whole numbers, too": (
        (Edit("cut_zeros", "[.]0+(?![0-9])", "[.]?0+(?![0-9])"),),
        probes.same_input,
    ),
    # I4: the log
    "numbers are one more than the highest in the log": (
        (Edit("fence", FENCE, WITHOUT_LOCK.format(HIGHEST)),),
        probes.commit_order,
    ),
    "numbers are one more than the highest in the log (writers)": (
        (Edit("fence", FENCE, WITHOUT_LOCK.format(HIGHEST)),),
        probes.event_order,
    ),
    "numbers come from a sequence, without a lock": (
        (SEQUENCE, Edit("fence", FENCE, WITHOUT_LOCK.format(NEXT))),
        probes.commit_order,
    ),
    "numbers come from a sequence, under the lock": (
        (SEQUENCE, Edit("fence", "set last_seq = h.last_seq + events", f"set last_seq = {NEXT}")),
        probes.commit_order,
    ),
    "numbers come from a sequence, under the lock (writers)": (
        (SEQUENCE, Edit("fence", "set last_seq = h.last_seq + events", f"set last_seq = {NEXT}")),
        probes.event_order,
    ),
    "a take-over skips a number": (
        (Edit("acquire_run", "last_seq = h.last_seq + 1", "last_seq = h.last_seq + 2"),),
        probes.takeovers,
    ),
    "the owner may change events": (
        (Statement("grant update on tidebase.events to tidebase_owner"),),
        probes.immutable_events,
    ),
    "the owner may empty the log": (
        (Statement("grant truncate on tidebase.events to tidebase_owner"),),
        probes.immutable_events,
    ),
    "a worker may write to the log": (
        (Statement("grant usage on schema tidebase to tidebase_worker"),
         Statement("grant insert on tidebase.events to tidebase_worker")),
        probes.immutable_events,
    ),
    "a reader may change a view": (
        (Statement("grant update on tidebase.step_timeline to tidebase_reader"),),
        probes.immutable_events,
    ),
    "events are written without a notification": (
        (Edit("ring", "perform pg_notify('tidebase_events', run_id);", "null;"),),
        probes.doorbell,
    ),
    "every event notifies": (
        (Edit("emit", "w.run_id = head.run_id and w.watched_until > clock_timestamp()", "true"),),
        probes.doorbell,
    ),
    "every event of a burst notifies": (
        (Edit("ring", "interval '10 milliseconds'", "interval '-1 day'"),),
        probes.doorbell,
    ),
    "a watch leaves no mark": (
        (Edit("watch_run", "clock_timestamp() + ttl)\n", "clock_timestamp())\n"),),
        probes.doorbell,
    ),
    "a watch locks the head": (
        (Edit("watch_run", "from run_heads h where h.run_id = watch_run.run_id;",
              "from run_heads h where h.run_id = watch_run.run_id for no key update;"),),
        probes.watching_waits_for_nobody,
    ),
    "a worker waits for who watches": (
        (Edit("emit", "insert into tidebase.events",
              "perform from tidebase.watches w where w.run_id = head.run_id for share; insert into tidebase.events"),),
        probes.watching_waits_for_nobody,
    ),
    # Durability and the order of locks
    "nothing commits durably": (
        (Edit("commit_durably", "perform set_config('synchronous_commit', 'on', true);", "null;"),),
        probes.durability,
    ),
    "a stronger wish is overruled": (
        (Edit("commit_durably", "if current_setting('synchronous_commit') = 'off' then", "if true then"),),
        probes.durability,
    ),
    "a grant does not commit durably": (
        (Edit("acquire_run", "perform tidebase_private.commit_durably();", ""),),
        probes.durability,
    ),
    "a checkpoint does not commit durably": (
        (Edit("complete_step", "perform tidebase_private.commit_durably();", ""),),
        probes.durability,
    ),
    "the start of a step that writes outside does not commit durably": (
        (Edit("writes_outside", "coalesce(not side_effects <@ array['read'], false)", "false"),),
        probes.durability,
    ),
    "a heartbeat makes a checkpoint in its transaction lazy": (
        (Edit("commit_lazily", "pg_current_xact_id_if_assigned() is null and", ""),),
        probes.durability,
    ),
    "a heartbeat waits for the flush": (
        (Edit("commit_lazily", "perform set_config('synchronous_commit', 'off', true);", "null;"),),
        probes.durability,
    ),
    "a step is locked before the head": (
        (Edit("complete_step", "head := tidebase_private.fence_done(",
              "perform from steps s where s.run_id = complete_step.run_id for update;"
              "head := tidebase_private.fence_done("),),
        probes.lock_order,
    ),
    "a completed step is executed again after a crash": (
        (Edit("load_checkpoints", "(s.status = 'completed' or load_checkpoints.unfinished)", "false"),
         Edit("find_checkpoint", "s.status = 'completed';", "false;"),
         Edit("may_begin_again", "when 'failed' then", "when 'completed' then true when 'failed' then"),
         Edit("begin_step", "error = null,", "error = null, output = null, completed_seq = null,")),
        probe_workers.worker_kills,
    ),
    "a step's output is not what was given": (
        (Edit("complete_step", "output = wanted,", "output = '[0, 0]',"),
         Edit("record_step", "wanted jsonb := coalesce(output, 'null')", "wanted jsonb := '[0, 0]'")),
        probe_workers.many_threads,
    ),
    # I5 to I8: gates, reviews, cancellation, reconciliation, the outbox
    "anybody may decide a gate": (
        (Edit("entitlement", "perform tidebase_private.raise_not_entitled(", "return 'secret'; perform concat("),),
        probe_gates.deciders,
    ),
    "a decision replaces the one before": (
        (Edit("decide_gate", "if gate.status = 'decided' then", "if false then"),),
        probe_gates.deciders,
    ),
    "a decider does not lock the head": (
        (Edit("lock_head", "for no key update", ""),),
        probe_gates.deciders_queued,
    ),
    "a decision holds for another capability, too": (
        (Edit("shown_hash", "gate.capability, ", ""),),
        probe_gates.all_that_is_shown,
    ),
    "a gate's secret is that of its run and name": (
        (Edit("gate_secret", "gate.nonce::text, extract(epoch from gate.created_at)::text", "null"),),
        probe_gates.a_secret_dies_with_its_gate,
    ),
    "the gate is not looked at again under the lock": (
        (Edit("decide_gate", "elsif gate.nonce is distinct from seen then", "elsif false then"),),
        probe_gates.a_secret_dies_with_its_gate,
    ),
    "the general secret is a voter": (
        (Edit("decide_gate", VOTER, f"then coalesce({VOTER.removeprefix('then ')}, '(secret)')"),),
        probe_gates.one_vote_each,
    ),
    "a voter is who says so": (
        (Edit("decide_gate", "else tidebase_private.login() end;", "else coalesce(actor, session_user::text) end;"),),
        probe_gates.one_vote_each,
    ),
    "a voter is the role that was set": (
        (Edit("decide_gate", "else tidebase_private.login() end;", "else tidebase_private.caller() end;"),),
        probe_gates.one_vote_each,
    ),
    "everybody speaks for others": (
        (Edit("is_speaker", "'speakers'), '{}')", "'speakers'), array[session_user])"),
         Edit("decide_gate", "then voter else", "then coalesce(voter, session_user::text) else")),
        probe_gates.one_vote_each,
    ),
    "the personal secret of a voter is not the login's": (
        (Edit("decide_gate", VOTER, f"then 'bearer ' || {VOTER.removeprefix('then ')}"),),
        probe_gates.one_vote_each,
    ),
    "a run is suspended for a gate that is decided": (
        (Edit("suspend_run", "gate.status = 'decided' or", ""),),
        probe_gates.suspension,
    ),
    "a decision does not wake the run that waits for it": (
        (Edit("settle_gate", "head.status = 'waiting'", "false"),),
        probe_gates.suspension,
    ),
    "what a crash left in doubt is executed again": (
        (Edit("allows_repetition", "idempotency_key is not null or not", "true or not"),),
        probe_gates.one_review,
    ),
    "a review may be decided again": (
        (Edit("resolve_review", "and s.status = 'review';", ";"),),
        probe_gates.one_review,
    ),
    "a final run is cancelled all the same": (
        (Edit("cancel_run", "head.status = 'completed'", "false"),
         Edit("cancel_one", "head.status in ('cancelled', 'completed')", "false")),
        probe_gates.cancelled_for_good,
    ),
    "a cancelled run may be completed": (
        (Edit("fence", "and h.status = 'running'", ""),),
        probe_gates.cancelled_for_good,
    ),
    "reconcile waits for whoever has a run": (
        (Edit("look_at_due", "skip locked", ""),),
        probe_gates.reconciled_once,
    ),
    "an expiry stays due": (
        (Edit("look_at", "set due_at = tidebase_private.next_due(head)", "set due_at = h.due_at"),),
        probe_gates.reconciled_once,
    ),
    "two dispatchers get the same delivery": (
        (Edit("claim_deliveries", "next_at = clock_timestamp() + ttl", "next_at = d.next_at"),),
        probe_gates.one_delivery,
    ),
    "the report of a former attempt is believed": (
        (Edit("finish_delivery", "or sent.attempts is distinct from attempt", ""),),
        probe_gates.one_delivery,
    ),
    # channels
    "two dispatchers get the same event": (
        (Edit("hand_out", "case when wanted is not null then ttl else '0' end", "interval '0'"),),
        probe_gates.told_in_order,
    ),
    "a claim waits for whoever has a channel": (
        (Edit("claim_channel_deliveries", "skip locked", ""),),
        probe_gates.told_in_order,
    ),
    "the report of a former attempt moves a channel on": (
        (Edit("finish_channel_delivery", "or chosen.attempts is distinct from attempt", ""),),
        probe_gates.told_in_order,
    ),
    "an attempt is reported twice": (
        (Edit("finish_channel_delivery", "chosen.sending_seq is null or", ""),
         Edit("finish_channel_delivery", "delivered_seq = c.sending_seq,", "delivered_seq = c.delivered_seq + 1,")),
        probe_gates.told_in_order,
    ),
    "a channel is done before its run is over": (
        (Edit("rest", "head.status in ('completed', 'cancelled') and", ""),),
        probe_gates.told_in_order,
    ),
    # I7: state
    "a version is numbered before the lock is held": (
        (Edit("write_state", "last := tidebase_private.last_version(wanted.run_id, wanted.stream);", "last := known;"),
         Edit("write_state", "  change jsonb;\n", "  change jsonb;\n  known tidebase.state_versions "
              ":= tidebase_private.last_version(wanted.run_id, wanted.stream);\n")),
        probe_state.compare_and_set,
    ),
    "the expected version is not compared": (
        (Edit("write_state", "if expected_version <> coalesce(last.version, 0) then", "if false then"),),
        probe_state.compare_and_set,
    ),
    "a version is read without the one below": (
        (Edit("read_version", "change := tidebase_private.compose_changes(stored.content, change);",
              "change := coalesce(change, stored.content);"),),
        probe_state.four_writers,
    ),
    "changes are composed the wrong way round": (
        (Edit("store_version", "compose_changes(since_base, change)", "compose_changes(change, since_base)"),),
        probe_state.four_writers,
    ),
    "the next version takes a base that is not above its keyframe's": (
        (Edit("base_of", "(version - keyframe - 1)", "(version - keyframe - 2)"),),
        probe_state.four_writers,
    ),
    # usage and budgets
    "a response is counted each time it is recorded": (
        (Edit("record_usage", "if counted is not null then", "if false then"),),
        probe_state.exact_sums,
    ),
    "the totals are read before they are written": (
        (Edit("charge", "shared_cost_usd = a.shared_cost_usd + cost", "shared_cost_usd = cost"
              " + (select t.shared_cost_usd from tidebase.accounts t where t.run_id = a.run_id)"),),
        probe_state.exact_sums,
    ),
    "usage is not added to the accounts above": (
        (Edit("charge", "exit when account.parent_run_id is null;", "exit;"),),
        probe_state.exact_sums,
    ),
    "begin_step does not look at the budget": (
        (Edit("begin_step", "if head.has_budget then", "if false then"),),
        probe_state.nothing_begins_after_the_limit,
    ),
    "only a run's own budget counts": (
        (Edit("require_funds", "exit when account.parent_run_id is null;", "exit;"),),
        probe_state.nothing_begins_after_the_limit,
    ),
    "what a tree used before its budget does not count": (
        (Edit("share_budget", "coalesce(sum(c.shared_tokens), 0)", "0"),),
        probe_state.a_budget_that_comes_late,
    ),
    "a budget set later does not hang the tree together": (
        (Edit("share_budget", "perform tidebase_private.open_account(child.id, parent_run_id => run_id);", "null;"),),
        probe_state.a_budget_that_comes_late,
    ),
    # retention
    "the relatives of a purged run are not asked": (
        (Edit("choose_dead", "where not (n.status = 'failed'", "where false and not (n.status = 'failed'"),
         Edit("choose_dead", "n.relative <> all (coalesce(settled, '{}'))", "false")),
        probe_state.purge_under_load,
    ),
    "what hangs on a purged run stays": (
        (Edit("forget", "delete from tidebase.state_versions t where t.run_id = any (run_ids);", ""),),
        probe_state.purge_under_load,
    ),
    "a purger waits for the edges of another one": (
        (Edit("choose_dead", "(select from mine m where m.run_id = t.run_id and m.name = t.name)", "(select)"),
         Edit("choose_dead", "for update skip locked)\n    select", ")\n    select")),
        probe_state.purgers_wait_for_nobody,
    ),
    "a run is compacted while it is forked": (
        (Edit("compact_run", "for update", "for no key update"),),
        probe_state.fork_meets_compaction,
    ),
    # threads of LangGraph
    "a checkpoint may follow any other": (
        (Edit("may_follow", "newest_id = parent_id", "true"),),
        probe_threads.one_goes_on,
    ),
    "whoever has seen something may branch off": (
        (Edit("may_follow", "else newest_id = seen_id", "else true"),),
        probe_threads.branches_on_purpose,
    ),
    "a first checkpoint does not care whether there is another": (
        (Edit("may_follow", "parent_id is null or is_fork else newest_id = seen_id", "true else true"),),
        probe_threads.one_begins,
    ),
    "who puts a checkpoint does not lock its thread": (
        (Edit("lock_thread", "for no key update", ""),),
        probe_threads.one_goes_on,
    ),
    "the lease of a thread is not compared": (
        (Edit("fence_shared", "and h.lease_token = fence_shared.token", ""),),
        probe_threads.who_was_replaced_writes_nothing,
    ),
    "the lease of a thread is read without a lock": (
        (Edit("fence_shared", "for share", ""),),
        probe_threads.who_was_replaced_writes_nothing,
    ),
    "a thread that is claimed is open to all": (
        (Edit("require_ownership", "tidebase_private.is_live(head)", "false"),),
        probe_threads.nobody_else_writes,
    ),
    "a claim is not kept": (
        (Edit("own", "set owner_run_id = own.run_id", "set owner_run_id = null"),),
        probe_threads.nobody_else_writes,
    ),
    "writes of tasks do not look who has the thread": (
        (Edit("put_checkpoint_writes", "perform tidebase_private.require_ownership(chosen, run_id);", ""),),
        probe_threads.nobody_else_writes,
    ),
    "chunks go that others share": (
        (Edit("sweep_thread", "needed.positions @> k.position", "false"),),
        probe_threads.shared_values_stay,
    ),
    "what a client remembers is taken for what is there": (
        (Edit("put_values", "and seen_edition = answer.edition", ""),),
        probe_threads.shared_values_stay,
    ),
    "a base is known by its number alone": (
        (Edit("put_values", "and v.version = coalesce(change ->> 'base_version', v.version)", ""),),
        probe_threads.a_base_has_its_version,
    ),
    "what a reader has is known by its number alone": (
        (Edit("get_checkpoint_beyond", "and k.version = g.version", ""),),
        probe_threads.a_base_has_its_version,
    ),
    "a thread is deleted under who writes to it": (
        (Edit("put_checkpoint_writes", "for key share", ""),),
        probe_threads.a_deletion_waits,
    ),
    "an error without a SQLSTATE of its own": (
        (Edit("raise_run_not_found", "'TB001'", "'P0001'"),),
        probes.stress,
    ),
}  # fmt: skip


def noticed(probe: Probe, database: str) -> list[str]:
    """What the probe reports; one that cannot even go on has noticed something, too."""
    try:
        return probe(database)
    except psycopg.Error as error:
        return [f"the probe could not go on: {error.sqlstate}: {error}"]
    except (AssertionError, TimeoutError, psycopg.errors.DeadlockDetected) as error:
        return [f"the probe could not go on: {error}"]


def _first_mutations() -> set[str]:
    first: dict[str, str] = {}
    for name, (_, probe) in MUTATIONS.items():
        first.setdefault(repr(probe), name)
    return set(first.values())


#: Of each probe.
FIRST = _first_mutations()


@pytest.mark.breaks_invariants
@on_newest("server")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_probe_fails_without_its_mechanism(name: str, database: str) -> None:
    """Silent with the mechanism, loud without: on the same database, with nothing else changed in between."""
    mutation, probe = MUTATIONS[name]
    if name in FIRST:
        assert probe(database) == []
    with connect(database) as connection:
        for change in mutation:
            change.apply(connection)
    violations = noticed(probe, database)
    assert violations != [], f"nothing was noticed although {name}"
    broken = [violation for violation in violations if re.search(r": (42|XX)[0-9A-Z]{3}(:| instead)", violation)]
    assert broken == [], "the mutation does not take the mechanism out: it does not run"


def test_a_mutation_that_no_longer_applies_is_noticed(db: psycopg.Connection[object]) -> None:
    """Otherwise a mechanism that is rewritten would leave its mutation behind, and the probe would never fail."""
    with pytest.raises(AssertionError, match="has changed"):
        Edit("fence", "no such text", "").apply(db)

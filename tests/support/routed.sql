select tidebase.protocol()
select tidebase.new_run_id(beside => 'r1')
select tidebase.new_run_id(beside => ' ')
select * from tidebase.next_fires('0 0 29 2 *', after => '2024-01-01 00:00+00', n => 2)
select tidebase.create_run('w', '{"n": 1}', id, '{"m": "täg"}', max_attempts => 5) from unnest(array['r1', 'r3', 'done', 'failed', 'free']) id
select tidebase.create_run('w', '{"n": 2}', 'r1')
select tidebase.create_run('other', run_id => 'r3')
select tidebase.create_run(' ')
select tidebase.create_run('w', deadline => 'infinity')
select tidebase.create_run('w', run_id => 'late', deadline => '2999-12-31 23:59:59.123456+05:30', retry_delay => '1 day 02:03:04.5')
select tidebase.create_run('w')
select a.outcome, a.token, a.attempt, a.input from tidebase.acquire_run('r1', 'h', '1 hour', request_id => 'x') a
select a.outcome, a.token from tidebase.acquire_run('r1', 'other') a
select a.outcome, a.token from unnest(array['r3', 'done', 'failed']) id, tidebase.acquire_run(id, 'h', '1 hour') a
select tidebase.acquire_run('nobody', 'h')
select tidebase.acquire_run('r1', 'h', '-1 hour')
select tidebase.withdraw_grant('r1', 'no such call')
select tidebase.begin_step('r1', 1, 'plain', '[1.50, "ü\\"]', retries => 3)
select tidebase.begin_step('r1', 1, 'unsafe', side_effects => '{send,"a b"}')
select tidebase.begin_step('r1', 1, 'plain', '[2]')
select tidebase.begin_step('r1', 7, 'plain')
select b.outcome from tidebase.begin_step_with('r1', 1, 'with', '1', tidebase_private.hash_of('1'), '{}') b
select tidebase.complete_step('r1', 1, 'plain', '"out"')
select tidebase.complete_step('r1', 1, 'never', '1')
select s.outcome, s.output from tidebase.record_step('r1', 1, 'done', '1', '{"a": null}') s
select s.outcome, s.output from tidebase.record_step('r1', 1, 'done', '1', '{"b": 1}') s
select tidebase.record_step('r1', 1, 'done', '2', '1')
select s.outcome, s.output from tidebase.record_steps('r1', 1, '[{"name": "first of two", "output": 1.50}, {"name": "done", "input": 1, "output": 2}]') s
select tidebase.record_steps('r1', 7, '[{"name": "stale"}]')
select tidebase.record_steps('r1', 1, '{}')
select tidebase.record_steps_of_runs('[{"run_id": "r1", "token": 1, "steps": [{"name": "here"}]}, {"run_id": "nobody", "token": 1, "steps": [{"name": "x"}]}, {"run_id": "r3", "token": 1, "steps": [{"name": "there"}]}, {"run_id": "r1", "token": 7, "steps": [{"name": "x"}]}]')
select tidebase.record_steps_of_runs('[{"run_id": "r1", "token": 1, "steps": [{"name": ""}]}, {"run_id": "r3", "token": 1, "steps": [{"name": "y"}]}]')
select tidebase.record_steps_of_runs('[]')
select f.decision from tidebase.fail_step('r1', 1, 'with', '{"type": "E"}', retryable => false) f
select tidebase.fail_step('r3', 1, 'never', '{}')
select * from tidebase.load_checkpoints('r1')
select * from tidebase.load_checkpoints('r3')
select c.created, length(c.run_id) from tidebase.create_child('r1', 1, 'c', 'w', '1') c
select c.created from tidebase.create_child('r1', 1, 'c', 'w', '1') c
select tidebase.create_child('r1', 1, 'c', 'w', '2')
select tidebase.set_state('r1', 1, '{"n": 1, "x": {"y": [1]}}'), 1
select tidebase.patch_state('r1', 1, '{"n": 2}', label => 'two')
select tidebase.merge_state('r1', 1, '{"m": null}')
select tidebase.save_state('r1', 1, 'saved')
select tidebase.restore_state('r1', 1, 1)
select tidebase.set_state('r1', 1, '{}', expected_version => 99)
select s.version, s.value from tidebase.get_state('r1') s
select s.version, s.value from tidebase.get_state('r3') s
select s.version, s.value, s.created_by from tidebase.list_state_versions('r1', with_value => true) s
select tidebase.create_snapshot('r1', 1, 'snap', state => '[1]', metadata => '{"a": 1}')
select s.label, s.version from tidebase.list_snapshots('r1') s
select g.status, g.decision from tidebase.open_gate('r1', 1, 'g', 'ok?', options => '{yes,no}', timeout => '2 hours') g
select g.status from tidebase.open_gate('r3', 1, 'g', 'ok?', required_approvals => 2) g
select tidebase.open_gate('r1', 1, 'g', 'another?')
select g.name, g.status, g.options, g.prompt from tidebase.get_gate('r1', 'g') g
select * from tidebase.get_gate('r1', 'none')
select length(tidebase.get_gate_secret('r1', 'g'))
select tidebase.get_gate_secret('r1', 'none')
select l.run_id, l.name from tidebase.list_inbox() l
select l.run_id, l.name from tidebase.list_inbox(1) l
select l.run_id, l.name from tidebase.list_inbox(10, 'r1', 'g') l
select tidebase.list_inbox(10, 'r1', 'none')
select tidebase.list_inbox(0)
select l.run_id, l.name, l.status from tidebase.list_gates() l
select l.run_id, l.name, l.status from tidebase.list_gates('r1', max => 1) l
select tidebase.list_gates(status => 'no such')
select d.accepted, d.decision from tidebase.decide_gate('r1', 'g', 'yes', payload => '{"a": 1}') d
select d.accepted, d.decision from tidebase.decide_gate('r1', 'g', 'no', actor => 'somebody') d
select tidebase.decide_gate('r1', 'g', 'yes', secret => 'gate_wrong')
select tidebase.decide_gate('r3', 'g', 'approved', voter => 'somebody else')
select g.status from tidebase.start_timer('r1', 1, 't', '3 days') g
select u.counted, u.input_tokens, u.cost_usd from tidebase.record_usage('r1', 1, input_tokens => 7, cost_usd => 1.25) u
select tidebase.set_budget('r1', cost_usd => 100), 1
select tidebase.set_budget('nobody', cost_usd => 100)
select tidebase.append_event('r1', 1, 'my.event', '{"a": "b\\c"}')
select tidebase.append_event('r1', 1, 'run.event')
select e.seq, e.type, e.payload from tidebase.read_events('r1', 3, 4) e
select e.seq from tidebase.read_events('nobody') e
select w.channel from tidebase.watch_run('r1') w
select tidebase.add_channel('r1', 'http://channel.test/ä', events => '{a,b}')
select tidebase.add_channel('r1', 'no url')
select c.channel, c.url, c.events from tidebase.list_channels('r1') c
select tidebase.retry_channel('r1', 1)
select c.run_id, c.url from tidebase.claim_channel_deliveries() c
select tidebase.finish_channel_delivery('r1', 1, 1, true, 200, go_on => false)
select tidebase.remove_channel('r1', 1)
select tidebase.renew_lease('r1', 1, '2 hours') is not null
select tidebase.renew_lease('r1', 9)
select r.run_id from tidebase.renew_leases('{r1,r3,nobody}', '{1,1,1}') r order by 1
select r.run_id from tidebase.renew_leases('{}', '{}') r
select tidebase.renew_leases('{r1}', '{1,2}')
select tidebase.renew_leases('{r1}', '{1}', '-1 s')
select length(tidebase.fork_run('r1', through_step => 'plain'))
select tidebase.fork_run('r1', '{r1}2', reason => 'why')
select tidebase.fork_run('nobody')
select d.kind, d.name, d.difference from tidebase.diff_runs('r1', '{r1}2') d
select * from tidebase.diff_runs('r1', 'nobody {r1}')
select t.run_id = 'r1', t.depth from tidebase.run_tree('r1') t
select tidebase.suspend_run('r3', 1, 'g')
select tidebase.suspend_for_children('r1', 1, '{none}')
select tidebase.complete_run('done', 1, '{"ok": [true, null]}')
select tidebase.complete_run('done', 1, '2')
select c.run_id, c.code, c.message from tidebase.complete_runs('{done,r3,nobody}', '{1,7,1}', array['{"ok": [true, null]}', null, '1']::jsonb[]) c order by 1
select c.run_id from tidebase.complete_runs('{}', '{}') c
select tidebase.complete_runs('{r1,r1}', '{1,1}')
select tidebase.complete_runs('{r1}', '{1,2}')
select f.status from tidebase.fail_run('failed', 1, '{"type": "E", "message": "m"}', retryable => false) f
select tidebase.record_recovery('failed', request_id => 'once')
select tidebase.finish_recovery('failed', 1, 'succeeded', 200), 1
select tidebase.finish_recovery('failed', 9, 'succeeded')
select tidebase.recover_run('failed')
select d.run_id from tidebase.claim_deliveries() d
select tidebase.finish_delivery('r1', 9, 1, true)
select tidebase.compact_run('done')
select tidebase.compact_run('r1')
select r.run_id, r.status, r.result, r.metadata from tidebase.get_run('done') r
select r.run_id from tidebase.get_run('nobody') r
select tidebase.find_run('don')
select tidebase.find_run('r')
select tidebase.find_run('zz')
select r.workflow, r.status from tidebase.list_runs(max => 100) r where r.run_id !~ '^run_'
select r.run_id from tidebase.list_runs(status => 'completed') r
select r.run_id from tidebase.list_runs(before => 'r3') r
select r.run_id from tidebase.list_runs(before => 'r3', before_created_at => '2100-01-01') r where r.run_id !~ '^run_'
select tidebase.list_runs(before => 'nobody')
select tidebase.list_runs(max => 0)
select cardinality(p.run_ids), p.next_run_id from tidebase.search_runs(matching => 'R1') p
select cardinality(p.run_ids) from tidebase.search_runs(metadata => '{"m": "täg"}', max => 2) p
select tidebase.search_runs(effort => 0)
select c.status, c.runs from tidebase.count_runs() c
select m.metric, m.label, m.value from tidebase.measure() m where m.metric in ('runs', 'workers') order by 1, 2
select * from tidebase.check_invariants()
select * from tidebase.check_invariants('r1')
select tidebase.put_queue('q', concurrency => 2, rate => 5, lease => '90 seconds'), 1
select tidebase.put_queue('q', concurrency => 0)
select e.deduplicated from tidebase.enqueue_run('w', '1', 'q', priority => 3, dedupe_key => 'd') e
select e.deduplicated from tidebase.enqueue_run('w', '1', 'q', dedupe_key => 'd') e
select tidebase.enqueue_run('w', '1', 'q', dedupe_key => 'd', on_duplicate => 'reject')
select e.run_id, e.deduplicated from tidebase.enqueue_run('w', '1', 'q', run_id => 'e{queue:q}', delay => '1 hour') e
select e.deduplicated from tidebase.enqueue_runs('[{"workflow": "w", "queue": "q"}, {"workflow": "w", "queue": "q", "key": "k"}]') e
select tidebase.enqueue_runs('[{"workflow": "w", "nothing": 1}]')
select tidebase.enqueue_runs('{}')
select tidebase.next_ready('{q,other}') > now()
select tidebase.ready_in('{q}') < '2 hours'
select tidebase.ready_in(array[null])
select c.token, c.workflow, c.input, c.queue from tidebase.claim_runs('{other,q}', 'h', 10, request_id => 'claim') c
select c.token, c.workflow, c.input, c.queue from tidebase.claim_runs('{other,q}', 'h', 10, request_id => 'claim') c
select tidebase.claim_runs('{}')
select tidebase.claim_runs('{q}', max => 0)
select tidebase.claim_runs('{{q},{q}}')
select tidebase.pause_queue('q')
select tidebase.resume_queue('q')
select tidebase.move_run('e{queue:q}', 'q', 5)
select tidebase.move_run('nobody', 'q')
select * from tidebase.move_runs('q', 'q', priority => 1, dry_run => true)
select * from tidebase.cancel_runs(workflow => 'none')
select * from tidebase.cancel_runs()
select * from tidebase.retry_runs(workflow => 'w', failure_class => 'none')
select tidebase.put_schedule('s', 'w', '0 0 1 1 *', queue => 'q', starts_at => '2020-02-02 00:00+00') is not null
select tidebase.put_schedule('s', 'w', 'nonsense', queue => 'q')
select length(tidebase.trigger_schedule('s', input => '[1]'))
select tidebase.trigger_schedule('none')
select tidebase.backfill_schedule('none', '2024-01-01', '2024-01-02')
select count(*) from tidebase.backfill_schedule('s', '2024-01-01 00:00+00', '2025-12-31 00:00+00')
select tidebase.delete_schedule('s')
select tidebase.delete_schedule('s')
select tidebase.put_queue('push', endpoint => 'http://endpoint.test'), 1
select e.deduplicated from tidebase.enqueue_run('w', queue => 'push', run_id => '{queue:push}1') e
select i.run_id, i.url, i.queue from tidebase.claim_invocations() i
select tidebase.finish_invocation('{queue:push}1', 1, true, 200)
select * from tidebase.put_checkpoint('t1', '', 'a', 'x', '\x00ff', '{"run_id": "lg"}')
select * from tidebase.put_checkpoint('t1', '', 'b', 'x', '\x01', '{"run_id": "lg"}', 'a')
select * from tidebase.put_checkpoint('t4', '', 'a', 'x', '\x00', '{}')
select tidebase.put_checkpoint('t1', '', 'c', 'x', '', '{}', 'no such parent')
select tidebase.put_checkpoint_writes('t1', '', 'b', 'task', '', '{0}', '{c}', '{x}', array['\x02'::bytea])
select tidebase.has_checkpoint('t1', '', 'b')
select c.checkpoint_id, c.content, c.metadata, c.task_ids, c.writes from tidebase.get_checkpoint('t1') c
select c.checkpoint_id, c.content from tidebase.get_checkpoint_beyond('t1') c
select c.thread_id, c.checkpoint_id, c.number from tidebase.list_checkpoints() c
select c.thread_id, c.checkpoint_id from tidebase.list_checkpoints('t1', max => 1) c
select tidebase.list_checkpoints(max => 0)
select tidebase.copy_thread('t1', '{t1}copy')
select tidebase.copy_thread('none', '{none}copy')
select tidebase.claim_thread('r1', 1, '{r1}t')
select tidebase.claim_thread('r1', 9, '{r1}t')
select tidebase.prune_threads('{t1,t4}')
select tidebase.prune_threads('{t1}', 'nonsense')
select tidebase.delete_checkpoints_of_runs('{lg}')
select tidebase.delete_thread('t1')
select tidebase.cancel_run('late', 'because')
select tidebase.cancel_run('done')
select tidebase.release_run('r1', 1) > 0
select tidebase.resolve_review('r1', 'unsafe', 'retry', reason => 'so')
select tidebase.resolve_review('r1', 'plain', 'retry')
select r.runs >= 0 from tidebase.reconcile() r
select tidebase.reconcile(0)
select tidebase.purge_runs('0')
select tidebase.purge_runs('-1 s')
select o.run_id, o.status, o.input, o.holder from tidebase.run_overview o where o.run_id !~ '^(run_|sched)' order by 1
select s.run_id, s.name, s.status, s.output, s.duration is null from tidebase.step_timeline s where s.run_id = 'r1' order by 2
select g.run_id, g.name, g.status, g.decided_by, g.actor from tidebase.gate_overview g order by 1, 2
select e.name, e.edge_type from tidebase.run_edges e where e.run_id = 'r1' order by 1
select q.queue, q.concurrency, q.lease from tidebase.queue_overview q order by 1
select tidebase.require_bucket(65535)
select tidebase.require_bucket(null)
select 'no such' = any (tidebase.shard_map()) is true
select tidebase.shard_epoch() = 0 is true

-- Runs of all kinds, for a page to show; a name behind a colon is a text that is given from outside.

-- many: of each status some
select tidebase.create_run('bulk-' || n % 5, to_jsonb(n), run_id => 'bulk-' || n,
  metadata => jsonb_build_object('n', n % 7))
from generate_series(:first::integer, :last) n;
select tidebase.acquire_run('bulk-' || n, 'worker-' || n % 4, '1 hour')
from generate_series(:first::integer, :last) n where n % 8 > 0;
select tidebase.complete_run('bulk-' || n, 1, to_jsonb(n))
from generate_series(:first::integer, :last) n where n % 8 > 3;
select tidebase.fail_run('bulk-' || n, 1, '{"message": "something went wrong"}')
from generate_series(:first::integer, :last) n where n % 8 = 1;
select tidebase.cancel_run('bulk-' || n, 'too old')
from generate_series(:first::integer, :last) n where n % 8 = 2;

-- kinds
select tidebase.create_run('refund', '{"order": 7, "amount": 120}', run_id => 'refund-7',
  metadata => '{"team": "billing"}');
select tidebase.acquire_run('refund-7', 'worker-a', '1 hour', code_version => 'v41');
select tidebase.record_step('refund-7', 1, 'look up the order', '7', '{"customer": "Ada", "total": 120}');
select tidebase.open_gate('refund-7', 1, 'approve refund',
  prompt => E'Refund 120 EUR to Ada?\nThe parcel came back on Monday.',
  data => '{"order": 7, "items": [{"name": "lamp", "price": 120}], "account": "DE02"}',
  options => '{approved,edited,rejected}', timeout => '50 minutes', default_decision => 'rejected',
  capability => '{"refund": {"max": 500}}',
  response_schema => :schema::text::jsonb);
select tidebase.suspend_run('refund-7', 1, 'approve refund');
select tidebase.create_run('deploy', '{"version": "v42"}', run_id => 'deploy-42');
select tidebase.acquire_run('deploy-42', 'worker-b', '1 hour');
select tidebase.open_gate('deploy-42', 1, 'go live', prompt => 'Deploy v42 to production?', required_approvals => 2);
select tidebase.create_run('publish', '{"title": "Salt"}', run_id => 'publish-1');
select tidebase.acquire_run('publish-1', 'worker-b', '1 hour');
select tidebase.open_gate('publish-1', 1, 'publish', prompt => 'Publish the article?', data => '{"words": 812}');
select tidebase.create_run('charge', '{"card": "4242"}', run_id => 'charge-1');
select tidebase.acquire_run('charge-1', 'worker-a', '1 hour');
select tidebase.begin_step('charge-1', 1, 'charge the card', '{"amount": 90}', side_effects => '{card.charge}',
  checkpoint_invariant => 'one charge of 90 EUR for order 9',
  verified_by => 'the bank''s list of charges');
select tidebase.fail_step('charge-1', 1, 'charge the card', '{"type": "TimeoutError", "message": "the bank did not answer"}');
select tidebase.fail_run('charge-1', 1, '{"type": "TimeoutError", "message": "the bank did not answer"}');
select tidebase.create_run('research', '{"topic": "sea"}', run_id => 'research-9',
  budget => '{"cost_usd": 2, "tokens": 200000}',
  deadline => clock_timestamp() + interval '2 hours');
select tidebase.acquire_run('research-9', 'worker-c', '2 hours');
select tidebase.record_step('research-9', 1, format('read[%s]', n), to_jsonb(n), to_jsonb(repeat('text ', n)))
from generate_series(1, 14) n;
select tidebase.record_usage('research-9', 1, step => format('read[%s]', n), kind => 'chat', provider => 'openai',
  model => 'gpt-4o-mini',
  input_tokens => 1000 * n, output_tokens => 80 * n, cost => 0.01 * n)
from generate_series(1, 14) n;
select tidebase.begin_step('research-9', 1, 'write the summary', '{"from": 14}', retries => 3);
select tidebase.create_run('import', run_id => 'import-3');
select tidebase.acquire_run('import-3', 'worker-dead', '1 second');
select tidebase.begin_step('import-3', 1, 'read the file');
select tidebase.create_run('report', '{"month": 3}', run_id => 'report-3');
select tidebase.acquire_run('report-3', 'worker-a', '1 hour');
select tidebase.begin_step('report-3', 1, 'render', '3');
select tidebase.fail_step('report-3', 1, 'render', '{"type": "KeyError", "message": "no column named total"}', retryable => false);
select tidebase.fail_run('report-3', 1, '{"type": "KeyError", "message": "no column named total"}', retryable => false);
select tidebase.create_run('report', '{"month": 4}', run_id => 'report-4');
select tidebase.cancel_run('report-4', 'not needed any more', 'ada');
select tidebase.put_queue('mail', concurrency => 4, rate => 100, rate_period => '60 seconds');
select tidebase.put_queue('night', paused => true);
select tidebase.enqueue_run('send', to_jsonb(n), queue => 'mail', run_id => 'mail-' || n,
  key => 'customer-' || n % 3, priority => n % 2)
from generate_series(1, 12) n;
select tidebase.enqueue_run('send', '1', queue => 'mail', run_id => 'mail-later', delay => '3 hours');
select tidebase.enqueue_run('cleanup', queue => 'night', run_id => 'night-1');
select tidebase.claim_runs('{mail}', 'worker-mail', max => 2, code_version => 'v41');
select tidebase.put_schedule('nightly cleanup', 'cleanup', '30 2 * * *', queue => 'night', timezone => 'Europe/Berlin');
select tidebase.put_schedule('pulse', 'send', every => '15 minutes', queue => 'mail');
select tidebase.put_schedule('old one', 'send', '0 0 1 1 *', queue => 'mail', enabled => false);
select tidebase.create_run(:hostile::text, to_jsonb(:hostile::text), run_id => 'hostile',
  metadata => jsonb_build_object(:hostile::text, :hostile::text));
select tidebase.acquire_run('hostile', :hostile::text, '1 hour');
select tidebase.record_step('hostile', 1, :hostile::text, to_jsonb(:hostile::text), to_jsonb(:hostile::text));
select tidebase.append_event('hostile', 1, 'agent.said', jsonb_build_object('text', :hostile::text, 'long', repeat('x', 900000)));
select tidebase.set_state('hostile', 1, jsonb_build_object(:hostile::text, :hostile::text));
select tidebase.open_gate('hostile', 1, :hostile::text,
  prompt => :hostile::text,
  data => jsonb_build_object('html', :hostile::text),
  options => array[:hostile::text, 'rejected']);
select tidebase.create_run(:arabic::text, to_jsonb(:arabic::text), run_id => :arabic::text);
select tidebase.create_run(:emoji::text, to_jsonb(:emoji::text), run_id => 'emoji');
select tidebase.create_run(:long::text, run_id => :long::text);

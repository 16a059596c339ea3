-- Usage: what a run's calls to models and other paid services used; and budgets, which end that.
--
-- Each run has an account with its running totals, so recording costs the same however much was recorded before. Where
-- there is a budget, what a run uses is also added to the accounts above it, from the run upwards: accounts are locked
-- after any head, and a parent's after its child's, so nobody waits in a circle.

create or replace function tidebase_private.require_budget(budget jsonb)
returns void
language plpgsql volatile
as $$
begin
  if budget is null then
    return;
  elsif jsonb_typeof(budget) <> 'object' then
    perform tidebase_private.raise_invalid('budget', 'must be a JSON object');
  elsif budget - array['cost_usd', 'tokens'] <> '{}' then
    perform tidebase_private.raise_invalid('budget', 'must have no other members than cost_usd and tokens');
  elsif exists (select from jsonb_each(budget) b where jsonb_typeof(b.value) not in ('number', 'null')) then
    perform tidebase_private.raise_invalid('budget', 'must have numbers');
  elsif (budget ->> 'cost_usd')::numeric not between 0 and 1e12 or (budget ->> 'tokens')::numeric not between 0 and 1e18
    or (budget ->> 'tokens')::numeric % 1 <> 0
  then
    perform tidebase_private.raise_invalid('budget', 'must have a cost_usd from 0 to 1e12, and a whole number of tokens from 0 to 1e18');
  end if;
end
$$;
comment on function tidebase_private.require_budget(jsonb) is 'Raises TB002 unless it is NULL or {"cost_usd": number, "tokens": number}.';

create or replace function tidebase_private.open_account(run_id text, budget jsonb default null, parent_run_id text default null)
returns void
language sql volatile
as $$
  insert into tidebase.accounts (run_id, parent_run_id, cost_limit_usd, token_limit)
  values (open_account.run_id, open_account.parent_run_id, (budget ->> 'cost_usd')::numeric, (budget ->> 'tokens')::numeric::bigint)
  on conflict on constraint accounts_pkey do update
  set parent_run_id = coalesce(excluded.parent_run_id, accounts.parent_run_id);
$$;
comment on function tidebase_private.open_account(text, jsonb, text) is 'Makes a run''s account, or hangs the one it has below its parent''s.';

create or replace function tidebase_private.is_exhausted(account tidebase.accounts)
returns boolean
language sql immutable
as $$
  select coalesce(account.shared_cost_usd >= account.cost_limit_usd, false)
    or coalesce(account.shared_tokens >= account.token_limit, false);
$$;
comment on function tidebase_private.is_exhausted(tidebase.accounts) is 'Whether nothing is left of a budget.';

-- Looks at the run's budget and those above it.
create or replace function tidebase_private.require_funds(head tidebase.run_heads)
returns void
language plpgsql volatile
as $$
declare
  account tidebase.accounts;
begin
  loop
    select a.* into account from tidebase.accounts a where a.run_id = coalesce(account.parent_run_id, head.run_id);
    if tidebase_private.is_exhausted(account) then
      perform tidebase_private.raise('TB010', format('the budget of run %L is used up: %s', account.run_id, concat_ws(' and ',
          case when account.shared_cost_usd >= account.cost_limit_usd
            then format('%s of %s USD', account.shared_cost_usd, account.cost_limit_usd) end,
          case when account.shared_tokens >= account.token_limit
            then format('%s of %s tokens', account.shared_tokens, account.token_limit) end)),
        jsonb_build_object('run_id', head.run_id, 'budget_run_id', account.run_id, 'cost_usd', account.shared_cost_usd,
          'cost_limit_usd', account.cost_limit_usd, 'tokens', account.shared_tokens, 'token_limit', account.token_limit),
        'An operator may raise it with set_budget; then resume the run.');
    end if;
    exit when account.parent_run_id is null;
  end loop;
end
$$;
comment on function tidebase_private.require_funds(tidebase.run_heads) is
  'Raises TB010 when the run''s budget, or one that it shares, is used up. Costs one read a level.';

create or replace function tidebase_private.require_usage(wanted tidebase.usage, request_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_name(wanted.kind, 'kind', 255);
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if exists (
    select from unnest(array[wanted.response_id, wanted.step, wanted.provider, wanted.model, wanted.unit, wanted.label]) text
    where text is not null and not tidebase_private.is_name(text, 1024))
  then
    perform tidebase_private.raise_invalid('response_id, step, provider, model, unit and label',
      'must be texts of 1 to 1024 bytes that are not blank');
  end if;
  if least(wanted.input_tokens, wanted.cache_read_tokens, wanted.cache_write_tokens, wanted.output_tokens, wanted.reasoning_tokens,
      wanted.total_tokens) < 0
    or greatest(wanted.input_tokens, wanted.cache_read_tokens, wanted.cache_write_tokens, wanted.output_tokens, wanted.reasoning_tokens,
      wanted.total_tokens) > 1e12
  then
    perform tidebase_private.raise_invalid('numbers of tokens', 'must be from 0 to 1e12');
  elsif coalesce(wanted.cache_read_tokens, 0) + coalesce(wanted.cache_write_tokens, 0) > coalesce(wanted.input_tokens, 0) then
    perform tidebase_private.raise_invalid('input_tokens', 'must include those read from and written to the cache');
  elsif wanted.reasoning_tokens > coalesce(wanted.output_tokens, 0) then
    perform tidebase_private.raise_invalid('output_tokens', 'must include those for reasoning');
  elsif wanted.cost < 0 or wanted.cost > 1e12 or wanted.quantity < 0 or wanted.quantity > 1e24 then  -- also NaN and Infinity
    perform tidebase_private.raise_invalid('cost and quantity', 'must be numbers from 0 on');
  elsif wanted.currency !~ '^[A-Z]{3}$' then
    perform tidebase_private.raise_invalid('currency', 'must be a code of ISO 4217, such as USD');
  elsif jsonb_typeof(wanted.metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  end if;
  perform tidebase_private.require_note(wanted.metadata, 'metadata');
end
$$;
comment on function tidebase_private.require_usage(tidebase.usage, text) is 'Raises TB002 when a record of usage makes no sense.';

-- Adds a record to the run's account, and where there is a budget to those above. True when it used a budget up.
create or replace function tidebase_private.charge(head tidebase.run_heads, record tidebase.usage)
returns boolean
language plpgsql volatile
as $$
declare
  cost numeric := case when record.currency = 'USD' then coalesce(record.cost, 0) else 0 end;
  tokens bigint := coalesce(record.input_tokens, 0) + coalesce(record.output_tokens, 0);
  account tidebase.accounts;
  used_up boolean := false;
begin
  insert into tidebase.accounts as a (run_id, records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, cost_usd, shared_tokens, shared_cost_usd)
  values (head.run_id, 1, (record.cost is null or record.currency <> 'USD')::integer, coalesce(record.input_tokens, 0),
    coalesce(record.cache_read_tokens, 0), coalesce(record.cache_write_tokens, 0), coalesce(record.output_tokens, 0),
    coalesce(record.reasoning_tokens, 0), cost, tokens, cost)
  on conflict on constraint accounts_pkey do update
  set records = a.records + 1,
      unpriced = a.unpriced + excluded.unpriced,
      input_tokens = a.input_tokens + excluded.input_tokens,
      cache_read_tokens = a.cache_read_tokens + excluded.cache_read_tokens,
      cache_write_tokens = a.cache_write_tokens + excluded.cache_write_tokens,
      output_tokens = a.output_tokens + excluded.output_tokens,
      reasoning_tokens = a.reasoning_tokens + excluded.reasoning_tokens,
      cost_usd = a.cost_usd + excluded.cost_usd,
      shared_tokens = a.shared_tokens + excluded.shared_tokens,
      shared_cost_usd = a.shared_cost_usd + excluded.shared_cost_usd
  returning a.* into account;
  loop
    used_up := used_up or tidebase_private.is_exhausted(account) and not coalesce(
      account.shared_cost_usd - cost >= account.cost_limit_usd or account.shared_tokens - tokens >= account.token_limit, false);
    exit when account.parent_run_id is null;
    update tidebase.accounts a
    set shared_tokens = a.shared_tokens + tokens, shared_cost_usd = a.shared_cost_usd + cost
    where a.run_id = account.parent_run_id
    returning a.* into account;
  end loop;
  return used_up;
end
$$;
comment on function tidebase_private.charge(tidebase.run_heads, tidebase.usage) is
  'Adds to the running totals of the run and of those whose budget it shares. The caller holds the head''s lock.';

create or replace function tidebase_private.account_of(head tidebase.run_heads, recorded boolean, seq bigint)
returns tidebase.usage_total
language plpgsql stable
as $$
declare
  account tidebase.accounts;
  total tidebase.usage_total;
begin
  select a.* into account from tidebase.accounts a where a.run_id = head.run_id;
  total := row(recorded, account.records, account.input_tokens, account.output_tokens, account.cost_usd, account.unpriced, false, seq);
  while not total.exhausted and account.run_id is not null loop
    total.exhausted := tidebase_private.is_exhausted(account);
    select a.* into account from tidebase.accounts a where a.run_id = account.parent_run_id;
  end loop;
  return total;
end
$$;
comment on function tidebase_private.account_of(tidebase.run_heads, boolean, bigint) is 'The answer of record_usage.';

-- Unlike jsonb_strip_nulls it leaves the nulls inside the caller's metadata alone.
create or replace function tidebase_private.without_nulls(members jsonb)
returns jsonb
language sql immutable
as $$
  select jsonb_object_agg(m.key, m.value) from jsonb_each(members) m where m.value <> 'null';
$$;
comment on function tidebase_private.without_nulls(jsonb) is 'An object without those of its own members that are null.';

create or replace function tidebase.record_usage(
  run_id text, token bigint, step text default null, kind text default 'chat', provider text default null, model text default null,
  input_tokens bigint default null, output_tokens bigint default null, cost_usd numeric default null, quantity numeric default null,
  unit text default null, response_id text default null, cache_read_tokens bigint default null,
  cache_write_tokens bigint default null, reasoning_tokens bigint default null, cost numeric default null,
  currency text default 'USD', label text default null, metadata jsonb default null, request_id text default null,
  total_tokens bigint default null)
returns tidebase.usage_total
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  wanted usage;
  counted bigint;
  used_up boolean;
begin
  kind := coalesce(kind, 'chat');
  currency := coalesce(currency, 'USD');
  if cost_usd is not null and (cost is not null or currency <> 'USD') then
    perform tidebase_private.raise_invalid('cost_usd', 'must stand alone, without cost and another currency');
  end if;
  wanted := row(run_id, 0::bigint, clock_timestamp(), input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, kind, step,
    provider, model, response_id, coalesce(cost, cost_usd), currency, quantity, unit, label, metadata, total_tokens);
  perform tidebase_private.require_usage(wanted, request_id);
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  wanted.seq := head.last_seq;
  wanted.created_at := clock_timestamp();
  if request_id is not null then
    counted := (tidebase_private.find_request(run_id, request_id, array['usage.recorded'])).seq;
  end if;
  if counted is null then
    insert into usage select (wanted).* on conflict do nothing;
    if not found then
      counted := (select u.seq from usage u where u.run_id = head.run_id and u.response_id = record_usage.response_id);
    end if;
  end if;
  if counted is not null then
    perform tidebase_private.give_back(head, 1);
    return tidebase_private.account_of(head, false, counted);  -- that response, or that call, was counted before
  end if;
  used_up := tidebase_private.charge(head, wanted);
  perform tidebase_private.emit(head, 'usage.recorded', tidebase_private.without_nulls(
    to_jsonb(wanted) - array['run_id', 'seq', 'created_at']), request_id);
  if used_up then
    perform tidebase_private.emit(tidebase_private.advance(run_id), 'budget.exhausted', jsonb_build_object('seq', head.last_seq));
  end if;
  return tidebase_private.account_of(head, true, head.last_seq);
end
$$;
comment on function tidebase.record_usage(text, bigint, text, text, text, text, bigint, bigint, numeric, numeric, text, text, bigint, bigint, bigint, numeric, text, text, jsonb, text, bigint) is
  'Records what a call to a model, or to anything else that is paid for, used, and returns the run''s totals so far. kind: gen_ai.operation.name of OpenTelemetry: chat, embeddings, execute_tool ... step: the step it belongs to. input_tokens: all of them, those read from and written to the cache included; output_tokens: all, those for reasoning included. cost_usd, or cost and currency (ISO 4217): exact; left out when nobody knows the price, never 0 for that. quantity and unit: what is not counted in tokens. total_tokens: a total that somebody has counted in another way, kept as it is; a budget does not count it. response_id: the provider''s id of the response: it is counted once in a run, however often it is recorded. request_id: an id made up for this call, for the same purpose. A budget counts input and output tokens, and costs in USD; once it is used up the next begin_step raises TB010. Errors: TB001, TB002, TB003, TB004, TB005.';

-- Makes the runs below a run share its budget, and adds up what they used so far. Goes down the tree, parents' heads
-- before children's; a run that has a budget of its own has done that for those below it.
create or replace function tidebase_private.share_budget(run_id text)
returns void
language plpgsql volatile
as $$
declare
  child record;
  head tidebase.run_heads;
begin
  perform tidebase_private.open_account(run_id);
  update tidebase.run_heads h set has_budget = true where h.run_id = share_budget.run_id;
  for child in
    select e.child_run_id as id from tidebase.edges e
    where e.run_id = share_budget.run_id and e.edge_type <> 'fork' and e.source_run_id is null
    order by e.child_run_id
  loop
    head := tidebase_private.lock_head(child.id);
    if not head.has_budget then
      perform tidebase_private.share_budget(child.id);
    end if;
    perform tidebase_private.open_account(child.id, parent_run_id => run_id);
  end loop;
  update tidebase.accounts a
  set (shared_tokens, shared_cost_usd) = (
    select a.input_tokens + a.output_tokens + coalesce(sum(c.shared_tokens), 0), a.cost_usd + coalesce(sum(c.shared_cost_usd), 0)
    from tidebase.accounts c
    where c.run_id in (
      select e.child_run_id from tidebase.edges e
      where e.run_id = a.run_id and e.edge_type <> 'fork' and e.source_run_id is null))
  where a.run_id = share_budget.run_id;
end
$$;
comment on function tidebase_private.share_budget(text) is 'Gives a run and its descendants accounts that hang together. The caller holds the head''s lock.';

create or replace function tidebase.set_budget(
  run_id text, cost_usd numeric default null, tokens bigint default null, actor text default null, reason text default null)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
begin
  if cost_usd < 0 or cost_usd > 1e12 or tokens < 0 then  -- also NaN and Infinity
    perform tidebase_private.raise_invalid('cost_usd and tokens', 'must be numbers from 0 on');
  end if;
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status in ('cancelled', 'completed') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  if not head.has_budget then
    perform tidebase_private.share_budget(run_id);
  end if;
  update accounts a set cost_limit_usd = set_budget.cost_usd, token_limit = set_budget.tokens where a.run_id = set_budget.run_id;
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'budget.changed', jsonb_build_object('cost_usd', cost_usd,
    'tokens', tokens, 'actor', coalesce(actor, tidebase_private.caller()), 'reason', reason));
end
$$;
comment on function tidebase.set_budget(text, numeric, bigint, text, text) is
  'Says what a run and its descendants may use together, from now on: cost in USD, and input and output tokens; NULL is no limit. What they used before counts. When it is used up (the total has reached it) the next begin_step of any of them raises TB010; raise it, and the run goes on. A child may have a smaller budget of its own. actor: the database role unless told. Errors: TB001, TB002, TB004, TB005.';

create or replace view tidebase.usage_records with (security_barrier = true) as
  select
    u.run_id,
    u.seq,
    u.kind,
    u.step,
    u.provider,
    u.model,
    u.response_id,
    u.input_tokens,
    u.cache_read_tokens,
    u.cache_write_tokens,
    u.output_tokens,
    u.reasoning_tokens,
    u.cost,
    u.currency,
    u.quantity,
    u.unit,
    u.label,
    coalesce(u.metadata, '{}') as metadata,
    u.created_at,
    u.total_tokens
  from tidebase.usage u;
comment on view tidebase.usage_records is
  'Every record of usage. By the OpenTelemetry GenAI conventions kind is gen_ai.operation.name, provider gen_ai.provider.name, model gen_ai.response.model, response_id gen_ai.response.id; the tokens are gen_ai.usage.*. Order by seq.';

create or replace view tidebase.usage_totals with (security_barrier = true) as
  select
    h.run_id,
    coalesce(a.records, 0) as records,
    coalesce(a.unpriced, 0) as unpriced,
    coalesce(a.input_tokens, 0) as input_tokens,
    coalesce(a.cache_read_tokens, 0) as cache_read_tokens,
    coalesce(a.cache_write_tokens, 0) as cache_write_tokens,
    coalesce(a.output_tokens, 0) as output_tokens,
    coalesce(a.reasoning_tokens, 0) as reasoning_tokens,
    coalesce(a.cost_usd, 0) as cost_usd,
    tree.runs as tree_runs,
    tree.records as tree_records,
    tree.unpriced as tree_unpriced,
    tree.input_tokens as tree_input_tokens,
    tree.output_tokens as tree_output_tokens,
    tree.cost_usd as tree_cost_usd,
    a.cost_limit_usd,
    a.token_limit
  from tidebase.run_heads h
  left join tidebase.accounts a on a.run_id = h.run_id
  cross join lateral (
    with recursive below (run_id) as (
      select h.run_id
      union all
      select e.child_run_id from below b
      join tidebase.edges e on e.run_id = b.run_id and e.edge_type <> 'fork' and e.source_run_id is null)
    select
      count(*) as runs,
      coalesce(sum(c.records), 0)::bigint as records,
      coalesce(sum(c.unpriced), 0)::bigint as unpriced,
      coalesce(sum(c.input_tokens), 0)::bigint as input_tokens,
      coalesce(sum(c.output_tokens), 0)::bigint as output_tokens,
      coalesce(sum(c.cost_usd), 0) as cost_usd
    from below b left join tidebase.accounts c on c.run_id = b.run_id) tree;
comment on view tidebase.usage_totals is
  'What each run used itself, and with its descendants (tree_...; forks are runs of their own, and the children that a fork took over are not its), beside its limits. unpriced: how many records have no price in USD, so that the cost is too low. Ask for one run_id: the descendants are added up for each row.';

create or replace view tidebase.usage_by_step with (security_barrier = true) as
  select
    u.run_id,
    u.step,
    u.currency,
    count(*) as records,
    count(*) - count(u.cost) as unpriced,
    sum(u.input_tokens)::bigint as input_tokens,
    sum(u.cache_read_tokens)::bigint as cache_read_tokens,
    sum(u.cache_write_tokens)::bigint as cache_write_tokens,
    sum(u.output_tokens)::bigint as output_tokens,
    sum(u.reasoning_tokens)::bigint as reasoning_tokens,
    sum(u.cost) as cost
  from tidebase.usage u
  group by u.run_id, u.step, u.currency;
comment on view tidebase.usage_by_step is 'What each step of a run used, by currency; a sum is NULL when nobody knows it. unpriced: records without a price.';

create or replace view tidebase.usage_by_model with (security_barrier = true) as
  select
    u.run_id,
    u.provider,
    u.model,
    u.currency,
    count(*) as records,
    count(*) - count(u.cost) as unpriced,
    sum(u.input_tokens)::bigint as input_tokens,
    sum(u.cache_read_tokens)::bigint as cache_read_tokens,
    sum(u.cache_write_tokens)::bigint as cache_write_tokens,
    sum(u.output_tokens)::bigint as output_tokens,
    sum(u.reasoning_tokens)::bigint as reasoning_tokens,
    sum(u.cost) as cost
  from tidebase.usage u
  group by u.run_id, u.provider, u.model, u.currency;
comment on view tidebase.usage_by_model is 'What a run used of each model, by currency; a sum is NULL when nobody knows it. unpriced: records without a price.';

select tidebase_private.allow('function tidebase.record_usage', 'worker');
select tidebase_private.allow('function tidebase.set_budget', 'operator');
select tidebase_private.allow('table tidebase.usage_records', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.usage_totals', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.usage_by_step', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.usage_by_model', 'worker', 'approver', 'operator', 'reader');

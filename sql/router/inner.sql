-- What is asked of shards beside the functions of the API, as their owner.

create function tidebase_router.place_of(bucket integer, a1 text)
returns timestamptz
language plproxy
as $$
  cluster 'tidebase'; run on bucket;
  select tidebase_private.place_of(a1);
$$;

create function tidebase_router.place_in_inbox(bucket integer, a1 text, a2 text, out due timestamptz, out made timestamptz)
returns setof record
language plproxy
as $$
  cluster 'tidebase'; run on bucket;
  select g.timeout_at as due, g.created_at as made from tidebase.gates g where g.run_id = a1 and g.name = a2 and g.kind = 'gate';
$$;

create function tidebase_router.all_page_of_inbox(a1 integer, a2 timestamptz, a3 timestamptz, a4 text, a5 text)
returns setof tidebase.gate_overview
language plproxy
as $$
  cluster 'tidebase'; run on all;
  select i.* from tidebase_private.page_of_inbox(a1, a2, a3, a4, a5) i;
$$;

create function tidebase_router.all_runs_like(a1 text, a2 integer)
returns setof text
language plproxy
as $$
  cluster 'tidebase'; run on all;
  select r.run_id from tidebase.runs r where r.run_id ~>=~ a1 and r.run_id ~<~ (a1 || chr(1114111)) order by r.run_id using ~<~ limit a2;
$$;

create function tidebase_router.all_schedules(a1 text)
returns setof text
language plproxy
as $$
  cluster 'tidebase'; run on all;
  select s.queue from tidebase.schedules s where s.schedule = a1;
$$;

-- What a search finds at a shard, with the time of each run, for the pages of several are put into one order.
create function tidebase_router.all_search_runs(
  a1 text, a2 text, a3 text, a4 text, a5 jsonb, a6 timestamptz, a7 timestamptz, a8 text, a9 timestamptz, a10 boolean, a11 integer, a12 integer,
  out run_ids text[], out times timestamptz[], out next_run_id text, out next_created_at timestamptz, out examined integer)
returns setof record
language plproxy
as $$
  cluster 'tidebase'; run on all;
  select p.run_ids as run_ids, array(
      select r.created_at from unnest(p.run_ids) with ordinality u (id, place) join tidebase.runs r on r.run_id = u.id order by u.place) as times,
    p.next_run_id as next_run_id, p.next_created_at as next_created_at, p.examined as examined
  from tidebase.search_runs(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12) p;
$$;

-- What is paid for is kept: also where nothing crashed.
-- depends: 0005.proof

-- A step goes to a person also when its contract changed between two attempts.
alter table tidebase.reviews
  drop constraint review_cause_is_known,
  add constraint review_cause_is_known check (cause in ('crash', 'error', 'contract'));

update tidebase.reviews set cause = 'crash' where cause = 'contract';
alter table tidebase.reviews
  drop constraint review_cause_is_known,
  add constraint review_cause_is_known check (cause in ('crash', 'error'));

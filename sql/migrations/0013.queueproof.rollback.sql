-- What is in the outbox stays there.
drop function if exists tidebase.claim_deliveries(integer, interval, boolean, text[]);

-- Takes out the threads with all their checkpoints.
drop type tidebase.checkpoint_put, tidebase.thread_checkpoint;
drop table tidebase.thread_writes;
drop table tidebase.thread_chunks;
drop table tidebase.thread_values;
drop table tidebase.thread_checkpoints;
drop table tidebase.threads;

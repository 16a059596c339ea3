-- Takes out what is read beyond values that a client has.
drop function if exists tidebase.get_checkpoint_beyond(text, text, text, text, integer[], text[]);
drop type tidebase.thread_checkpoint_beyond;

-- Takes out the channels with what was kept of their deliveries; what was to be sent yet is not sent.
drop type tidebase.channel_delivery, tidebase.channel;
drop table tidebase.channels;

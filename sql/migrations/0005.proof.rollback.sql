drop type tidebase.violation;

"""What `walbridge tail` shows: the changes of a bridge's stream from a chosen place on, through outages, for people."""

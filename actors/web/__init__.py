"""What the HTTP server shows: the status document, the history behind the plots, and the page itself."""

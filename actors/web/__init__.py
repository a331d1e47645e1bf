"""The bridge's HTTP server: application, status document, live feed, access guard and page."""

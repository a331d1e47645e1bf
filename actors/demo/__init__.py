"""The demo: both servers, bridge, load and a live replica in one terminal."""

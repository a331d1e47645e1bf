"""What the command line carries beside the bridge."""

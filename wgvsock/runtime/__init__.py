"""What every service needs in its own process: event loop, tasks, back-off, signals, private files, a journal."""

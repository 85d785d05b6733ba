"""One machine: embedded servers, processes, `up` and `demo`."""

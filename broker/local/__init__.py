"""Everything on one machine: embedded servers, processes, `up` and `demo`."""

"""Moves alert packets from Kafka through Redis to the classifier, and classifications back to Kafka. Handles no
tensors.

The stages are folders, in the order in which a packet meets them: `kafka` (topics in and out), `packets` (bytes to
observations), `registry` (schemas), `state` (histories, queues and books in Redis), `results` (records and their
encodings). Further folders: `commands` (the verbs), `web` (the page), `sinks` and `providers` (other systems), `local`
(everything on one machine). The files here are the programs and what they share:

- the stream: `ingest` (with `ingest_processes`, `night_replay`), `work` (with `batching`, `worker_models`,
  `worker_threads`), `redrive`, `replay`; built by `app`
- other systems: `forward` (with `filmstrip`, `http`), `backfill` (with `recently_seen`); built by `exchange`
- looking at it: `serve`, `subscribe` (with `record_writers`), `health`, `prior`, `archive_packets`
- settings: `settings` (all of them), `config` (reads them), `settings_rules`, `named_files`, `urls`, `plugins`
- shared by all: `cli`, `terminal`, `errors`, `logs`, `metrics`, `heartbeat`, `waiting`, `certificates`, `memory`,
  `observation` (the value that passes from packets to state)
"""

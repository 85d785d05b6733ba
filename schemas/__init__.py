"""Avro schemas as data: one directory per schema and version, a sample alongside each."""

"""Classification records, their encodings, and how they are read."""

"""Archives of histories: format, reader, writer, checks."""

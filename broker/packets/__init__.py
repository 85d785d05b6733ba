"""From bytes to observations: containers, Avro, FITS, surveys. Independent of Kafka and Redis."""

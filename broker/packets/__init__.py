"""From bytes to observations: containers, Avro, FITS, surveys. Knows no Kafka and no Redis."""

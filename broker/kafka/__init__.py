"""Everything that touches Kafka: connections, consumers, producers, topics, dead letters."""

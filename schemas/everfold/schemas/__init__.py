"""What Everfold writes to Kafka: topics, Avro schemas, and the codec. Needs nothing else of Everfold but the kernel."""

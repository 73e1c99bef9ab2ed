"""What Everfold writes to Kafka: topics, Avro schemas, and the codec. Needs no other part of Everfold but the kernel."""

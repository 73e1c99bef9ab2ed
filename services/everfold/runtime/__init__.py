"""The shell's toolkit: settings, logs, metrics, clocks, the life of a process, Kafka, and calls between services."""

from support.broker import kafka, kafka_bootstrap, topic_prefix

__all__ = ["kafka", "kafka_bootstrap", "topic_prefix"]

"""Drives a broker with kafka-python: produces, consumes through a group, commits, restarts and resumes.

Usage: kafka_python_client.py BOOTSTRAP_SERVERS [SASL_BOOTSTRAP_SERVERS USER PASSWORD]
Prints one JSON line with what it saw; the Rust test compares it with what the broker holds.
"""

import json
import sys
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

TOPIC = "foreign"
GROUP = "foreign-group"


def produce(servers, start, count, **settings):
    producer = KafkaProducer(bootstrap_servers=servers, **settings)
    futures = []
    for i in range(start, start + count):
        value = json.dumps({"n": i}).encode()
        futures.append(producer.send(TOPIC, key=str(i).encode(), value=value, partition=i % 2, headers=[("h", b"1")]))
    producer.flush(timeout=30)
    offsets = [(f.get(timeout=10).partition, f.get(timeout=10).offset) for f in futures]
    producer.close(timeout=10)
    return offsets


def consume(servers, count, **settings):
    """Reads `count` records through the group, commits, leaves."""
    consumer = KafkaConsumer(
        TOPIC, bootstrap_servers=servers, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=False,
        max_poll_records=50, **settings,
    )
    seen = []
    deadline = time.monotonic() + 30
    while len(seen) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500, max_records=count - len(seen)).values():
            seen += [json.loads(r.value)["n"] for r in records]
    consumer.commit()
    committed = {p: consumer.committed(TopicPartition(TOPIC, p)) for p in (0, 1)}
    consumer.close()
    return seen, committed


def main():
    servers = sys.argv[1]
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(TOPIC, num_partitions=2, replication_factor=1)])
    admin.close()

    result = {"offsets": produce(servers, 0, 100)}
    produce(servers, 100, 100, compression_type="gzip", linger_ms=20)
    result["first"], _ = consume(servers, 120)
    result["second"], result["committed"] = consume(servers, 80)
    result["third"], _ = consume_nothing(servers)
    if len(sys.argv) > 2:
        sasl = dict(security_protocol="SASL_PLAINTEXT", sasl_plain_username=sys.argv[3], sasl_plain_password=sys.argv[4])
        produce(sys.argv[2], 200, 10, sasl_mechanism="SCRAM-SHA-256", **sasl)
        produce(sys.argv[2], 210, 10, sasl_mechanism="SCRAM-SHA-512", **sasl)
        result["sasl"], _ = consume(sys.argv[2], 20, sasl_mechanism="PLAIN", **sasl)
    print(json.dumps(result))


def consume_nothing(servers):
    """A further consumer of the group finds nothing left."""
    consumer = KafkaConsumer(
        TOPIC, bootstrap_servers=servers, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=False,
    )
    seen = []
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=200).values():
            seen += [json.loads(r.value)["n"] for r in records]
    consumer.close()
    return seen, None


if __name__ == "__main__":
    main()

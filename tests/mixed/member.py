"""A member of a group with kafka-python or with librdkafka (confluent-kafka): polls until a byte comes in, then
leaves.

Arguments: library servers group assignor topic...
"""

import sys
import threading

ended = threading.Event()


def wait_for_the_end():
    sys.stdin.buffer.read(1)
    ended.set()


def kafka_python(servers, group, assignor, topics):
    from kafka import KafkaConsumer
    from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
    from kafka.coordinator.assignors.range import RangePartitionAssignor
    from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
    from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

    assignors = {
        "range": RangePartitionAssignor,
        "roundrobin": RoundRobinPartitionAssignor,
        "sticky": StickyPartitionAssignor,
        "cooperative-sticky": CooperativeStickyAssignor,
    }
    consumer = KafkaConsumer(
        *topics,
        bootstrap_servers=servers,
        group_id=group,
        client_id="kafka-python",
        partition_assignment_strategy=[assignors[assignor]],
        auto_offset_reset="earliest",
        session_timeout_ms=6000,
        heartbeat_interval_ms=500,
    )
    while not ended.is_set():
        consumer.poll(timeout_ms=100)
    consumer.close()


def librdkafka(servers, group, assignor, topics):
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "client.id": "librdkafka",
            "partition.assignment.strategy": assignor,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
        }
    )
    consumer.subscribe(topics)
    while not ended.is_set():
        consumer.poll(0.1)
    consumer.close()


threading.Thread(target=wait_for_the_end, daemon=True).start()
run = {"kafka-python": kafka_python, "librdkafka": librdkafka}[sys.argv[1]]
run(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])

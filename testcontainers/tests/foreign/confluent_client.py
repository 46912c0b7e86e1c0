"""librdkafka, through confluent-kafka, against a broker: idempotent produce in every codec, groups of both protocols, a
transaction, admin. Usage: confluent_client.py BOOTSTRAP_SERVERS. Prints one line "name=value" per thing done.
"""

import sys
import time

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

SERVERS = sys.argv[1]
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
BASE = {"bootstrap.servers": SERVERS, "client.id": "librdkafka"}


def produce(topic):
    failed = []
    for codec in CODECS:
        producer = Producer(BASE | {"enable.idempotence": True, "compression.type": codec, "linger.ms": 5})
        for i in range(100):
            producer.produce(topic, f"{codec}-{i}", key=f"{codec}{i}", partition=i % 4, on_delivery=lambda e, _: e and failed.append(e))
        if producer.flush(30):
            raise RuntimeError(f"{codec}: not delivered")
    if failed:
        raise RuntimeError(failed[0])
    print(f"produced={100 * len(CODECS)}")


def read(consumer, seen):
    for message in consumer.consume(100, 0.2):
        if message.error():
            raise KafkaException(message.error())
        seen.add(message.value().decode())


def group(name, topic, count, **settings):
    """Two members read a topic; the second joins while the first reads, and leaves before the end."""
    config = BASE | {"auto.offset.reset": "earliest", "enable.auto.commit": False} | settings
    seen = set()
    first, second = Consumer(config), Consumer(config)
    first.subscribe([topic])
    deadline = time.monotonic() + 40
    while len(seen) < count // 10:
        read(first, seen)
        check(deadline, f"{name}: nothing read")
    second.subscribe([topic])
    while len(second.assignment()) != 2 or len(first.assignment()) != 2:
        read(first, seen)
        read(second, seen)
        check(deadline, f"{name}: {first.assignment()} and {second.assignment()}")
    try:
        second.commit(asynchronous=False)
    except KafkaException as error:
        if error.args[0].name() != "_NO_OFFSET":
            raise
    second.close()
    while len(seen) < count or len(first.assignment()) != 4:
        read(first, seen)
        check(deadline, f"{name}: {len(seen)} read")
    first.commit(asynchronous=False)
    first.close()
    print(f"{name}={len(seen)}")


def check(deadline, what):
    if time.monotonic() > deadline:
        raise RuntimeError(what)


def transactions(topic):
    producer = Producer(BASE | {"transactional.id": "librdkafka-tx"})
    producer.init_transactions(20)
    reader = Consumer(BASE | {"group.id": "librdkafka-tx-group", "enable.auto.commit": False})
    for turn in range(4):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, f"{turn}-{i}", partition=i % 2)
        if turn % 2 == 0:
            offsets = [TopicPartition("librdkafka", 0, turn + 1)]
            producer.send_offsets_to_transaction(offsets, reader.consumer_group_metadata(), 20)
            producer.commit_transaction(20)
        else:
            producer.flush(20)
            producer.abort_transaction(20)
    reader.close()
    seen = set()
    consumer = Consumer(BASE | {"group.id": "reader", "isolation.level": "read_committed", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, p, 0) for p in (0, 1)])
    deadline = time.monotonic() + 20
    while len(seen) < 20:
        read(consumer, seen)
        check(deadline, f"read_committed: {sorted(seen)}")
    read(consumer, seen)
    consumer.close()
    if any(value[0] in "13" for value in seen):
        raise RuntimeError(f"aborted records were read: {sorted(seen)}")
    print(f"committed={len(seen)}")


def admin(client):
    def wait(futures):
        return {key: future.result(20) for key, future in futures.items()}

    asked = ConsumerGroupTopicPartitions("librdkafka-tx-group", [TopicPartition("librdkafka", 0)])
    found = wait(client.list_consumer_group_offsets([asked]))["librdkafka-tx-group"]
    print(f"tx-offset={found.topic_partitions[0].offset}")
    resource = ConfigResource(ConfigResource.Type.TOPIC, "librdkafka")
    print(f"retention={list(wait(client.describe_configs([resource])).values())[0]['retention.ms'].value}")
    wait(client.create_partitions([NewPartitions("librdkafka-more", 3)]))
    print(f"partitions={len(client.list_topics('librdkafka-more', 10).topics['librdkafka-more'].partitions)}")
    print(f"groups={len(client.list_consumer_groups().result(20).valid)}")
    wait(client.delete_consumer_groups(["librdkafka-classic", "librdkafka-new"]))
    wait(client.delete_topics(["librdkafka-more"]))


def main():
    client = AdminClient(BASE)
    topics = [NewTopic("librdkafka", 4), NewTopic("librdkafka-tx", 2), NewTopic("librdkafka-more", 1)]
    for future in client.create_topics(topics).values():
        future.result(20)
    produce("librdkafka")
    group("classic", "librdkafka", 500, **{"group.id": "librdkafka-classic", "partition.assignment.strategy": "cooperative-sticky"})
    group("kip848", "librdkafka", 500, **{"group.id": "librdkafka-new", "group.protocol": "consumer"})
    transactions("librdkafka-tx")
    admin(client)
    print("done=1")


main()

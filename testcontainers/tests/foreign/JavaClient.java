// Apache Kafka's own client against a broker: idempotent produce in every codec, groups of both protocols, a transaction,
// admin. Usage: JavaClient BOOTSTRAP_SERVERS. Prints one line "name=value" per thing done; any failure ends it.

import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.serialization.*;

public class JavaClient {
    static final String[] CODECS = {"none", "gzip", "snappy", "lz4", "zstd"};
    static String servers;

    static Map<String, Object> settings(Object... pairs) {
        Map<String, Object> all = new HashMap<>(Map.of("bootstrap.servers", servers, "client.id", "java"));
        for (int i = 0; i < pairs.length; i += 2) all.put((String) pairs[i], pairs[i + 1]);
        return all;
    }

    static KafkaProducer<String, String> producer(Object... pairs) {
        return new KafkaProducer<>(settings(pairs), new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(Object... pairs) {
        var all = settings(pairs);
        all.put("auto.offset.reset", "earliest");
        all.put("enable.auto.commit", "false");
        return new KafkaConsumer<>(all, new StringDeserializer(), new StringDeserializer());
    }

    static void produce(String topic) throws Exception {
        for (String codec : CODECS) {
            try (var producer = producer("compression.type", codec, "linger.ms", "5")) {
                var sent = new ArrayList<Future<RecordMetadata>>();
                for (int i = 0; i < 100; i++) sent.add(producer.send(new ProducerRecord<>(topic, i % 4, codec + i, codec + "-" + i)));
                for (var one : sent) one.get();
            }
        }
        System.out.println("produced=" + CODECS.length * 100);
    }

    /** Two members read a topic; the second joins while the first reads, and leaves before the end. */
    static void group(String name, String topic, int count, Object... pairs) throws Exception {
        var seen = ConcurrentHashMap.<String>newKeySet();
        var pool = Executors.newFixedThreadPool(2);
        var shared = new CountDownLatch(1);
        var gone = new CountDownLatch(1);
        Callable<Void> first = () -> {
            try (var consumer = consumer(pairs)) {
                consumer.subscribe(List.of(topic));
                read(consumer, seen, () -> seen.size() < count / 10);
                shared.countDown();
                read(consumer, seen, () -> gone.getCount() > 0 || seen.size() < count);
                commit(consumer);
            }
            return null;
        };
        Callable<Void> second = () -> {
            shared.await();
            try (var consumer = consumer(pairs)) {
                consumer.subscribe(List.of(topic));
                long end = System.nanoTime() + 20_000_000_000L;
                read(consumer, seen, () -> consumer.assignment().size() != 2 && System.nanoTime() < end);
                if (consumer.assignment().size() != 2) throw new IllegalStateException(name + ": no share");
                commit(consumer);
            } finally {
                gone.countDown();
            }
            return null;
        };
        var done = List.of(pool.submit(first), pool.submit(second));
        for (var one : done) one.get(60, TimeUnit.SECONDS);
        pool.shutdown();
        System.out.println(name + "=" + seen.size());
    }

    static void read(KafkaConsumer<String, String> consumer, Set<String> seen, BooleanSupplier on) {
        while (on.getAsBoolean()) {
            for (var record : consumer.poll(Duration.ofMillis(100))) seen.add(record.value());
            commit(consumer);
        }
    }

    /** In a rebalance a commit may be refused: the next poll takes part in it, and a later commit covers both. */
    static void commit(KafkaConsumer<String, String> consumer) {
        try {
            consumer.commitSync();
        } catch (RebalanceInProgressException | CommitFailedException again) {
            // As said above.
        }
    }

    interface BooleanSupplier { boolean getAsBoolean(); }

    static void transactions(String topic) throws Exception {
        try (var producer = producer("transactional.id", "java-tx")) {
            producer.initTransactions();
            for (int round = 0; round < 4; round++) {
                producer.beginTransaction();
                for (int i = 0; i < 10; i++) producer.send(new ProducerRecord<>(topic, i % 2, "k" + i, round + "-" + i));
                if (round % 2 == 0) {
                    var offsets = Map.of(new TopicPartition("java", 0), new OffsetAndMetadata(round + 1));
                    producer.sendOffsetsToTransaction(offsets, new ConsumerGroupMetadata("java-tx-group"));
                    producer.commitTransaction();
                } else {
                    producer.flush();
                    producer.abortTransaction();
                }
            }
        }
        var seen = new TreeSet<String>();
        try (var consumer = consumer("isolation.level", "read_committed")) {
            var partitions = List.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            for (int i = 0; i < 50 && seen.size() < 20; i++)
                for (var record : consumer.poll(Duration.ofMillis(200))) seen.add(record.value());
        }
        if (seen.stream().anyMatch(v -> v.startsWith("1") || v.startsWith("3"))) throw new IllegalStateException("aborted: " + seen);
        System.out.println("committed=" + seen.size());
    }

    static void admin(Admin admin) throws Exception {
        var group = admin.listConsumerGroupOffsets("java-tx-group").partitionsToOffsetAndMetadata().get();
        System.out.println("tx-offset=" + group.get(new TopicPartition("java", 0)).offset());
        var resource = new ConfigResource(ConfigResource.Type.TOPIC, "java");
        var alter = new AlterConfigOp(new ConfigEntry("retention.ms", "3600000"), AlterConfigOp.OpType.SET);
        admin.incrementalAlterConfigs(Map.of(resource, List.of(alter))).all().get();
        var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
        System.out.println("retention=" + config.get("retention.ms").value());
        admin.createPartitions(Map.of("java-more", NewPartitions.increaseTo(3))).all().get();
        System.out.println("partitions=" + admin.describeTopics(List.of("java-more")).allTopicNames().get().get("java-more").partitions().size());
        System.out.println("groups=" + admin.listGroups().all().get().size());
        var described = admin.describeConsumerGroups(List.of("java-classic", "java-new")).all().get();
        System.out.println("types=" + described.get("java-classic").type() + "," + described.get("java-new").type());
        var low = admin.deleteRecords(Map.of(new TopicPartition("java", 0), RecordsToDelete.beforeOffset(5))).all();
        low.get();
        var earliest = admin.listOffsets(Map.of(new TopicPartition("java", 0), OffsetSpec.earliest())).all().get();
        System.out.println("earliest=" + earliest.get(new TopicPartition("java", 0)).offset());
        System.out.println("tx-state=" + admin.describeTransactions(List.of("java-tx")).description("java-tx").get().state());
        admin.deleteConsumerGroups(List.of("java-classic", "java-new")).all().get();
        admin.deleteTopics(List.of("java-more")).all().get();
        System.out.println("cluster=" + admin.describeCluster().nodes().get().size());
    }

    public static void main(String[] args) throws Exception {
        servers = args[0];
        try (var admin = Admin.create(settings())) {
            admin.createTopics(List.of(
                new NewTopic("java", Optional.of(4), Optional.empty()),
                new NewTopic("java-tx", Optional.of(2), Optional.empty()),
                new NewTopic("java-more", Optional.of(1), Optional.empty()))).all().get();
            produce("java");
            group("classic", "java", 500, "group.id", "java-classic", "partition.assignment.strategy", CooperativeStickyAssignor.class.getName());
            group("kip848", "java", 500, "group.id", "java-new", "group.protocol", "consumer");
            transactions("java-tx");
            admin(admin);
        }
        System.out.println("done=1");
    }
}

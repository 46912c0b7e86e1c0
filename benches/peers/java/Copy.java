// Apache Kafka's Java client: the exactly-once copy of `bench copy`, with its command line and its JSON line.
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.AppInfoParser;

public class Copy {
    static final Map<String, String> options = new HashMap<>();

    static String option(String name, String otherwise) {
        String value = options.getOrDefault(name, otherwise);
        if (value == null) throw new IllegalArgumentException("--" + name + " is required");
        return value;
    }

    static double cpu() {
        return ((com.sun.management.OperatingSystemMXBean)
            java.lang.management.ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime() / 1e9;
    }

    public static void main(String[] words) throws Exception {
        for (int i = 0; i + 1 < words.length; i += 2) options.put(words[i].substring(2), words[i + 1]);
        long records = Long.parseLong(option("records", null));
        int mostRecords = Integer.parseInt(option("txn-records", "0"));
        long mostNanos = Long.parseLong(option("txn-ms", "0")) * 1_000_000;
        String topic = option("topic", null), to = option("to", null), group = option("group", null);
        if (mostRecords == 0 && mostNanos == 0) throw new IllegalArgumentException("say --txn-records or --txn-ms");

        long started = System.nanoTime();
        Map<String, Object> reads = new HashMap<>();
        reads.put("bootstrap.servers", option("brokers", null));
        reads.put("group.id", group);
        reads.put("auto.offset.reset", "earliest");
        reads.put("enable.auto.commit", false);
        reads.put("isolation.level", "read_committed");
        if (mostRecords > 0) reads.put("max.poll.records", mostRecords);
        Map<String, Object> writes = new HashMap<>();
        writes.put("bootstrap.servers", option("brokers", null));
        writes.put("transactional.id", group + "-copy");
        writes.put("linger.ms", Integer.parseInt(option("linger-ms", "5")));
        writes.put("batch.size", Integer.parseInt(option("batch-bytes", "131072")));

        var producer = new KafkaProducer<>(writes, new ByteArraySerializer(), new ByteArraySerializer());
        var consumer = new KafkaConsumer<>(reads, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        producer.initTransactions();
        consumer.subscribe(List.of(topic));
        long copied = 0, bytes = 0, progress = System.nanoTime();
        while (copied < records) {
            var batch = consumer.poll(Duration.ofSeconds(1));
            if (batch.isEmpty()) {
                if (System.nanoTime() - progress > 60_000_000_000L) throw new IllegalStateException("stalled at " + copied);
                continue;
            }
            producer.beginTransaction();
            long begun = System.nanoTime();
            long taken = 0;
            Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
            while (true) {
                for (var record : batch) {
                    producer.send(new ProducerRecord<>(to, record.key(), record.value()));
                    bytes += record.value().length;
                }
                taken += batch.count();
                for (var partition : batch.partitions()) {
                    var of = batch.records(partition);
                    offsets.put(partition, new OffsetAndMetadata(of.get(of.size() - 1).offset() + 1));
                }
                long left = mostNanos - (System.nanoTime() - begun);
                if ((mostRecords > 0 && taken >= mostRecords) || (mostNanos > 0 && left <= 0) || copied + taken >= records) break;
                batch = consumer.poll(mostNanos > 0 ? Duration.ofNanos(left) : Duration.ofSeconds(1));
            }
            producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
            producer.commitTransaction();
            copied += taken;
            progress = System.nanoTime();
        }
        producer.close();
        consumer.close();
        double secs = (System.nanoTime() - started) / 1e9;
        long peak = 0;
        for (String line : Files.readAllLines(Path.of("/proc/self/status")))
            if (line.startsWith("VmHWM:")) peak = Long.parseLong(line.replaceAll("[^0-9]", ""));
        System.out.printf(Locale.ROOT,
            "{\"peer\":\"java\",\"version\":\"%s\",\"mode\":\"copy\",\"records\":%d,\"secs\":%.6f,\"records_per_s\":%.1f,"
            + "\"mb_per_s\":%.3f,\"cpu_s\":%.4f,\"max_rss_kb\":%d}%n",
            AppInfoParser.getVersion(), copied, secs, copied / secs, bytes / 1e6 / secs, cpu(), peak);
    }
}

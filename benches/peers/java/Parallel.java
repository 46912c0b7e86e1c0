// Confluent's Parallel Consumer: the handlers of `bench consume --api facade --pause-ms`, with its command line and its JSON line.
import com.fasterxml.jackson.databind.ObjectMapper;
import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.*;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.serialization.*;

public class Parallel {
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

    public static class Event {
        public long id, user;
        public String kind, session, currency, country;
        public double amount;
        public boolean success;
        public int retries;
        public String[] tags;
    }

    public static void main(String[] words) throws Exception {
        for (int i = 0; i + 1 < words.length; i += 2) options.put(words[i].substring(2), words[i + 1]);
        long records = Long.parseLong(option("records", null));
        long pause = Long.parseLong(option("pause-ms", "10"));

        long started = System.nanoTime();
        Map<String, Object> reads = new HashMap<>();
        reads.put("bootstrap.servers", option("brokers", null));
        reads.put("group.id", option("group", null));
        reads.put("auto.offset.reset", "earliest");
        reads.put("enable.auto.commit", false);
        var consumer = new KafkaConsumer<>(reads, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        var lanes = ParallelConsumerOptions.<byte[], byte[]>builder()
            .ordering(ProcessingOrder.valueOf(option("ordering", "key").toUpperCase(Locale.ROOT)))
            .maxConcurrency(Integer.parseInt(option("concurrency", "256")))
            .commitMode(CommitMode.PERIODIC_CONSUMER_ASYNCHRONOUS)
            .consumer(consumer)
            .build();
        var processor = ParallelStreamProcessor.createEosStreamProcessor(lanes);
        processor.subscribe(List.of(option("topic", null)));
        var json = new ObjectMapper();
        var handled = new LongAdder();
        var sum = new LongAdder();
        processor.poll(context -> {
            try {
                sum.add(json.readValue(context.value(), Event.class).id);
                if (pause > 0) Thread.sleep(pause);
            } catch (Exception failed) {
                throw new IllegalStateException(failed);
            }
            handled.increment();
        });
        long progress = System.nanoTime(), seen = 0;
        while (handled.sum() < records) {
            Thread.sleep(5);
            if (handled.sum() > seen) {
                seen = handled.sum();
                progress = System.nanoTime();
            } else if (System.nanoTime() - progress > 60_000_000_000L) {
                throw new IllegalStateException("stalled at " + seen);
            }
        }
        double secs = (System.nanoTime() - started) / 1e9;
        processor.closeDrainFirst();
        long peak = 0;
        for (String line : Files.readAllLines(Path.of("/proc/self/status")))
            if (line.startsWith("VmHWM:")) peak = Long.parseLong(line.replaceAll("[^0-9]", ""));
        System.out.printf(Locale.ROOT,
            "{\"peer\":\"parallel-consumer\",\"mode\":\"consume\",\"records\":%d,\"secs\":%.6f,\"records_per_s\":%.1f,"
            + "\"cpu_s\":%.4f,\"max_rss_kb\":%d,\"sum\":%d}%n",
            handled.sum(), secs, handled.sum() / secs, cpu(), peak, sum.sum());
    }
}

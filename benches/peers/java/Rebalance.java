// Apache Kafka's Java client: the members of `bench rebalance`, with its command line and its JSON line.
import java.time.Duration;
import java.util.*;
import java.util.concurrent.atomic.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.AppInfoParser;

public class Rebalance {
    static final int ROUNDS = 5;
    static final double STAYS = 3, IDLE = 10, STALL = 60;
    static final Map<String, String> options = new HashMap<>();

    static double cpu() {
        return ((com.sun.management.OperatingSystemMXBean)
            java.lang.management.ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime() / 1e9;
    }

    static double now() {
        return System.nanoTime() / 1e9;
    }

    static class Member extends Thread {
        volatile int share;
        volatile boolean end;

        Member() {
            start();
        }

        public void run() {
            Map<String, Object> settings = new HashMap<>();
            settings.put("bootstrap.servers", options.get("brokers"));
            settings.put("group.id", options.get("group"));
            settings.put("auto.offset.reset", "earliest");
            settings.put("enable.auto.commit", false);
            switch (options.get("protocol")) {
                case "consumer" -> settings.put("group.protocol", "consumer");
                case "cooperative" -> settings.put("partition.assignment.strategy", CooperativeStickyAssignor.class.getName());
                default -> settings.put("partition.assignment.strategy", RangeAssignor.class.getName());
            }
            try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                consumer.subscribe(List.of(options.get("topic")));
                while (!end) {
                    consumer.poll(Duration.ofMillis(100));
                    share = consumer.assignment().size();
                }
            }
        }

        void close() throws InterruptedException {
            end = true;
            join();
        }
    }

    /** Seconds, and CPU seconds, until every partition has an owner and all have the same number of them, or one more. */
    static double[] settled(List<Member> members, int partitions, double since, double used) throws Exception {
        double[] reached = null;
        while (now() - since < STALL) {
            int sum = 0, least = Integer.MAX_VALUE, most = 0;
            for (var member : members) {
                int share = member.share;
                sum += share;
                least = Math.min(least, share);
                most = Math.max(most, share);
            }
            if (sum != partitions || most > least + 1) reached = null;
            else if (reached == null) reached = new double[] {now(), cpu()};
            if (reached != null && now() - reached[0] >= STAYS) return new double[] {reached[0] - since, reached[1] - used};
            Thread.sleep(20);
        }
        throw new IllegalStateException("the group does not settle");
    }

    static double median(List<double[]> of, int place) {
        double[] sorted = of.stream().mapToDouble(one -> one[place]).sorted().toArray();
        return sorted[sorted.length / 2];
    }

    public static void main(String[] words) throws Exception {
        for (int i = 0; i + 1 < words.length; i += 2) options.put(words[i].substring(2), words[i + 1]);
        int partitions = Integer.parseInt(options.get("partitions"));
        int count = Integer.parseInt(options.get("consumers"));
        double began = now(), used = cpu();
        List<Member> members = new ArrayList<>();
        for (int i = 0; i < count; i++) members.add(new Member());
        double[] joined = settled(members, partitions, began, used);
        double idle = cpu();
        Thread.sleep((long) (IDLE * 1000));
        idle = (cpu() - idle) / IDLE;
        List<double[]> comes = new ArrayList<>(), goes = new ArrayList<>();
        for (int i = 0; i < ROUNDS; i++) {
            began = now();
            used = cpu();
            members.add(new Member());
            comes.add(settled(members, partitions, began, used));
            began = now();
            used = cpu();
            members.remove(members.size() - 1).close();
            goes.add(settled(members, partitions, began, used));
        }
        for (var member : members) member.end = true;
        for (var member : members) member.close();
        System.out.printf(Locale.ROOT,
            "{\"peer\":\"java\",\"version\":\"%s\",\"mode\":\"rebalance\",\"protocol\":\"%s\",\"members\":%d,\"partitions\":%d,"
            + "\"join_s\":%.3f,\"join_cpu_s\":%.3f,\"come_s\":%.3f,\"come_cpu_s\":%.3f,\"go_s\":%.3f,\"go_cpu_s\":%.3f,"
            + "\"idle_cpu_per_s\":%.4f}%n",
            AppInfoParser.getVersion(), options.get("protocol"), count, partitions, joined[0], joined[1],
            median(comes, 0), median(comes, 1), median(goes, 0), median(goes, 1), idle);
    }
}

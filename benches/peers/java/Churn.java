// Apache Kafka's Java client in the churn of `tests/chaos`: members that close, are dropped, freeze past the poll interval and
// block within it. Prints for which share of the time a partition had no owner, as `tests/chaos` does of this crate's.
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.*;
import org.apache.kafka.common.utils.AppInfoParser;

public class Churn {
    static final int MEMBERS = 4;
    static final long POLL_INTERVAL = 12_000, FREEZE = 16_000, BLOCK = 8_000;
    static final Map<String, String> options = new HashMap<>();

    /** Who has what, and for how long nobody had it since its first owner. */
    static class Owners {
        static class Place {
            final Set<Integer> present = new HashSet<>();
            Double since;
            double without;
            Integer last;
            boolean revoked;
        }

        final Map<TopicPartition, Place> places = new HashMap<>();
        int moved, givenBack;

        synchronized void assigned(int member, Collection<TopicPartition> partitions) {
            for (var partition : partitions) {
                var place = places.computeIfAbsent(partition, key -> new Place());
                if (place.since != null) place.without += now() - place.since;
                place.since = null;
                if (place.last != null && place.last != member) moved++;
                else if (place.last != null && place.revoked) givenBack++;
                place.last = member;
                place.revoked = false;
                place.present.add(member);
            }
        }

        synchronized void givenUp(int member, Collection<TopicPartition> partitions, boolean revoked) {
            for (var partition : partitions) {
                var place = places.get(partition);
                leave(place, member);
                if (place.last == member) place.revoked = revoked;
            }
        }

        synchronized void away(int member) {
            for (var place : places.values()) leave(place, member);
        }

        private void leave(Place place, int member) {
            if (place.present.remove(member) && place.present.isEmpty()) place.since = now();
        }

        synchronized double without(double from, double to) {
            double sum = 0;
            for (var place : places.values()) sum += place.without + (place.since == null ? 0 : Math.max(0, to - place.since));
            return sum / (to - from) / Math.max(1, places.size());
        }
    }

    static final Owners owners = new Owners();

    static double now() {
        return System.nanoTime() / 1e9;
    }

    static class Member extends Thread implements ConsumerRebalanceListener {
        final int number;
        volatile long pause;
        volatile boolean ends, drops;

        Member(int number) {
            this.number = number;
            start();
        }

        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            owners.assigned(number, partitions);
        }

        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            owners.givenUp(number, partitions, true);
        }

        public void onPartitionsLost(Collection<TopicPartition> partitions) {
            owners.givenUp(number, partitions, false);
        }

        public void run() {
            Map<String, Object> settings = new HashMap<>();
            settings.put("bootstrap.servers", options.get("brokers"));
            settings.put("group.id", "churn");
            settings.put("auto.offset.reset", "earliest");
            settings.put("request.timeout.ms", 5_000);
            settings.put("max.poll.interval.ms", (int) POLL_INTERVAL);
            if (number % 3 == 0) settings.put("group.instance.id", "member-" + number);
            if (options.get("protocol").equals("consumer")) {
                settings.put("group.protocol", "consumer");
            } else {
                settings.put("session.timeout.ms", 6_000);
                settings.put("heartbeat.interval.ms", 500);
                var cooperative = options.get("protocol").equals("cooperative");
                settings.put("partition.assignment.strategy",
                    (cooperative ? CooperativeStickyAssignor.class : RangeAssignor.class).getName());
            }
            var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
            consumer.subscribe(List.of(options.get("topics").split(",")), this);
            while (!ends && !drops) {
                try {
                    consumer.poll(Duration.ofMillis(200));
                    long away = pause;
                    pause = 0;
                    if (away > POLL_INTERVAL) {
                        Thread.sleep(POLL_INTERVAL);
                        owners.away(number);
                        Thread.sleep(away - POLL_INTERVAL);
                    } else {
                        Thread.sleep(away);
                    }
                } catch (Exception error) {
                    System.err.println("member " + number + ": " + error);
                }
            }
            try {
                consumer.close(ends ? Duration.ofSeconds(20) : Duration.ZERO);
            } catch (Exception error) {
                System.err.println("member " + number + ": " + error);
            }
            owners.away(number);
        }
    }

    public static void main(String[] words) throws Exception {
        for (int i = 0; i + 1 < words.length; i += 2) options.put(words[i].substring(2), words[i + 1]);
        double from = now(), until = from + Double.parseDouble(options.get("seconds"));
        Random dice = new Random();
        int begun = 0;
        List<Member> alive = new ArrayList<>();
        while (begun < MEMBERS) alive.add(new Member(++begun));
        while (true) {
            Thread.sleep(3_000 + dice.nextInt(5_000));
            if (now() >= until) break;
            int index = dice.nextInt(MEMBERS), order = dice.nextInt(4);
            Member member = alive.get(index);
            if (order >= 2) {
                member.pause = order == 2 ? FREEZE : BLOCK;
                continue;
            }
            if (order == 0) member.ends = true;
            else member.drops = true;
            member.join();
            alive.set(index, new Member(++begun));
        }
        double without = owners.without(from, now());
        System.out.printf(Locale.ROOT,
            "{\"peer\":\"java\",\"version\":\"%s\",\"mode\":\"churn\",\"protocol\":\"%s\",\"members\":%d,"
            + "\"without_owner_percent\":%.2f,\"moved\":%d,\"given_back\":%d}%n",
            AppInfoParser.getVersion(), options.get("protocol"), begun, without * 100, owners.moved, owners.givenBack);
        for (var member : alive) member.ends = true;
        for (var member : alive) member.join();
    }
}

// A member of a group with Java's own client: polls until a byte comes in, then leaves.
// Arguments: servers group assignor topic...

import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public class Member {
    public static void main(String[] arguments) throws Exception {
        String assignor = switch (arguments[2]) {
            case "range" -> "RangeAssignor";
            case "roundrobin" -> "RoundRobinAssignor";
            case "sticky" -> "StickyAssignor";
            case "cooperative-sticky" -> "CooperativeStickyAssignor";
            case "uniform" -> null;
            default -> throw new IllegalArgumentException(arguments[2]);
        };
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("group.id", arguments[1]);
        settings.put("client.id", "java");
        settings.put("auto.offset.reset", "earliest");
        if (assignor == null) {
            // The broker assigns (KIP-848), and keeps the times.
            settings.put("group.protocol", "consumer");
        } else {
            settings.put("partition.assignment.strategy", "org.apache.kafka.clients.consumer." + assignor);
            settings.put("session.timeout.ms", "6000");
            settings.put("heartbeat.interval.ms", "500");
        }
        settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
        settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
            consumer.subscribe(List.of(arguments).subList(3, arguments.length));
            while (!ended()) {
                consumer.poll(Duration.ofMillis(100));
            }
        }
    }

    private static boolean ended() throws Exception {
        return System.in.available() > 0;
    }
}

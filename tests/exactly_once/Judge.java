// What Java's own clients see: every committed record of a topic, and the transactions that are open.
// Arguments: servers source target. Prints "partition<TAB>key<TAB>value" lines, then "open ..." for each open transaction.

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;

public class Judge {
    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("isolation.level", "read_committed");
        settings.put("enable.auto.commit", "false");
        settings.put("key.deserializer", StringDeserializer.class);
        settings.put("value.deserializer", StringDeserializer.class);
        StringBuilder seen = new StringBuilder();
        List<TopicPartition> all = new ArrayList<>();
        try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(settings)) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (String topic : List.of(arguments[1], arguments[2])) {
                consumer.partitionsFor(topic).forEach(p -> all.add(new TopicPartition(topic, p.partition())));
            }
            all.stream().filter(p -> p.topic().equals(arguments[2])).forEach(partitions::add);
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.get(p))) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofSeconds(1))) {
                    seen.append(record.partition()).append('\t').append(record.key()).append('\t')
                        .append(record.value()).append('\n');
                }
            }
        }
        System.out.print(seen);
        try (Admin admin = Admin.create(settings)) {
            admin.describeProducers(all).all().get().forEach((partition, state) -> state.activeProducers().forEach(producer -> {
                if (producer.currentTransactionStartOffset().isPresent()) {
                    System.out.println("open in " + partition + ": " + producer);
                }
            }));
            for (TransactionListing listing : admin.listTransactions().all().get()) {
                if (!listing.state().toString().matches("Empty|CompleteCommit|CompleteAbort")) {
                    System.out.println("open: " + listing);
                }
            }
        }
    }
}

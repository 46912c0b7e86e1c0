// franz-go against a broker: idempotent produce in every codec, a cooperative group and one of KIP-848, a transaction,
// admin. Usage: franz-go BOOTSTRAP_SERVERS. Prints one line "name=value" per thing done; any failure ends it.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var servers []string

func must(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func client(options ...kgo.Opt) *kgo.Client {
	made, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(servers...), kgo.ClientID("franz-go")}, options...)...)
	must(err)
	return made
}

func produce(ctx context.Context, topic string) {
	codecs := []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	}
	count := 0
	for number, codec := range codecs {
		producer := client(kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		var records []*kgo.Record
		for i := 0; i < 100; i++ {
			value := fmt.Sprintf("%d-%d", number, i)
			records = append(records, &kgo.Record{Topic: topic, Partition: int32(i % 4), Key: []byte(value), Value: []byte(value)})
		}
		must(producer.ProduceSync(ctx, records...).FirstErr())
		count += len(records)
		producer.Close()
	}
	fmt.Printf("produced=%d\n", count)
}

// group has two members read a topic: the second joins while the first reads, and leaves before the end.
func group(ctx context.Context, name, topic string, count int, options ...kgo.Opt) {
	options = append(options, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	seen := map[string]bool{}
	read := func(member *kgo.Client) {
		turn, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		member.PollRecords(turn, 100).EachRecord(func(record *kgo.Record) { seen[string(record.Value)] = true })
	}
	owned := func(member *kgo.Client) int {
		_, generation := member.GroupMetadata()
		if generation < 0 {
			return 0
		}
		total := 0
		for _, offsets := range member.CommittedOffsets() {
			total += len(offsets)
		}
		return total
	}
	first := client(options...)
	for len(seen) < count/10 {
		read(first)
		must(ctx.Err())
	}
	must(first.CommitUncommittedOffsets(ctx))
	second := client(options...)
	for owned(second) != 2 {
		read(first)
		read(second)
		must(ctx.Err())
	}
	must(second.CommitUncommittedOffsets(ctx))
	second.Close()
	for len(seen) < count {
		read(first)
		must(ctx.Err())
	}
	must(first.CommitUncommittedOffsets(ctx))
	first.Close()
	fmt.Printf("%s=%d\n", name, len(seen))
}

func transactions(ctx context.Context, topic string) {
	producer := client(kgo.TransactionalID("franz-go-tx"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for turn := 0; turn < 4; turn++ {
		must(producer.BeginTransaction())
		for i := 0; i < 10; i++ {
			record := &kgo.Record{Topic: topic, Partition: int32(i % 2), Value: []byte(fmt.Sprintf("%d-%d", turn, i))}
			producer.Produce(ctx, record, func(_ *kgo.Record, err error) { must(err) })
		}
		must(producer.Flush(ctx))
		must(producer.EndTransaction(ctx, turn%2 == 0))
	}
	producer.Close()
	reader := client(
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	seen := 0
	for seen < 20 {
		fetched := reader.PollFetches(ctx)
		must(ctx.Err())
		fetched.EachRecord(func(record *kgo.Record) {
			if strings.HasPrefix(string(record.Value), "1") || strings.HasPrefix(string(record.Value), "3") {
				must(fmt.Errorf("aborted record %s", record.Value))
			}
			seen++
		})
	}
	reader.Close()
	fmt.Printf("committed=%d\n", seen)
}

func main() {
	servers = strings.Split(os.Args[1], ",")
	ctx, cancel := context.WithTimeout(context.Background(), 80*time.Second)
	defer cancel()
	admin := kadm.NewClient(client())
	for topic, partitions := range map[string]int32{"franz-go": 4, "franz-go-tx": 2, "franz-go-more": 1} {
		_, err := admin.CreateTopic(ctx, partitions, -1, nil, topic)
		must(err)
	}
	produce(ctx, "franz-go")
	group(ctx, "classic", "franz-go", 500, kgo.ConsumerGroup("franz-go-classic"), kgo.Balancers(kgo.CooperativeStickyBalancer()))
	opted := context.WithValue(ctx, "opt_in_kafka_next_gen_balancer_beta", true)
	group(ctx, "kip848", "franz-go", 500, kgo.ConsumerGroup("franz-go-new"), kgo.WithContext(opted))
	transactions(ctx, "franz-go-tx")
	_, err := admin.CreatePartitions(ctx, 2, "franz-go-more")
	must(err)
	topics, err := admin.ListTopics(ctx, "franz-go-more")
	must(err)
	fmt.Printf("partitions=%d\n", len(topics["franz-go-more"].Partitions))
	groups, err := admin.ListGroups(ctx)
	must(err)
	fmt.Printf("groups=%d\n", len(groups))
	_, err = admin.DeleteGroups(ctx, "franz-go-classic", "franz-go-new")
	must(err)
	_, err = admin.DeleteTopics(ctx, "franz-go-more")
	must(err)
	fmt.Println("done=1")
}

// franz-go: the exactly-once copy of `bench copy`, with its command line and its JSON line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	brokers    = flag.String("brokers", "", "")
	topic      = flag.String("topic", "", "")
	to         = flag.String("to", "", "")
	group      = flag.String("group", "", "")
	records    = flag.Int("records", 0, "")
	lingerMs   = flag.Int("linger-ms", 5, "")
	batchBytes = flag.Int("batch-bytes", 131072, "")
	txnRecords = flag.Int("txn-records", 0, "")
	txnMs      = flag.Int("txn-ms", 0, "")
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "franz-go:", err)
		os.Exit(1)
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dependency := range info.Deps {
			if dependency.Path == "github.com/twmb/franz-go" {
				return dependency.Version
			}
		}
	}
	return "?"
}

func main() {
	flag.Parse()
	if *txnRecords == 0 && *txnMs == 0 {
		check(errors.New("say --txn-records or --txn-ms"))
	}
	ctx := context.Background()
	started := time.Now()
	session, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(*brokers),
		kgo.TransactionalID(*group+"-copy"),
		kgo.ConsumerGroup(*group),
		kgo.ConsumeTopics(*topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequireStableFetchOffsets(),
		kgo.ProducerLinger(time.Duration(*lingerMs)*time.Millisecond),
		kgo.ProducerBatchMaxBytes(int32(*batchBytes)),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
	check(err)
	most := *txnRecords
	if most == 0 {
		most = 10_000
	}
	copied, bytes := 0, 0
	progress := time.Now()
	for copied < *records {
		within, cancel := context.WithTimeout(ctx, time.Second)
		fetches := session.PollRecords(within, most)
		cancel()
		if fetches.NumRecords() == 0 {
			if time.Since(progress) > time.Minute {
				check(fmt.Errorf("stalled at %d", copied))
			}
			continue
		}
		check(session.Begin())
		until := time.Now().Add(time.Duration(*txnMs) * time.Millisecond)
		taken := 0
		for {
			fetches.EachRecord(func(record *kgo.Record) {
				session.Produce(ctx, &kgo.Record{Topic: *to, Key: record.Key, Value: record.Value}, nil)
				bytes += len(record.Value)
			})
			taken += fetches.NumRecords()
			left := time.Until(until)
			if (*txnRecords > 0 && taken >= *txnRecords) || (*txnMs > 0 && left <= 0) || copied+taken >= *records {
				break
			}
			if *txnMs == 0 {
				left = time.Second
			}
			within, cancel := context.WithTimeout(ctx, left)
			fetches = session.PollRecords(within, most)
			cancel()
		}
		committed, err := session.End(ctx, kgo.TryCommit)
		check(err)
		if committed {
			copied += taken
		}
		progress = time.Now()
	}
	session.Close()
	secs := time.Since(started).Seconds()
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	peak := 0
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			peak, err = strconv.Atoi(strings.Fields(rest)[0])
			check(err)
		}
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"peer": "franz-go", "version": version(), "mode": "copy", "records": copied, "secs": secs,
		"records_per_s": float64(copied) / secs, "mb_per_s": float64(bytes) / 1e6 / secs,
		"cpu_s": cpu, "max_rss_kb": peak,
	}))
}

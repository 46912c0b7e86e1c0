// A member of a group with franz-go: polls until a byte comes in, then leaves.
// Arguments: servers group assignor topic...
package main

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	balancer := map[string]kgo.GroupBalancer{
		"range":              kgo.RangeBalancer(),
		"roundrobin":         kgo.RoundRobinBalancer(),
		"sticky":             kgo.StickyBalancer(),
		"cooperative-sticky": kgo.CooperativeStickyBalancer(),
	}[os.Args[3]]
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(os.Args[1], ",")...),
		kgo.ConsumerGroup(os.Args[2]),
		kgo.ClientID("franz-go"),
		kgo.Balancers(balancer),
		kgo.ConsumeTopics(os.Args[4:]...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(500*time.Millisecond),
	)
	if err != nil {
		panic(err)
	}
	ctx, end := context.WithCancel(context.Background())
	go func() {
		os.Stdin.Read(make([]byte, 1))
		end()
	}()
	for ctx.Err() == nil {
		client.PollFetches(ctx)
	}
	client.Close()
}

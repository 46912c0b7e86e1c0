//! ListOffsets (key 2): the first, the last, and the first at or after a time; KIP-734's record of the greatest time.

use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};
use kafka_protocol::{ResponseError, records::TimestampType};

use super::super::log::{Batch, Isolation, PartitionLog};
use super::super::records;
use super::Call;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
/// Time, offset and leader epoch where there is no such record.
const NONE: (i64, i64, i32) = (-1, -1, -1);

pub(super) fn handle(call: &Call<'_>, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let mut response = ListOffsetsResponse::default();
    let isolation = match request.isolation_level {
        1 => Isolation::Committed,
        _ => Isolation::Uncommitted,
    };
    for topic in request.topics {
        let injected = call.error_for(&topic.name);
        let is_twice =
            |index: i32| topic.partitions.iter().filter(|p| p.partition_index == index).count() > 1;
        let look = |p: &ListOffsetsPartition| {
            let mut answer = ListOffsetsPartitionResponse::default()
                .with_partition_index(p.partition_index)
                .with_timestamp(-1)
                .with_offset(-1);
            let twice = || is_twice(p.partition_index).then_some(ResponseError::InvalidRequest);
            let refused = injected.or_else(twice);
            match refused.map_or_else(|| find(call, &topic.name, p, isolation), Err) {
                Err(error) => answer.error_code = error.code(),
                Ok((timestamp, offset, epoch)) => {
                    (answer.timestamp, answer.offset) = (timestamp, offset);
                    if call.version >= 4 {
                        answer.leader_epoch = epoch;
                    }
                }
            }
            answer
        };
        let partitions = topic.partitions.iter().map(look).collect();
        let answer =
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions);
        response.topics.push(answer);
    }
    response
}

fn find(
    call: &Call<'_>,
    topic: &str,
    p: &ListOffsetsPartition,
    isolation: Isolation,
) -> Result<(i64, i64, i32), ResponseError> {
    let known_since = match p.timestamp {
        LATEST | EARLIEST | 0.. => 1,
        MAX_TIMESTAMP => 7,
        EARLIEST_LOCAL => 8,
        LATEST_TIERED => 9,
        _ => i16::MAX,
    };
    if call.version < known_since {
        return Err(ResponseError::UnsupportedVersion);
    }
    let cluster = call.cluster();
    let epoch = if call.version >= 4 { p.current_leader_epoch } else { -1 };
    let log = &cluster.led_partition(call.broker, topic, p.partition_index, epoch)?.log;
    let epoch = log.leader_epoch();
    let end = log.readable_end(isolation);
    // Markers have times too.
    let batches = log.batches_from(0).iter();
    // What is not found may be there all the same while the leader does not know where its own epoch begins (KIP-207).
    let unsettled = || match (log.is_unsettled(), call.version) {
        (true, 5..) => Err(ResponseError::OffsetNotAvailable),
        (true, _) => Err(ResponseError::LeaderNotAvailable),
        (false, _) => Ok(NONE),
    };
    let record = match p.timestamp {
        LATEST => return unsettled().map(|_| (-1, end, epoch)),
        EARLIEST | EARLIEST_LOCAL => return Ok((-1, log.start(), log.epoch_at(log.start()))),
        MAX_TIMESTAMP => {
            let newest = batches.max_by_key(|b| (b.max_timestamp, -b.base_offset));
            newest.and_then(|b| first_at(log, b, b.max_timestamp))
        }
        LATEST_TIERED => return Ok(NONE),
        time => batches.filter(|b| b.max_timestamp >= time).find_map(|b| first_at(log, b, time)),
    };
    // The one record that fits is not looked past, though the reader may not see it yet.
    record.filter(|(_, offset, _)| *offset < end).map_or_else(unsettled, Ok)
}

/// The first record of the batch with at least this time: its time, offset and leader epoch.
fn first_at(log: &PartitionLog, batch: &Batch, time: i64) -> Option<(i64, i64, i32)> {
    let records = records::decode(batch).ok()?;
    let time_of = |r: &kafka_protocol::records::Record| match r.timestamp_type {
        TimestampType::LogAppend => batch.max_timestamp,
        TimestampType::Creation => r.timestamp,
    };
    let fits = |r: &&kafka_protocol::records::Record| r.offset >= log.start() && time_of(r) >= time;
    records.iter().find(fits).map(|r| (time_of(r), r.offset, batch.head().leader_epoch))
}

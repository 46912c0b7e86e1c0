//! OffsetCommit and OffsetFetch in version 10, which name topics by id (KIP-516): kafka-protocol ends at version 9, so
//! their bytes are read and written here, from and into its types.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::{
    GroupId, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::super::server::Close;

/// The first version that names topics by id.
pub(super) const VERSION: i16 = 10;

struct Reader(Bytes);

impl Reader {
    fn take(&mut self, size: usize) -> Result<Bytes, Close> {
        if self.0.len() < size {
            return Err(Close);
        }
        Ok(self.0.split_to(size))
    }

    fn i32(&mut self) -> Result<i32, Close> {
        Ok(self.take(4)?.get_i32())
    }

    fn i64(&mut self) -> Result<i64, Close> {
        Ok(self.take(8)?.get_i64())
    }

    fn uuid(&mut self) -> Result<Uuid, Close> {
        Ok(Uuid::from_u128(self.take(16)?.get_u128()))
    }

    fn varint(&mut self) -> Result<usize, Close> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Close)
    }

    fn text(&mut self) -> Result<Option<StrBytes>, Close> {
        match self.varint()?.checked_sub(1) {
            None => Ok(None),
            Some(size) => StrBytes::from_utf8(self.take(size)?).map(Some).map_err(|_| Close),
        }
    }

    fn tags(&mut self) -> Result<(), Close> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let size = self.varint()?;
            self.take(size)?;
        }
        Ok(())
    }

    /// `None`: null.
    fn list<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, Close>,
    ) -> Result<Option<Vec<T>>, Close> {
        let Some(count) = self.varint()?.checked_sub(1) else { return Ok(None) };
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(one(self)?);
        }
        Ok(Some(all))
    }
}

pub(super) fn read_commit(body: Bytes) -> Result<OffsetCommitRequest, Close> {
    let mut body = Reader(body);
    let partition = |body: &mut Reader| {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(body.i32()?)
            .with_committed_offset(body.i64()?)
            .with_committed_leader_epoch(body.i32()?)
            .with_committed_metadata(body.text()?);
        body.tags()?;
        Ok(partition)
    };
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(body.text()?.unwrap_or_default()))
        .with_generation_id_or_member_epoch(body.i32()?)
        .with_member_id(body.text()?.unwrap_or_default())
        .with_group_instance_id(body.text()?);
    let topics = body.list(|body| {
        let topic = OffsetCommitRequestTopic::default()
            .with_topic_id(body.uuid()?)
            .with_partitions(body.list(partition)?.unwrap_or_default());
        body.tags()?;
        Ok(topic)
    })?;
    Ok(request.with_topics(topics.unwrap_or_default()))
}

pub(super) fn read_fetch(body: Bytes) -> Result<OffsetFetchRequest, Close> {
    let mut body = Reader(body);
    let topic = |body: &mut Reader| {
        let topic = OffsetFetchRequestTopics::default()
            .with_topic_id(body.uuid()?)
            .with_partition_indexes(body.list(Reader::i32)?.unwrap_or_default());
        body.tags()?;
        Ok(topic)
    };
    let groups = body.list(|body| {
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(body.text()?.unwrap_or_default()))
            .with_member_id(body.text()?)
            .with_member_epoch(body.i32()?)
            .with_topics(body.list(topic)?);
        body.tags()?;
        Ok(group)
    })?;
    let stable = body.take(1)?[0] != 0;
    Ok(OffsetFetchRequest::default().with_groups(groups.unwrap_or_default()).with_require_stable(stable))
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_text(out: &mut BytesMut, text: Option<&str>) {
    put_varint(out, text.map_or(0, |text| text.len() + 1));
    out.put_slice(text.unwrap_or_default().as_bytes());
}

fn put_list<T>(out: &mut BytesMut, all: &[T], one: impl Fn(&mut BytesMut, &T)) {
    put_varint(out, all.len() + 1);
    for entry in all {
        one(out, entry);
        // No tagged fields.
        out.put_u8(0);
    }
}

/// The frame of an answer whose header is flexible.
fn frame(correlation: i32, write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i32(0);
    out.put_i32(correlation);
    out.put_u8(0);
    write(&mut out);
    out.put_u8(0);
    let size = i32::try_from(out.len() - 4).unwrap_or(i32::MAX);
    out[..4].copy_from_slice(&size.to_be_bytes());
    out
}

pub(super) fn write_commit(correlation: i32, response: &OffsetCommitResponse) -> BytesMut {
    frame(correlation, |out| {
        out.put_i32(response.throttle_time_ms);
        put_list(out, &response.topics, |out, topic| {
            out.put_u128(topic.topic_id.as_u128());
            put_list(out, &topic.partitions, |out, p| {
                out.put_i32(p.partition_index);
                out.put_i16(p.error_code);
            });
        });
    })
}

pub(super) fn write_fetch(correlation: i32, response: &OffsetFetchResponse) -> BytesMut {
    frame(correlation, |out| {
        out.put_i32(response.throttle_time_ms);
        put_list(out, &response.groups, |out, group| {
            put_text(out, Some(&group.group_id));
            put_list(out, &group.topics, |out, topic| {
                out.put_u128(topic.topic_id.as_u128());
                put_list(out, &topic.partitions, |out, p| {
                    out.put_i32(p.partition_index);
                    out.put_i64(p.committed_offset);
                    out.put_i32(p.committed_leader_epoch);
                    put_text(out, p.metadata.as_deref());
                    out.put_i16(p.error_code);
                });
            });
            out.put_i16(group.error_code);
        });
    })
}

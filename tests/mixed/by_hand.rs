//! A member that speaks the bytes of old and careless clients: a subscription of version 0, or one that says version 1
//! and ends before that version's fields, as kafka-go and sarama write it. It follows, and never leads.

use bytes::{BufMut as _, Bytes, BytesMut};
use dtkafka_testcontainers::launch::call;
use kafka_protocol::{
    messages::{
        ApiKey, GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
        join_group_request::JoinGroupRequestProtocol,
    },
    protocol::StrBytes,
};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle};

/// A subscription to `topics` whose version is `version`, without any field of it but topics and empty user data.
fn subscription(version: i16, topics: &[String]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(version);
    out.put_i32(i32::try_from(topics.len()).unwrap());
    for topic in topics {
        out.put_i16(i16::try_from(topic.len()).unwrap());
        out.put_slice(topic.as_bytes());
    }
    out.put_i32(0);
    out.freeze()
}

/// A member on a task of its own.
pub(crate) struct ByHand {
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ByHand {
    pub(crate) fn start(
        coordinator: String,
        group: &str,
        assignor: &str,
        version: i16,
        topics: &[String],
    ) -> Self {
        let (end, ended) = watch::channel(false);
        let member = Session {
            group: GroupId(StrBytes::from_string(group.to_owned())),
            assignor: StrBytes::from_string(assignor.to_owned()),
            metadata: subscription(version, topics),
            member: StrBytes::default(),
            generation: -1,
        };
        Self { end, task: tokio::spawn(member.run(coordinator, ended)) }
    }

    pub(crate) async fn leave(self) {
        self.end.send_replace(true);
        self.task.await.unwrap();
    }
}

struct Session {
    group: GroupId,
    assignor: StrBytes,
    metadata: Bytes,
    member: StrBytes,
    generation: i32,
}

impl Session {
    async fn run(mut self, coordinator: String, mut ended: watch::Receiver<bool>) {
        let mut stream = TcpStream::connect(coordinator).await.unwrap();
        self.join(&mut stream).await;
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(200));
        loop {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => break,
                _ = tick.tick() => {}
            }
            let request = HeartbeatRequest::default()
                .with_group_id(self.group.clone())
                .with_generation_id(self.generation)
                .with_member_id(self.member.clone());
            let answer: HeartbeatResponse = call(&mut stream, ApiKey::Heartbeat, 0, &request).await.unwrap();
            if answer.error_code != 0 {
                self.join(&mut stream).await;
            }
        }
        let request = LeaveGroupRequest::default().with_group_id(self.group).with_member_id(self.member);
        let _: LeaveGroupResponse = call(&mut stream, ApiKey::LeaveGroup, 0, &request).await.unwrap();
    }

    async fn join(&mut self, stream: &mut TcpStream) {
        loop {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(self.assignor.clone())
                .with_metadata(self.metadata.clone());
            let request = JoinGroupRequest::default()
                .with_group_id(self.group.clone())
                .with_session_timeout_ms(6000)
                .with_rebalance_timeout_ms(10_000)
                .with_member_id(self.member.clone())
                .with_protocol_type(StrBytes::from_static_str("consumer"))
                .with_protocols(vec![protocol]);
            let joined: JoinGroupResponse = call(stream, ApiKey::JoinGroup, 2, &request).await.unwrap();
            self.member = joined.member_id.clone();
            if joined.error_code != 0 {
                self.member = StrBytes::default();
                continue;
            }
            assert_ne!(joined.leader, self.member, "it was to follow");
            self.generation = joined.generation_id;
            let request = SyncGroupRequest::default()
                .with_group_id(self.group.clone())
                .with_generation_id(self.generation)
                .with_member_id(self.member.clone());
            let synced: SyncGroupResponse = call(stream, ApiKey::SyncGroup, 1, &request).await.unwrap();
            if synced.error_code == 0 {
                return;
            }
        }
    }
}

//! Is a broker really serving? One ApiVersions and one Metadata exchange over plain TCP.
//!
//! Written with `kafka-protocol` alone, never with `dtkafka`: the kit must not lean on what it tests.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse, RequestHeader,
        ResponseHeader,
    },
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// Metadata's last version before flexible headers that every broker from 2.8 to 4.x speaks.
const METADATA_VERSION: i16 = 8;
/// The first answer of a broker is a few kilobytes; more is not Kafka.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What a broker said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// How many APIs it lists.
    pub apis: usize,
    /// `host:port` of every broker in its metadata: empty while it is still starting.
    pub brokers: Vec<String>,
    /// The cluster's id.
    pub cluster_id: Option<String>,
}

/// Asks over TCP. `address` is `host:port` of a PLAINTEXT listener.
///
/// # Errors
/// What connecting or the exchange failed with; `InvalidData` if the answer is not Kafka's.
///
/// # Cancel safety
/// Safe: the connection is dropped.
pub async fn probe(address: &str) -> io::Result<Probe> {
    let mut stream = TcpStream::connect(address).await?;
    probe_stream(&mut stream).await
}

/// Asks over a stream that is connected already, for example after a TLS handshake.
///
/// # Errors
/// As [`probe`].
///
/// # Cancel safety
/// Safe; the stream is of no use afterwards.
pub async fn probe_stream<S: AsyncRead + AsyncWrite + Unpin + Send>(stream: &mut S) -> io::Result<Probe> {
    let apis: ApiVersionsResponse =
        call(stream, ApiKey::ApiVersions, 0, &ApiVersionsRequest::default()).await?;
    if apis.error_code != 0 {
        return Err(io::Error::other(format!("ApiVersions answered error {}", apis.error_code)));
    }
    // No topics: brokers are all we want.
    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
    let metadata: MetadataResponse = call(stream, ApiKey::Metadata, METADATA_VERSION, &request).await?;
    Ok(Probe {
        apis: apis.api_keys.len(),
        brokers: metadata.brokers.iter().map(|b| format!("{}:{}", b.host.as_str(), b.port)).collect(),
        cluster_id: metadata.cluster_id.map(|id| id.to_string()),
    })
}

/// One request and its answer, on a stream with no other request under way: raw protocol for tests.
///
/// # Errors
/// What the exchange failed with; `InvalidData` if the answer is not one to this request and version.
///
/// # Cancel safety
/// Safe; the stream is of no use afterwards.
pub async fn call<S, Q, A>(stream: &mut S, api: ApiKey, version: i16, request: &Q) -> io::Result<A>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    Q: Encodable + HeaderVersion + Sync,
    A: Decodable + HeaderVersion,
{
    let mut body = BytesMut::new();
    let header = RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(version)
        .with_correlation_id(1)
        .with_client_id(Some(StrBytes::from_static_str("dtkafka-testcontainers")));
    header.encode(&mut body, Q::header_version(version)).map_err(invalid)?;
    request.encode(&mut body, version).map_err(invalid)?;
    let length = u32::try_from(body.len()).map_err(invalid)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;

    let length = usize::try_from(stream.read_u32().await?).map_err(invalid)?;
    if length > MAX_ANSWER_BYTES {
        return Err(invalid(format!("an answer of {length} bytes: not a Kafka listener")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    let mut answer = Bytes::from(answer);
    let header = ResponseHeader::decode(&mut answer, A::header_version(version)).map_err(invalid)?;
    if header.correlation_id != 1 {
        return Err(invalid("an answer to another request"));
    }
    let decoded = A::decode(&mut answer, version).map_err(invalid)?;
    if answer.has_remaining() {
        return Err(invalid(format!("{} bytes too many in the answer", answer.remaining())));
    }
    Ok(decoded)
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answer_longer_than_the_bound_is_refused_before_it_is_read() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
        let error = probe_stream(&mut near).await.unwrap_err();
        assert!(error.to_string().contains("not a Kafka listener"), "{error}");
    }
}

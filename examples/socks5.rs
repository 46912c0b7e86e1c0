//! Brokers behind a SOCKS5 proxy (RFC 1928, without authentication), such as `ssh -D 1080 jumphost`:
//! `socks5 PROXY_HOST:PORT BROKERS`.
//!
//! The proxy resolves the names, also those under which the brokers advertise themselves. TLS and SASL would run on top
//! of it as on any other stream: set them as usual.

use std::{error::Error, io};

use dtkafka::{KafkaConfig, KafkaInstance};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(proxy), Some(brokers)) = (arguments.next(), arguments.next()) else {
        return Err("name the proxy and the brokers: HOST:PORT HOST:PORT[,HOST:PORT]".into());
    };
    let config = KafkaConfig::new()
        .set_bootstrap_servers(brokers.as_str())
        .set_transport(move |host, port| connect(proxy.clone(), host, port));
    let admin = KafkaInstance::new(config)?.admin().await?;
    for topic in admin.list_topics().await? {
        println!("{topic:?}");
    }
    Ok(())
}

/// A stream to `host:port` through the proxy.
async fn connect(proxy: String, host: String, port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    // Version 5, one method: no authentication.
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    if method != [5, 0] {
        return Err(io::Error::other(format!("the proxy wants another method: {method:?}")));
    }
    let length = u8::try_from(host.len()).map_err(|_| io::Error::other("the host name is too long"))?;
    // Connect (1) to a name (3).
    let mut request = vec![5, 1, 0, 3, length];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[1] != 0 {
        return Err(io::Error::other(format!("the proxy cannot reach {host}:{port}: code {}", head[1])));
    }
    let bound = match head[3] {
        1 => 4,
        3 => usize::from(stream.read_u8().await?),
        4 => 16,
        other => return Err(io::Error::other(format!("an address of the unknown type {other}"))),
    };
    let mut rest = vec![0; bound + 2];
    stream.read_exact(&mut rest).await?;
    Ok(stream)
}
